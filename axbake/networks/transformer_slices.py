"""A transformer in several graphs, cut between its blocks: there only the hidden tensors cross, sums of all blocks before.

The time embedding is outside, as in `axbake.networks.unet_slices`: every slice takes the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from axbake.networks.component import Interface, Module, Shape, SliceError, Tensor
from axbake.networks.dividing import cuts, divide
from axbake.runtime.sampler import MASK as MASK

DTYPE = "float32"
SAMPLE, CONTEXT, ROW = "sample", "encoder_hidden_states", "temb"  # what diffusers calls them
PREDICTION = "out_sample"


@dataclass(frozen=True)
class Blocks:
    """How a kind of transformer is cut; what embeds is of the first block, what projects of the last."""

    streams: tuple[str, ...]  # hidden tensors that go from block to block
    weights: Callable[[Mapping], Sequence[int]]  # config -> number of weights of each block
    #: (config, height=, width=, prompt_chunks=) -> shape of each stream, and of `SAMPLE`, `CONTEXT`, `ROW`
    shapes: Callable[..., Mapping[str, Shape]]
    #: (network, its blocks from, to, interface) -> the slice as a module
    sliced: Callable[[Module, int, int, Interface], Module]
    masked: bool = False  # whether every slice takes a mask of the text's tokens
    attending: bool = False  # whether every slice takes the text's tokens, which none changes


@dataclass(frozen=True)
class TransformerSlice:
    """One graph of a transformer, as `axbake.networks.component.Graph` has it: number *number* of *count*.

    Which blocks it has depends on the config: as many graphs are as equal as the blocks allow.
    """

    name: str
    number: int
    count: int
    blocks: Blocks

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of what it takes: sample and tokens, or what the slice before gives; the row, and what else all take."""
        mask = (MASK,) if self.blocks.masked else ()
        text = (CONTEXT,) if self.blocks.attending or self.number == 0 else ()
        return (*(self._crossing(self.number) if self.number else (SAMPLE,)), *text, ROW, *mask)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what it gives: hidden tensors or the prediction."""
        return self._crossing(self.number + 1) if self.number + 1 < self.count else (PREDICTION,)

    def _crossing(self, number: int) -> tuple[str, ...]:
        return tuple(f"{stream}_{number}" for stream in self.blocks.streams)

    def inputs(self, **size: int) -> dict[str, str]:
        """NumPy's type of each input."""
        return dict.fromkeys(self.taken, DTYPE)

    def interface(self, config: Mapping, **columns: int) -> Interface:
        """What it takes and gives.

        Args:
            columns: height and width in pixels, and chunks of a prompt.

        Raises:
            SliceError: the network has fewer blocks than graphs.
        """
        self._bounds(config)
        shapes = self.blocks.shapes(config, **columns)
        taken = {name: shapes[name if name in shapes else name.rpartition("_")[0]] for name in self.taken}
        return Interface(
            {name: Tensor(shape, DTYPE) for name, shape in taken.items()}, self.given, tuple(shapes[SAMPLE])
        )

    def cut(self, network: Module, face: Interface) -> Module:
        """The slice as a module."""
        return self.blocks.sliced(network, *self._bounds(network.config), face)

    def _bounds(self, config: Mapping) -> tuple[int, int]:
        """Numbers of its first block and of the first behind it."""
        sizes = self.blocks.weights(config)
        if len(sizes) < self.count:
            raise SliceError(f"{self.name}: a transformer of {len(sizes)} blocks; wanted {self.count} or more.")
        ends = (0, *cuts(sizes, self.count), len(sizes))
        return ends[self.number], ends[self.number + 1]


@dataclass(frozen=True)
class Structure:
    """What transformers of one family have in common, as far as the number of their graphs depends on it."""

    config: Mapping  # entries of their config that decide the number of weights
    blocks: Blocks
    least: int = 0  # weights that a graph may have in any case, where one block has more than graphs of other families

    def slices(self, most: int) -> tuple[TransformerSlice, ...]:
        """As few graphs as have at most *most* weights each, and of these the ones whose largest is smallest.

        Raises:
            SliceError: one block alone has more.
        """
        sizes, most = self.blocks.weights(self.config), max(most, self.least)
        if max(sizes) > most:
            raise SliceError(
                f"config graph_weights: {most / 1e6:g} million, but block {sizes.index(max(sizes))} of the transformer alone has"
                f" {max(sizes) / 1e6:.0f}. Set a higher number."
            )
        count = 1 + len(divide(sizes, most))
        names = ["transformer"] if count == 1 else [f"blocks_{number}" for number in range(count)]
        return tuple(TransformerSlice(name, number, count, self.blocks) for number, name in enumerate(names))
