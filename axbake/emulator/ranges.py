"""The observer: smallest and largest value of each float tensor, for each calibration sample."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from axbake.emulator.graph import Graph, runtime_errors, session

# Their output holds exactly the values of their first input, so it has its range too.
REORDERS = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


@dataclass(frozen=True)
class Ranges:
    """Ranges of T tensors over N samples; infinite and NaN where the tensor is."""

    names: tuple[str, ...]
    low: np.ndarray  # (N, T) float32
    high: np.ndarray  # (N, T) float32

    def overall(self) -> dict[str, tuple[float, float]]:
        """(smallest, largest) value of each tensor over all samples."""
        # `np.min` keeps a NaN, which must not get lost among good samples.
        low, high = self.low.min(axis=0), self.high.max(axis=0)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.names)}


def float_activations(graph: Graph) -> tuple[str, ...]:
    """The float32 tensors that depend on the input or are computed: inputs of the graph, outputs of its nodes."""
    names = [spec.name for spec in graph.inputs] + [name for node in graph.nodes for name in node.output if name]
    return tuple(name for name in names if graph.types[name] == TensorProto.FLOAT)


def record_ranges(
    graph: Graph,
    samples: Iterable[Mapping[str, np.ndarray]],
    tensors: Sequence[str] | None = None,
    on_sample: Callable[[int], None] = lambda done: None,
    on_outputs: Callable[[Mapping[str, np.ndarray]], None] | None = None,
) -> Ranges:
    """Run *graph* on each of *samples*, and record the range of each of *tensors* (None: all float activations).

    Only scalars leave ONNX Runtime, so memory does not grow with the number of tensors or samples. *on_outputs* gets
    the graph's own outputs of each sample, name to array, in the order of the samples: they are the inputs of the next
    graph of a chain. After that *on_sample* gets the number of samples that are done.
    """
    names = tuple(float_activations(graph) if tensors is None else tensors)
    same = sources(graph)
    observed = list(dict.fromkeys(same.get(name, name) for name in names))
    outputs = [spec.name for spec in graph.outputs] if on_outputs else []
    bounds: list[np.ndarray] = []
    for results in measured(graph, samples, {name: bounds_of(name) for name in observed}, outputs=outputs):
        split = len(results) - len(outputs)
        bounds.append(np.array(results[:split], np.float32))
        if on_outputs:
            on_outputs(dict(zip(outputs, results[split:], strict=True)))
        on_sample(len(bounds))
    table = np.array(bounds, np.float32).reshape(len(bounds), len(observed), 2)
    places = {name: place for place, name in enumerate(observed)}
    columns = [places[same.get(name, name)] for name in names]
    return Ranges(names, table[:, columns, 0], table[:, columns, 1])


def sources(graph: Graph) -> dict[str, str]:
    """For each tensor that only reorders another's values: that other one."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in REORDERS and node.input[0] not in graph.constants:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


@dataclass(frozen=True)
class Probe:
    """Nodes that measure a tensor, what they give, and the constants that they take besides it."""

    nodes: tuple[onnx.NodeProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


def bounds_of(name: str) -> Probe:
    """The smallest and the largest value of tensor *name*: without axes both reduce to a scalar, in every opset."""
    kinds = ("Min", "Max")
    return Probe(
        nodes=tuple(helper.make_node(f"Reduce{kind}", [name], [f"{name}/{kind}"], keepdims=0) for kind in kinds),
        outputs=tuple(helper.make_tensor_value_info(f"{name}/{kind}", TensorProto.FLOAT, []) for kind in kinds),
    )


def measured(
    graph: Graph,
    samples: Iterable[Mapping[str, np.ndarray]],
    probes: Mapping[str, Probe],
    outputs: Sequence[str] = (),
) -> Iterator[list[np.ndarray]]:
    """What the *probes* of tensors give for each of *samples*, in order, and after that the graph's own *outputs*."""
    runner = session(_probed(graph, probes, outputs), graph.constants)
    wanted = [value.name for probe in probes.values() for value in probe.outputs]
    for sample in samples:
        with runtime_errors("calibration run"):
            results = runner.run([*wanted, *outputs], dict(sample))
        yield results


def _probed(graph: Graph, probes: Mapping[str, Probe], outputs: Sequence[str]) -> onnx.ModelProto:
    """*graph* with *probes* on its tensors, whose results are its outputs; of its own outputs it keeps *outputs*.

    The probes' nodes stand right behind the node that makes the tensor, so that it can be freed as early as without them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = [node for spec in graph.inputs if spec.name in probes for node in probes[spec.name].nodes]
    for node in graph.model.graph.node:
        nodes.append(node)
        nodes += [added for name in node.output if name in probes for added in probes[name].nodes]
    kept = [value for value in graph.model.graph.output if value.name in outputs]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(kept)
    constants: dict[str, np.ndarray] = {}
    for probe in probes.values():
        model.graph.output.extend(probe.outputs)
        constants |= probe.constants
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model
