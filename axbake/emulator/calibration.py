"""The ranges that activations are encoded to: `quant.calibration_method`.

Pulsar2's documentation names the methods and says no more. Its record of a quantisation, `quant_axmodel.json`, and its log
have the fields, states and words of OpenPPL's PPQ (`ACTIVATED`, `OVERLAPPED`, `dominator`, «Calibration Progress(Phase 1)»),
so the observers of PPQ are followed here (OpenPPL/ppq, `ppq/quantization/observer/range.py`):

- MinMax: the smallest and the largest value of all samples.
- Percentile: of each sample the value that all but 1 in 10,000 are below, and the one that all but as many are above; of both
  the mean over all samples.
- MSE: of the ranges that begin at every eighth bin of a histogram of 2048 bins, over all samples, and end after a multiple of
  256 bins, the one with the least squared error in 8 bits. The histogram spans 0, as an encoding does. In 16 bits, which are
  finer than the histogram, the range is that of MinMax.

PPQ's KL is for symmetric encodings, and activations are not encoded so; it is not emulated.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from axbake.emulator.encoding import INTEGERS, is_extreme
from axbake.emulator.graph import Graph, GraphError, opset, shapes
from axbake.emulator.precision import Precision
from axbake.emulator.ranges import Probe, bounds_of, float_activations, measured, record_ranges, sources

Span = tuple[float, float]  # smallest and largest value
Samples = Iterable[Mapping[str, np.ndarray]]

SHARE = 0.9999  # of a sample's values, that Percentile leaves below
BINS, LEVELS, STRIDE = 2048, 256, 8  # of MSE: of the histogram, of 8 bits, between two beginnings of a range
HISTOGRAM_OPSET = 16  # the first whose ScatterElements adds


@dataclass(frozen=True)
class Calibration:
    """Ranges of tensors: what was observed, and what a method made narrower."""

    observed: Mapping[str, Span]
    clipped: Mapping[tuple[str, int], Span] = field(default_factory=dict)  # by tensor and bits

    def span(self, name: str, data_type: str) -> Span:
        """The range of tensor *name* to be encoded as *data_type*."""
        return self.clipped.get((name, 8 * INTEGERS[data_type].itemsize), self.observed[name])


def calibrate(
    graph: Graph,
    method: str,
    samples: Callable[[], Samples],
    precision: tuple[Precision, ...],
    on_sample: Callable[[int, int], None],
) -> Calibration:
    """Run *graph* on all *samples*, once or twice, and find the range of each float activation.

    Args:
        method: MinMax, Percentile or MSE.
        precision: of each node: MSE looks a second time at what is encoded in 8 bits, if anything is.
        on_sample: gets the number of the pass, 1 or 2, and of the samples that are done in it.
    """
    match method:
        case "Percentile":
            return _percentile(graph, samples(), lambda done: on_sample(1, done))
        case "MSE":
            observed = record_ranges(graph, samples(), on_sample=lambda done: on_sample(1, done)).overall()
            narrow = _eight_bits(graph, precision)
            return _least_squares(graph, samples(), observed, narrow, lambda done: on_sample(2, done))
        case _:
            return Calibration(record_ranges(graph, samples(), on_sample=lambda done: on_sample(1, done)).overall())


def _percentile(graph: Graph, samples: Samples, on_sample: Callable[[int], None]) -> Calibration:
    names, same = float_activations(graph), sources(graph)
    elements = _elements(graph)
    seen = list(dict.fromkeys(same.get(name, name) for name in names))
    probes = {name: _tails_of(name, elements[name]) for name in seen}
    found = []
    for results in measured(graph, samples, probes):
        found.append(np.array(results, np.float32))
        on_sample(len(found))
    table = np.array(found, np.float64).reshape(len(found), len(seen), 4)
    low, high = table[:, :, 0].min(axis=0), table[:, :, 1].max(axis=0)
    mean = table[:, :, 2:].mean(axis=0)
    places = {name: place for place, name in enumerate(seen)}
    columns = {name: places[same.get(name, name)] for name in names}
    observed = {name: (float(low[i]), float(high[i])) for name, i in columns.items()}
    clipped = {name: (float(mean[i, 0]), float(mean[i, 1])) for name, i in columns.items()}
    # Of a tensor that is nearly always 0 both percentiles are 0; it keeps what was observed, as one with NaN does.
    narrowed = {name: span for name, span in clipped.items() if _has_width(span) and np.isfinite(observed[name]).all()}
    return Calibration(observed, {(name, bits): span for name, span in narrowed.items() for bits in (8, 16)})


def _has_width(span: Span) -> bool:
    """Whether *span*, extended to 0, holds more than 0; of NaN it does not."""
    return min(span[0], 0.0) < max(span[1], 0.0)


def _elements(graph: Graph) -> dict[str, int]:
    """How many values each float activation has."""
    known = shapes(graph)
    loose = [name for name in float_activations(graph) if not all(known.get(name, (0,)))]
    if loose:
        raise GraphError(
            f"{loose[0]}: its shape cannot be inferred, and calibration_method Percentile counts its values; simplify the "
            "model where it is exported, or use another method"
        )
    return {name: int(np.prod(shape, dtype=np.int64)) for name, shape in known.items()}


def _tails_of(name: str, elements: int) -> Probe:
    """Of tensor *name* the bounds, and the values that `SHARE` of its *elements* are above, and below."""
    bounds = bounds_of(name)
    nodes, outputs = [*bounds.nodes], [*bounds.outputs]
    nodes.append(helper.make_node("Flatten", [name], [f"{name}/flat"], axis=0))
    # The k-th smallest and the k-th largest value, as PPQ counts them.
    below, above = int(elements * (1 - SHARE)) + 1, elements - min(int(elements * SHARE), elements - 1)
    for kind, count, largest in (("Max", below, 0), ("Min", above, 1)):
        values = f"{name}/{'most' if largest else 'least'}"
        taken = [f"{values}/values", f"{values}/places"]
        nodes.append(helper.make_node("TopK", [f"{name}/flat", f"first/{count}"], taken, largest=largest, sorted=0))
        nodes.append(helper.make_node(f"Reduce{kind}", taken[:1], [values], keepdims=0))
        outputs.append(helper.make_tensor_value_info(values, TensorProto.FLOAT, []))
    constants = {f"first/{count}": np.array([count], np.int64) for count in (below, above)}
    return Probe(tuple(nodes), tuple(outputs), constants)


def _eight_bits(graph: Graph, precision: tuple[Precision, ...]) -> set[str]:
    """Tensors that a node takes or gives in 8 bits."""
    found: set[str] = set()
    for node, types in zip(graph.nodes, precision, strict=True):
        found |= {*node.input} if types.data_type in ("U8", "S8") else set()
        found |= {*node.output} if types.output_data_type in ("U8", "S8") else set()
    return found


def _least_squares(
    graph: Graph,
    samples: Samples,
    observed: Mapping[str, Span],
    narrow: set[str],
    on_sample: Callable[[int], None],
) -> Calibration:
    if opset(graph) < HISTOGRAM_OPSET:
        raise GraphError(
            f"calibration_method MSE: the model is of opset {opset(graph)}, wanted {HISTOGRAM_OPSET} or later; export it again"
        )
    same = sources(graph)
    seen = {same.get(name, name) for name in narrow}
    spans = {
        name: (min(low, 0.0), max(high, 0.0))
        for name, (low, high) in observed.items()
        if name in seen and not is_extreme(low, high) and _has_width((low, high))
    }
    if not spans:
        return Calibration(observed)
    totals = {name: np.zeros(BINS, np.int64) for name in spans}
    probes = {name: _histogram_of(name, span) for name, span in spans.items()}
    for done, results in enumerate(measured(graph, samples, probes), 1):
        for name, counts in zip(spans, results, strict=True):
            totals[name] += counts[0]
        on_sample(done)
    best = {name: least_error(totals[name], *span) for name, span in spans.items()}
    return Calibration(
        observed, {(name, 8): best[same.get(name, name)] for name in observed if same.get(name, name) in best}
    )


def _histogram_of(name: str, span: Span) -> Probe:
    """How many values of tensor *name* fall into each of `BINS` equal parts of *span*."""
    own, low, width = f"{name}/histogram", np.float32(span[0]), np.float32((span[1] - span[0]) / BINS)
    steps = [
        ("Flatten", [name], {"axis": 0}),
        ("Sub", [f"{own}/0", f"{own}/low"], {}),
        ("Div", [f"{own}/1", f"{own}/width"], {}),
        ("Clip", [f"{own}/2", "bin/0", "bin/last"], {}),
        ("Cast", [f"{own}/3"], {"to": TensorProto.INT64}),
        ("Equal", [f"{own}/4", f"{own}/4"], {}),  # a one for each value
        ("Cast", [f"{own}/5"], {"to": TensorProto.INT32}),
        ("ScatterElements", ["bin/counts", f"{own}/4", f"{own}/6"], {"axis": 1, "reduction": "add"}),
    ]
    nodes = [
        helper.make_node(kind, inputs, [f"{own}/{place}"], **attributes)
        for place, (kind, inputs, attributes) in enumerate(steps)
    ]
    constants: dict[str, np.ndarray] = {
        f"{own}/low": np.array(low),
        f"{own}/width": np.array(max(width, np.finfo(np.float32).tiny)),
        "bin/0": np.array(0, np.float32),
        "bin/last": np.array(BINS - 1, np.float32),
        "bin/counts": np.zeros((1, BINS), np.int32),
    }
    output = helper.make_tensor_value_info(f"{own}/7", TensorProto.INT32, [1, BINS])
    return Probe(tuple(nodes), (output,), constants)


def least_error(histogram: np.ndarray, low: float, high: float) -> Span:
    """The range of least squared error in 8 bits, for values whose *histogram* (`BINS`,) spans [*low*, *high*] and 0.

    A range begins at a bin, and its `LEVELS` steps are whole bins wide. A value's error is then its distance from the nearest
    step, or from the range, in bins.
    """
    width, places = (high - low) / BINS, np.arange(BINS)
    counts = histogram.astype(np.float64)
    starts = np.arange(0, BINS, STRIDE)
    starts = starts[starts * width + low <= 0]
    moments = [_sums(counts * places**power) for power in range(3)]
    best = (np.inf, 0, BINS)
    for step in range(1, BINS // LEVELS + 1):
        start = starts[starts + LEVELS * step <= BINS + LEVELS]
        end = start + LEVELS * step
        last = np.minimum(end, BINS - 1) + 1
        inside = np.array([_sums(counts * _rounding((places - shift) % step, step) ** 2) for shift in range(step)])
        error = inside[start % step, last] - inside[start % step, start]
        error += _squares([sums[start] for sums in moments], start - 0.5)
        error += _squares([sums[-1] - sums[last] for sums in moments], end - 0.5)
        least = int(error.argmin())
        best = min(best, (float(error[least]), int(start[least]), int(end[least])))
    _, first, beyond = best
    return first * width + low, beyond * width + low


def _sums(values: np.ndarray) -> np.ndarray:
    """Sum of the first n of *values*, for n from 0."""
    return np.concatenate(([0.0], np.cumsum(values)))


def _squares(moments: list[np.ndarray], center: np.ndarray) -> np.ndarray:
    """Sum of (place - center)² over values of which the sums of 1, place and place² are *moments*."""
    return moments[2] - 2 * center * moments[1] + center**2 * moments[0]


def _rounding(places: np.ndarray, step: int) -> np.ndarray:
    """Mean distance of bin number *places* of a step of *step* bins from the nearer end of the step, in bins."""
    others = step - places - 1
    return np.where(places == others, places + 0.25, np.minimum(places, others) + 0.5)
