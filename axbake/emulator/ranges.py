"""The observer: smallest and largest value of each float tensor, for each calibration sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

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
    sources = _sources(graph)
    observed = list(dict.fromkeys(sources.get(name, name) for name in names))
    outputs = [spec.name for spec in graph.outputs] if on_outputs else []
    runner = session(_observed(graph, observed, outputs), graph.constants)
    wanted = [f"{name}/{bound}" for bound in ("Min", "Max") for name in observed]
    bounds: list[np.ndarray] = []
    for sample in samples:
        with runtime_errors("calibration run"):
            results = runner.run(wanted + outputs, dict(sample))
        bounds.append(np.array(results[: len(wanted)], np.float32))
        if on_outputs:
            on_outputs(dict(zip(outputs, results[len(wanted) :], strict=True)))
        on_sample(len(bounds))
    table = np.array(bounds, np.float32).reshape(len(bounds), 2, len(observed))
    places = {name: place for place, name in enumerate(observed)}
    columns = [places[sources.get(name, name)] for name in names]
    return Ranges(names, table[:, 0, columns], table[:, 1, columns])


def _sources(graph: Graph) -> dict[str, str]:
    """For each tensor that only reorders another's values: that other one."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in REORDERS and node.input[0] not in graph.constants:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


def _observed(graph: Graph, names: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """*graph* with *outputs*, which are its own, and the ReduceMin and ReduceMax of each of *names* as its outputs.

    They stand right behind the node that makes the tensor, so that it can be freed as early as without them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    wanted = set(names)
    nodes = [node for spec in graph.inputs if spec.name in wanted for node in _bounds(spec.name)]
    for node in graph.model.graph.node:
        nodes.append(node)
        nodes += [bound for name in node.output if name in wanted for bound in _bounds(name)]
    kept = [value for value in graph.model.graph.output if value.name in outputs]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(kept)
    for bound in ("Min", "Max"):
        model.graph.output.extend(
            helper.make_tensor_value_info(f"{name}/{bound}", TensorProto.FLOAT, []) for name in names
        )
    return model


def _bounds(name: str) -> list[onnx.NodeProto]:
    """Without axes both reduce to a scalar, in every opset."""
    return [helper.make_node(f"Reduce{bound}", [name], [f"{name}/{bound}"], keepdims=0) for bound in ("Min", "Max")]
