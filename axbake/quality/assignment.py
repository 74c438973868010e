"""What an assignment of types to layers costs and saves, by what was measured of each layer (`axbake.quality.sensitivity`).

A tensor is rounded where it is made, to the widest type among those who read it, and anew for a reader of fewer bits
(`axbake.emulator.precision`). A reader in float reads it as it was made. What is made in float is rounded by who reads it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from axbake.distance import IDENTICAL

NARROW, WIDE, FLOAT = "U8", "U16", "FP32"
OUTPUT = -1


@dataclass(frozen=True)
class Layer:
    """A layer of a component."""

    graph: str  # address of its graph
    names: tuple[str, ...]  # of its nodes
    operator: str  # of the first of them
    multiplications: int
    weights: Mapping[str, float]  # by type: noise of its weights' rounding; {} without weights

    @property
    def may_be_float(self) -> bool:
        """Whether it can compute in FP32: the NPU multiplies matrices and kernels of integers only."""
        return not self.multiplications


@dataclass(frozen=True)
class Tensor:
    """A tensor, and the noise of its rounding (`axbake.quality.sensitivity.Rounded`)."""

    name: str
    maker: int | None  # layer; None: an input of the network, or a constant
    is_constant: bool
    elements: int
    readers: tuple[int, ...]  # layers, or `OUTPUT`
    noise: Mapping[str, np.ndarray]  # by type: (R, R) over the readers
    clipped: float = 0.0
    peak: float = 0.0


Types = Sequence[str]  # one a layer


@dataclass
class Model:
    """A component's layers and tensors, and the power of its output."""

    signal: float
    layers: Sequence[Layer]
    tensors: Sequence[Tensor]
    _by_layer: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, tensor in enumerate(self.tensors):
            for layer in {*tensor.readers, tensor.maker} - {OUTPUT, None}:
                self._by_layer.setdefault(int(layer), []).append(place)  # type: ignore[arg-type]

    def around(self, layers: Sequence[int]) -> set[int]:
        """Tensors that *layers* make or read."""
        return {tensor for layer in layers for tensor in self._by_layer.get(layer, ())}

    def noise_of(self, place: int, types: Types) -> float:
        """What the rounding of one tensor costs."""
        tensor = self.tensors[place]
        chosen = list(self._rounded_as(tensor, types))
        total = 0.0
        for kind in (NARROW, WIDE):
            rows = [row for row, one in enumerate(chosen) if one == kind]
            if rows:
                total += float(tensor.noise[kind][np.ix_(rows, rows)].sum())
        return total

    def conversions_of(self, place: int, types: Types) -> int:
        """Elements of one tensor that are rounded again, for who reads them in another type than they were made in."""
        tensor = self.tensors[place]
        if tensor.is_constant:
            return 0
        made = self._made_as(tensor, types)
        read = {types[one] for one in tensor.readers if one != OUTPUT}
        return tensor.elements * len(read - {made, FLOAT})

    def noise(self, types: Types) -> float:
        """What all roundings cost together, those of weights included."""
        return sum(self.noise_of(place, types) for place in range(len(self.tensors))) + sum(
            self.weight_noise(number, types) for number in range(len(self.layers))
        )

    def weight_noise(self, layer: int, types: Types) -> float:
        """What the rounding of a layer's weights costs."""
        weights = self.layers[layer].weights
        return weights.get(NARROW if types[layer] == NARROW else WIDE, 0.0)

    @cached_property
    def least(self) -> float:
        """What the weights cost alone: no precision of activations is better."""
        return sum(layer.weights.get(WIDE, 0.0) for layer in self.layers)

    def sqnr(self, noise: float) -> float:
        """*noise* as SQNR of the output, in dB."""
        return min(IDENTICAL, 10 * math.log10(self.signal / noise)) if noise > 0 else IDENTICAL

    def narrow_share(self, types: Types) -> float:
        """Share of the multiplications that run in 8 bits."""
        every = sum(layer.multiplications for layer in self.layers)
        narrow = sum(layer.multiplications for layer, kind in zip(self.layers, types, strict=True) if kind == NARROW)
        return narrow / every if every else 0.0

    def conversions(self, types: Types) -> int:
        """Elements that are rounded again in one run."""
        return sum(self.conversions_of(place, types) for place in range(len(self.tensors)))

    def noise_alone(self, layer: int, kind: str) -> float:
        """What one layer costs where it alone computes in *kind*, and all others in float; its weights are S8."""
        noise = self.layers[layer].weights.get(NARROW if kind == NARROW else WIDE, 0.0)
        for place in self._by_layer.get(layer, ()) if kind != FLOAT else ():
            tensor = self.tensors[place]
            mine = (layer, OUTPUT) if tensor.maker == layer else (layer,)
            rows = [row for row, one in enumerate(tensor.readers) if one in mine]
            noise += float(tensor.noise[kind][np.ix_(rows, rows)].sum())
        return noise

    def alone(self, layer: int) -> dict[str, float]:
        """The same in dB, for each type."""
        return {kind: self.sqnr(self.noise_alone(layer, kind)) for kind in (NARROW, WIDE, FLOAT)}

    def _made_as(self, tensor: Tensor, types: Types) -> str:
        if tensor.maker is None or types[tensor.maker] == FLOAT:
            return FLOAT
        own = types[tensor.maker]
        read = {own if one == OUTPUT else types[one] for one in tensor.readers} - {FLOAT}
        return WIDE if WIDE in read else NARROW if read else own

    def _rounded_as(self, tensor: Tensor, types: Types) -> Iterator[str]:
        made = self._made_as(tensor, types)
        for one in tensor.readers:
            own = made if one == OUTPUT else types[one]
            # A constant that is read in float is not rounded.
            yield made if own == FLOAT else own
