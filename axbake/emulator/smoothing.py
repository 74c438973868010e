"""SmoothQuant: outliers among an activation's channels are moved into the weights that read it.

The method is that of Xiao et al. 2022 (arXiv:2211.10438), to which Pulsar2's documentation refers
(AXERA-TECH/pulsar2-docs-en, `appendix/precision_debug_guides.md`): where linear layers read an activation X, channel j of it is
divided by

    s_j = max|X_j| ^ strength / max|W_j| ^ (1 - strength)

and row j of their weights multiplied by it; in float nothing changes. The division is made in the constants of what computes X:
a normalisation's affine, a linear layer, a Mul or Add with a constant, also behind a Relu. An activation of which that is not
possible, or which something else reads too, stays as it is.

The documentation says of `smooth_quant_threshold` that a larger one involves more operators, and that it is between 0 and 1. Here
an activation is involved whose median channel reaches at most that share of its largest value.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, helper

from axbake.emulator.config import Smoothing
from axbake.emulator.encoding import EXTREMUM
from axbake.emulator.graph import Graph, opset, shapes, with_constants
from axbake.emulator.precision import Precision
from axbake.emulator.ranges import Probe, measured
from axbake.emulator.roles import attribute, consumers, linear

LEAST = 1e-5  # of max|W_j| and of s_j, as in the authors' own code (mit-han-lab/smoothquant)
AXES_ARE_INPUTS = 18  # opset, of ReduceMax

HOMOGENEOUS = {"Relu", "LeakyRelu", "Identity"}  # f(x / s) = f(x) / s for s > 0


@dataclass(frozen=True)
class Place:
    """Input *position* of node *index*, a constant."""

    index: int
    position: int


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads an activation: where its weights are, and which of their axes is the activation's channels."""

    weight: Place
    axis: int


@dataclass(frozen=True)
class Smoothable:
    """An activation whose channels can be scaled: the constants to divide, and the weights to multiply, by channel."""

    name: str
    axis: int  # of its channels
    divided: tuple[tuple[Place, tuple[int, ...]], ...]  # with the shape in which the factors divide them
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class Smoothed:
    """A graph after smoothing, and what was done to which activation, for the record."""

    graph: Graph
    tensors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def smooth(
    graph: Graph,
    samples: Iterable[Mapping[str, np.ndarray]],
    precision: tuple[Precision, ...],
    said: Smoothing,
    on_sample: Callable[[int], None] = lambda done: None,
) -> Smoothed:
    """*graph* with the outliers of its activations, over *samples*, in its weights. Its nodes and their order stay.

    The weights that are scaled are copied, in float32.
    """
    found = [entry for entry in _smoothable(graph) if _is_quantised(entry, precision)]
    if not found:
        return Smoothed(graph)
    largest = _channel_maxima(graph, samples, found, on_sample)
    constants: dict[Place, np.ndarray] = {}
    tensors = {}

    def current(place: Place) -> np.ndarray:
        return constants.get(place, graph.constants[graph.nodes[place.index].input[place.position]])

    for entry in found:
        channels = largest[entry.name]
        if not _has_outliers(channels, said.threshold):
            continue
        factors = smoothing_factors(
            channels, [_by_channel(current(r.weight), r.axis) for r in entry.readers], said.strength
        )
        for place, shape in entry.divided:
            constants[place] = (current(place) / factors.reshape(shape)).astype(np.float32)
        for reader in entry.readers:
            values = current(reader.weight)
            shape = tuple(-1 if axis == reader.axis else 1 for axis in range(values.ndim))
            constants[reader.weight] = (values * factors.reshape(shape)).astype(np.float32)
        tensors[entry.name] = {"largest": float(channels.max()), "largest_after": float((channels / factors).max())}
    replaced = {(place.index, place.position): values for place, values in constants.items()}
    return Smoothed(with_constants(graph, replaced) if replaced else graph, tensors)


def smoothing_factors(channels: np.ndarray, weights: list[np.ndarray], strength: float) -> np.ndarray:
    """What each of C channels is divided by: (C,) float64. A channel that is always 0 keeps factor 1.

    Args:
        channels: (C,) largest absolute values of the activation.
        weights: (C,) each, of the weights that read it.
    """
    rows = np.maximum(np.max(weights, axis=0).astype(np.float64), LEAST)
    factors = np.maximum(channels.astype(np.float64) ** strength / rows ** (1 - strength), LEAST)
    return np.where(channels > 0, factors, 1.0)


def _has_outliers(channels: np.ndarray, threshold: float) -> bool:
    largest = channels.max()
    if not 0 < largest < EXTREMUM:  # nor NaN
        return False
    return bool(np.median(channels[channels > 0]) <= threshold * largest)


