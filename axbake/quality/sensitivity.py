"""What each layer's rounding costs what a network is for, of all layers at once.

A small error e of what a layer reads changes the output by J e, J being the derivative of the output by it. For a direction v,
random and normal, v · J e has the variance |J e|²; and v J comes from one pass backwards, for all layers of the network. So what
takes a run of the network for each layer and each precision takes here, for each sample, two runs forwards, one of the layers
with weights, and one backwards a direction, however many layers there are. Over N directions the estimate of one layer's noise
has a standard deviation of √(2 / N) of it: 0.8 dB for 64. Those of sums over many layers are better.

It holds for errors that are small enough to act linearly, and adds the powers of different tensors' errors as if they were
independent. Values that leave the calibrated range are not part of it: what clipping costs is the same in every precision of
integers, and comes from the samples of the calibration. `axbake.quality.recipe` adds it, as the whole in 16 bits has it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from axbake.emulator.encoding import Encoding, encode_range, quantise_weight, weight_scales, widened_scales
from axbake.quality.network import OUTPUT, Network, Reading, Span
from axbake.quality.operators import Value
from axbake.quality.passes import Feed, Gradients, Passes

TYPES = ("U8", "U16")


@dataclass
class Rounded:
    """A tensor or constant, who reads it, and what its rounding for them costs.

    A noise is a power: the expected sum of squares of the error over the output's elements. `noise[kind]` is a matrix over
    the readers: its diagonal is of one reader alone, the sum of all is of all together.
    """

    name: str
    maker: int | None  # layer; None: an input of the network, or a constant
    is_constant: bool
    elements: int
    readers: list[int] = field(default_factory=list)  # layers, or OUTPUT
    noise: dict[str, np.ndarray] = field(default_factory=dict)  # by type
    clipped: float = 0.0  # share of its values, on the samples, that leave the calibrated range
    peak: float = 0.0  # largest absolute value over the median one, on the first sample


@dataclass(frozen=True)
class Sensitivity:
    """Each tensor's noises, and by layer the noise of its weights where its data are of each type."""

    tensors: list[Rounded]
    weights: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Samples:
    """Inputs of a network, and the directions in which errors of its outputs count.

    Attributes:
        feeds: N inputs, by name.
        directions: (N, K, E): of each, K directions over the E elements of all outputs.
        steps: (N,): errors of samples of one step, which are its branches of guidance, are summed before they are squared.
        weights: by step, how many steps of the drawing it stands for; one that is not named, for itself.
    """

    feeds: Sequence[Feed]
    directions: np.ndarray
    steps: Sequence[int]
    weights: Mapping[int, float] = field(default_factory=dict)