def _by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """Largest absolute value of each channel along *axis*."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    return np.maximum(values.max(axis=others), -values.min(axis=others))


def _is_quantised(entry: Smoothable, precision: tuple[Precision, ...]) -> bool:
    """Whether a layer that reads it computes in integers."""
    types = (precision[reader.weight.index] for reader in entry.readers)
    return any(kind.data_type != "FP32" and kind.weight_data_type != "FP32" for kind in types)


def _channel_maxima(
    graph: Graph,
    samples: Iterable[Mapping[str, np.ndarray]],
    entries: list[Smoothable],
    on_sample: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """(C,) float32 for each of *entries*: the largest absolute value of each channel, over all samples."""
    known = shapes(graph)
    probes = {entry.name: _probe(graph, entry, known[entry.name]) for entry in entries}
    largest: list[np.ndarray] = []
    for done, results in enumerate(measured(graph, samples, probes), 1):
        largest = [np.maximum(*pair) for pair in zip(largest, results, strict=True)] if largest else results
        on_sample(done)
    return dict(zip(probes, largest, strict=True))


def _probe(graph: Graph, entry: Smoothable, shape: tuple[int, ...]) -> Probe:
    own, others = f"{entry.name}/channels", [axis for axis in range(len(shape)) if axis != entry.axis]
    absolute = helper.make_node("Abs", [entry.name], [f"{own}/all"])
    if opset(graph) < AXES_ARE_INPUTS:
        reduced = helper.make_node("ReduceMax", [f"{own}/all"], [own], axes=others, keepdims=0)
        constants: dict[str, np.ndarray] = {}
    else:
        reduced = helper.make_node("ReduceMax", [f"{own}/all", f"{own}/axes"], [own], keepdims=0)
        constants = {f"{own}/axes": np.array(others, np.int64)}
    output = helper.make_tensor_value_info(own, TensorProto.FLOAT, [shape[entry.axis]])
    return Probe((absolute, reduced), (output,), constants)


def _smoothable(graph: Graph) -> list[Smoothable]:
    """The activations that can be smoothed, in the order in which they are made."""
    readers, known = consumers(graph), shapes(graph)
    makers = {name: index for index, node in enumerate(graph.nodes) for name in node.output}
    found = []
    for node in graph.nodes:
        for name in node.output:
            if graph.types.get(name) != TensorProto.FLOAT or not readers.get(name) or not all(known.get(name, (0,))):
                continue
            uses = [_reader(graph, index, name, len(known[name])) for index in dict.fromkeys(readers[name])]
            axes = {use[1] for use in uses if use}
            if None in uses or len(axes) != 1:
                continue
            axis = axes.pop()
            divided = _divided(graph, makers, readers, name, axis, known[name])
            if divided:
                found.append(Smoothable(name, axis, tuple(divided), tuple(use[0] for use in uses if use)))
    return found


def _reader(graph: Graph, index: int, name: str, rank: int) -> tuple[Reader, int] | None:
    """Node *index* as a linear layer that reads the activation *name*, and the axis of its channels; None if it is none."""
    if index < 0:
        return None
    node = graph.nodes[index]
    use = linear(node, graph.constants)
    if use is None or use.weight != 1 or list(node.input).count(name) != 1 or node.input[use.data] != name:
        return None
    weight, grouped = Place(index, 1), attribute(node, "group", 1) != 1
    match node.op_type:
        case "Conv" if not grouped:
            return Reader(weight, 1), 1
        case "ConvTranspose" if not grouped:
            return Reader(weight, 0), 1
        case "MatMul" if graph.constants[node.input[1]].ndim == 2:
            return Reader(weight, 0), rank - 1
        case "Gemm" if not attribute(node, "transA", 0):
            return Reader(weight, 1 if attribute(node, "transB", 0) else 0), rank - 1
    return None


def _divided(
    graph: Graph,
    makers: Mapping[str, int],
    readers: Mapping[str, list[int]],
    name: str,
    axis: int,
    shape: tuple[int, ...],
) -> list[tuple[Place, tuple[int, ...]]]:
    """The constants whose division by channel divides tensor *name* along *axis*; none where that is not possible."""
    index = makers.get(name)
    if index is None:
        return []
    node, last = graph.nodes[index], axis == len(shape) - 1
    along = (-1, *(1 for _ in shape[axis + 1 :]))  # factors along the axis, the others broadcast

    def behind(operand: str) -> list[tuple[Place, tuple[int, ...]]]:
        alone = len(set(readers.get(operand, ()))) == 1 and list(node.input).count(operand) == 1
        return _divided(graph, makers, readers, operand, axis, shape) if alone else []

    match node.op_type:
        case kind if kind in HOMOGENEOUS:
            return behind(node.input[0])
        case "LayerNormalization" | "RMSNormalization" if last and attribute(node, "axis", -1) in (-1, axis):
            return _constants(graph, index, [place for place in (1, 2) if place < len(node.input)], (-1,))
        case "InstanceNormalization" | "BatchNormalization" if axis == 1:
            return _constants(graph, index, [1, 2], (-1,))
        case "Mul" | "Add":
            constant = [place for place in (0, 1) if _is_float(graph, node.input[place])]
            if len(constant) != 1:
                return []
            own = _constants(graph, index, constant, along)
            if node.op_type == "Mul":
                return own
            rest = behind(node.input[1 - constant[0]])
            return own + rest if rest else []
    return _divided_linear(graph, index, node, axis, last)


def _divided_linear(
    graph: Graph, index: int, node: NodeProto, axis: int, last: bool
) -> list[tuple[Place, tuple[int, ...]]]:
    """The same of the weights and bias of a linear layer, by its output channels."""
    use = linear(node, graph.constants)
    if use is None or use.weight != 1 or (node.op_type == "ConvTranspose" and use.groups != 1):
        return []
    if not last if use.channels_last else axis != 1:
        return []
    weight = graph.constants[node.input[1]]
    own = [(Place(index, 1), tuple(-1 if place == use.axis else 1 for place in range(weight.ndim)))]
    has_bias = use.bias is not None and len(node.input) > use.bias and node.input[use.bias]
    bias = _constants(graph, index, [use.bias], (-1,)) if has_bias and use.bias is not None else []
    return own + bias if bias or not has_bias else []


def _is_float(graph: Graph, name: str) -> bool:
    return name in graph.constants and graph.types.get(name) == TensorProto.FLOAT


def _constants(
    graph: Graph, index: int, positions: list[int], shape: tuple[int, ...]
) -> list[tuple[Place, tuple[int, ...]]]:
    """These inputs of node *index*, if all are float constants."""
    names = [graph.nodes[index].input[position] for position in positions]
    if not all(_is_float(graph, name) for name in names if name):
        return []
    return [(Place(index, position), shape) for position, name in zip(positions, names, strict=True) if name]