def measure(
    network: Network,
    spans: Mapping[str, Span],
    samples: Samples,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Measure what the rounding of each tensor for each of its readers, and of each layer's weights, costs.

    Args:
        spans: calibrated range of each float activation, by the network's names.
        samples: held out of the calibration.
        tell: gets how many parts of samples are done, and of how many.

    Raises:
        NoGradient: an operator is unknown to `axbake.quality.operators`.
    """
    return _Measurement(network, spans, samples).run(tell)


class _Measurement:
    def __init__(self, network: Network, spans: Mapping[str, Span], samples: Samples) -> None:
        self.network, self.spans, self.samples = network, spans, samples
        self.passes = Passes(network)
        self.readings: dict[int, list[Reading]] = {}
        self.tensors: dict[str, Rounded] = {}
        self.rows: dict[
            tuple[int, int], tuple[str, int]
        ] = {}  # reader and position -> tensor, and which of its readers
        for reading in network.readings(spans):
            self._note(reading)
        self.encodings = {(name, kind): self._encoding(name, kind) for name in self.tensors for kind in TYPES}
        self.shape = samples.directions.shape[:2]
        self.products = {
            name: {kind: np.zeros((len(entry.readers), *self.shape)) for kind in TYPES}
            for name, entry in self.tensors.items()
        }
        self.of_weights: dict[int, dict[str, np.ndarray]] = {}

    def run(self, tell: Callable[[int, int], None]) -> Sensitivity:
        feeds, parts = self.samples.feeds, self.passes.parts
        done, total = 0, len(feeds) * (len(parts) + 1)
        kept = []
        for feed in feeds:
            kept.append(self.passes.forward(feed)[0])
            done += 1
            tell(done, total)
        gradients: list[Gradients] = [[{} for _ in range(self.shape[1])] for _ in feeds]
        for part in reversed(parts):
            deltas = {index: delta for index in part if (delta := self._weight_errors(index))}
            for sample, (of_sample, into) in enumerate(zip(kept, gradients, strict=True)):
                inside = self.passes.backward(
                    part, of_sample, into, self.samples.directions[sample], self.readings, deltas
                )
                for place, (value, derivatives) in inside.read.items():
                    root, row = self.rows[place]
                    errors = self._errors(root, row, value, first=sample == 0)
                    for kind, error in errors.items():
                        self.products[root][kind][row, sample] = _products(derivatives, error)
                for index, (inputs, derivatives) in inside.linear.items():
                    found = self.of_weights.setdefault(index, {kind: np.zeros(self.shape) for kind in TYPES})
                    for kind, error in self._linear_errors(index, inputs, deltas[index]).items():
                        found[kind][sample] = _products(derivatives, error)
                done += 1
                tell(done, total)
        still = self._still()
        for name, entry in self.tensors.items():
            entry.noise = {kind: self._noise(one, same=name in still) for kind, one in self.products[name].items()}
        weights: dict[int, dict[str, float]] = {}
        for index, by_type in self.of_weights.items():
            weights[self.network.layer_of[index]] = {
                kind: float(self._noise(one[None], same=True)[0, 0]) for kind, one in by_type.items()
            }
        return Sensitivity(list(self.tensors.values()), weights)

    def _noise(self, products: np.ndarray, *, same: bool) -> np.ndarray:
        """(R, R) of R readers' (R, N, K) products.

        Args:
            same: whether the error is the same in each step, so that those of different steps add up before they are squared.
        """
        steps = sorted(set(self.samples.steps))
        weights = np.array([self.samples.weights.get(step, 1.0) for step in steps])
        summed = self._by_step(products)
        power = np.einsum("s,rsk,tsk->rt", weights, summed, summed)
        if same:
            weighted = summed * weights[:, None]
            every = weighted.sum(axis=1)
            added = power + every @ every.T - np.einsum("rsk,tsk->rt", weighted, weighted)
            power = added if added.diagonal().min() >= 0 else power  # few steps can seem to cancel more than there is
        return power / self.shape[1]

    def _still(self) -> set[str]:
        """Tensors that are the same in each step: what comes of the prompt alone."""
        samples, network = self.samples, self.network
        of_step = [
            [feed for feed, one in zip(samples.feeds, samples.steps, strict=True) if one == step]
            for step in sorted(set(samples.steps))
        ]
        still = {
            name
            for name in network.inputs
            if all(
                np.array_equal(one[name], of_step[0][branch][name])
                for feeds in of_step
                for branch, one in enumerate(feeds[: len(of_step[0])])
            )
        }
        for node in network.nodes:
            read = [name for name in node.inputs if name and name not in network.constants]
            if read and still.issuperset(read):
                still.update(node.outputs)
        return still

    def _by_step(self, products: np.ndarray) -> np.ndarray:
        """(R, S, K): sums of the (R, N, K) *products* of each step's samples."""
        steps = sorted(set(self.samples.steps))
        of_step = np.array([[one == step for one in self.samples.steps] for step in steps], np.float64)
        return np.einsum("sn,rnk->rsk", of_step, products)

    def _note(self, reading: Reading) -> None:
        network, root = self.network, reading.root
        if root not in self.tensors:
            maker = network.makers.get(root)
            layer = None if maker is None else network.layer_of.get(maker)
            self.tensors[root] = Rounded(root, layer, root in network.constants, network.sizes[root])
        entry = self.tensors[root]
        self.rows[reading.node, reading.position] = (root, len(entry.readers))
        entry.readers.append(OUTPUT if reading.node == OUTPUT else network.layer_of[reading.node])
        self.readings.setdefault(reading.node, []).append(reading)

    def _encoding(self, name: str, kind: str) -> Encoding:
        if name in self.network.constants:
            values = self.network.constants[name]
            return encode_range(float(values.min()), float(values.max()), kind)
        return encode_range(*self.spans[name], kind)

    def _errors(self, root: str, row: int, value: torch.Tensor, *, first: bool) -> dict[str, torch.Tensor]:
        """What rounding changes *value* by, in each type; what leaves the range counts as if the range were wider."""
        entry, found = self.tensors[root], {}
        for kind in TYPES:
            scale = self.encodings[root, kind].scale
            found[kind] = torch.round(value / scale).mul_(scale).sub_(value)
        if not entry.is_constant and row == 0:
            span = self.encodings[root, "U8"]
            outside = (value < min(span.low, 0.0)) | (value > max(span.high, 0.0))
            entry.clipped += float(outside.float().mean()) / len(self.samples.feeds)
            if first:
                sizes = value.abs().reshape(-1)
                entry.peak = float(sizes.max() / sizes.median().clamp_min(1e-30))
        return found

    def _weight_errors(self, index: int) -> dict[str, torch.Tensor]:
        """What rounding changes the weights of node *index* by, where its data are of each type; {} of a node without."""
        node = self.network.nodes[index]
        if not node.use:
            return {}
        weight = np.asarray(self.network.constants[node.inputs[node.use.weight]])
        narrow = weight_scales(weight, node.use.axis)
        bias, data = self.network.bias_of(index), self.network.root(node.inputs[node.use.data])
        scales = dict.fromkeys(TYPES, narrow)
        if bias is not None and bias.size == narrow.size * node.use.groups:
            shares = np.abs(bias.reshape(node.use.groups, -1)).max(axis=0)
            for kind in TYPES:
                factor = (
                    self.encodings[data, kind].scale * node.use.bias_factor if (data, kind) in self.encodings else 0.0
                )
                scales[kind] = widened_scales(narrow, shares, factor) if factor > 0 else narrow
        shape = [-1 if axis == node.use.axis else 1 for axis in range(weight.ndim)]
        found: dict[str, torch.Tensor] = {}
        for kind in TYPES:
            same = next((other for other in found if np.array_equal(scales[other], scales[kind])), None)
            if same:
                found[kind] = found[same]
            else:
                rounded = quantise_weight(weight, scales[kind], node.use.axis) * scales[kind].reshape(shape)
                found[kind] = torch.from_numpy((rounded - weight).astype(np.float32))
        return found

    def _linear_errors(
        self, index: int, inputs: Sequence[Value], deltas: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the errors of a node's weights change its result by."""
        use = self.network.nodes[index].use
        assert use
        found: dict[str, torch.Tensor] = {}
        for kind, delta in deltas.items():
            same = next((other for other in found if deltas[other] is delta), None)
            if same:
                found[kind] = found[same]
                continue
            given = list(inputs)
            given[use.weight] = delta
            if use.bias is not None and len(given) > use.bias:
                given[use.bias] = None
            with torch.no_grad():
                result = self.passes.run(index, given)[0]
            assert isinstance(result, torch.Tensor)
            found[kind] = result
        return found


def _products(derivatives: torch.Tensor, error: torch.Tensor) -> np.ndarray:
    """(K,) float64: what an error changes the output by, in each of K directions."""
    return (derivatives @ error.reshape(-1)).double().numpy()
