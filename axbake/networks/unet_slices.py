"""A UNet in several graphs: slices that run one after the other, cut where only skips and one hidden tensor cross.

A slice is a run of the network's modules in the order in which diffusers' `UNet2DConditionModel.forward` calls them. The time
embedding is outside, as in `CutUnet`: every slice takes the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axbake.networks.component import Interface, Module, SliceError, Tensor
from axbake.networks.dividing import divide
from axbake.networks.unet import CONTEXT, SAMPLE, TIME_INPUT, row_width
from axbake.runtime.tokenizer import TOKENS
from axbake.runtime.values import Latents

PREDICTION, DTYPE = "out_sample", "float32"
HIDDEN = "hidden"  # what the last module of a slice gives


@dataclass(frozen=True)
class Part:
    """One module of a UNet, in the order in which they run."""

    path: str  # of the module
    kind: str  # conv | resnet | attention | sampler | out
    channels: int  # that it gives
    level: int  # how many times the picture was halved, of what it gives
    keeps: int | None = None  # number of the skip that its result is
    takes: int | None = None  # number of the skip that is joined to its input


def parts_of(config: Mapping) -> list[Part]:
    """The modules of the UNet of *config*, with the skips that each keeps and takes."""
    return list(_with_skips(list(_parts(config))))


def _parts(config: Mapping) -> Iterator[tuple[Part, bool, bool]]:
    """The modules in order, each with whether a skip is kept of it, and whether it takes one."""
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    last = len(widths) - 1
    yield Part("conv_in", "conv", widths[0], 0), True, False
    for level, (channels, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
        place, crossed = f"down_blocks.{level}", kind.startswith("CrossAttn")
        for number in range(layers):
            yield Part(f"{place}.resnets.{number}", "resnet", channels, level), not crossed, False
            if crossed:
                yield Part(f"{place}.attentions.{number}", "attention", channels, level), True, False
        if level < last:
            yield Part(f"{place}.downsamplers.0", "sampler", channels, level + 1), True, False
    if config["mid_block_type"]:
        yield Part("mid_block.resnets.0", "resnet", widths[-1], last), False, False
        if config["mid_block_type"].endswith("CrossAttn"):
            yield Part("mid_block.attentions.0", "attention", widths[-1], last), False, False
            yield Part("mid_block.resnets.1", "resnet", widths[-1], last), False, False
    for number, (channels, kind) in enumerate(zip(widths[::-1], config["up_block_types"], strict=True)):
        place, crossed, level = f"up_blocks.{number}", kind.startswith("CrossAttn"), last - number
        for layer in range(layers + 1):
            yield Part(f"{place}.resnets.{layer}", "resnet", channels, level), False, True
            if crossed:
                yield Part(f"{place}.attentions.{layer}", "attention", channels, level), False, False
        if level:
            yield Part(f"{place}.upsamplers.0", "sampler", channels, level - 1), False, False
    yield Part("conv_out", "out", config["out_channels"], 0), False, False


def _with_skips(parts: list[tuple[Part, bool, bool]]) -> Iterator[Part]:
    """Each part with the numbers of its skips: the last that was kept is the first that is taken."""
    kept: list[int] = []
    count = 0
    for part, keeps, takes in parts:
        taken = kept.pop() if takes else None
        if keeps:
            kept.append(count)
        yield Part(part.path, part.kind, part.channels, part.level, count if keeps else None, taken)
        count += keeps


@dataclass(frozen=True)
class UnetSlice:
    """One graph of a UNet, as `Graph` has it: the modules from *begin* on, up to the one at which the next slice begins."""

    name: str
    begin: str  # path of its first module
    end: str  # of the next slice's first; empty: it is the last slice
    taken: tuple[str, ...]  # names of what it takes: the sample or a hidden tensor, skips made before, tokens, row
    given: tuple[str, ...]  # names of what it gives: skips that later slices take, a hidden tensor or the prediction
    latents: Latents

    def inputs(self, **size: int) -> dict[str, str]:
        """NumPy's type of each input."""
        return dict.fromkeys(self.taken, DTYPE)

    def interface(self, config: Mapping, *, height: int, width: int, prompt_chunks: int) -> Interface:
        """What it takes and gives.

        Args:
            height, width: image pixels.

        Raises:
            SliceError: the network has other modules than those that the slices were made for.
        """
        parts = parts_of(config)
        if crossing(parts, self.begin, self.end) != (self.taken, self.given):
            raise SliceError(
                f"unet: its modules are not those that the graph {self.name} is cut for: wanted one that takes"
                f" {', '.join(self.taken)} and gives {', '.join(self.given)}."
            )
        batch, _, rows, columns = self.latents.shape(height, width)
        shapes = {
            SAMPLE: (batch, config["in_channels"], rows, columns),
            CONTEXT: (1, prompt_chunks * TOKENS, config["cross_attention_dim"]),
            TIME_INPUT: (1, row_width(config)),
        }
        for number, part in enumerate(parts):
            shape = batch, part.channels, _halved(rows, part.level), _halved(columns, part.level)
            shapes |= {name: shape for name in (_skip(part.keeps), _hidden(parts, number + 1)) if name}
        return Interface({name: Tensor(shapes[name], DTYPE) for name in self.taken}, self.given)

    def cut(self, network: Module, face: Interface) -> Module:
        """The slice as a module."""
        from axbake.networks.modules import SlicedUnet

        parts = parts_of(network.config)
        begin, end = _bounds(parts, self.begin, self.end)
        return SlicedUnet(network, parts[begin:end], self.taken, self.given)


@dataclass(frozen=True)
class Structure:
    """What UNets of one structure have in common, as far as their graphs depend on it."""

    config: Mapping  # entries of their config that say which modules there are (`parts_of`)
    depths: tuple[int, ...]  # blocks of each transformer, in the order in which they run
    context: int  # channels of a token
    latents: Latents  # that they draw

    def slices(self, most: int) -> tuple[UnetSlice, ...]:
        """As few graphs as have at most *most* weights each, and of these the ones whose largest is smallest.

        Raises:
            SliceError: one module alone has more.
        """
        parts, sizes = parts_of(self.config), self.weights()
        if max(sizes) > most:
            raise SliceError(
                f"config graph_weights: {most / 1e6:g} million, but {parts[sizes.index(max(sizes))].path} of the UNet alone has "
                f"{max(sizes) / 1e6:.0f}. Set a higher number."
            )
        begins = [parts[cut].path for cut in (0, *divide(sizes, most))]
        names = NAMES.get(len(begins), [f"part_{place:02d}" for place in range(len(begins))])
        return tuple(
            UnetSlice(name, begin, end, *crossing(parts, begin, end), self.latents)
            for name, begin, end in zip(names, begins, [*begins[1:], ""], strict=True)
        )

    def weights(self) -> list[int]:
        """Number of weights of each of its modules."""
        embedding, depths = 4 * self.config["block_out_channels"][0], iter(self.depths)
        skips: dict[int, int] = {}
        before, sizes = self.latents.channels, []
        for part in parts_of(self.config):
            given, taken = part.channels, before + (0 if part.takes is None else skips[part.takes])
            if part.kind == "resnet":
                shortcut = (taken + 1) * given if taken != given else 0
                sizes.append((9 * (taken + given) + embedding + 5) * given + 2 * taken + shortcut)
            elif part.kind == "attention":
                block = (18 * given + 2 * self.context + 17) * given
                sizes.append(2 * given + 2 * (given + 1) * given + next(depths) * block)
            else:
                sizes.append((9 * taken + 1) * given)
            before = given
            if part.keeps is not None:
                skips[part.keeps] = given
        return sizes


#: Names of graphs by their number, where they say more than a count
NAMES = {1: ["unet"], 2: ["down", "up"], 3: ["down", "mid", "up"]}


def crossing(parts: Sequence[Part], begin: str, end: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of what the slice from *begin* to *end* of a UNet takes and gives."""
    first, last = _bounds(parts, begin, end)
    inside = parts[first:last]
    made = {part.keeps for part in inside if part.keeps is not None}
    before = sorted({part.takes for part in inside if part.takes is not None} - made)
    later = sorted(made & {part.takes for part in parts[last:]})
    start, stop = _hidden(parts, first) or SAMPLE, _hidden(parts, last) or PREDICTION
    skips_in, skips_out = [_skip(number) for number in before], [_skip(number) for number in later]
    taken = (start, *(name for name in skips_in if name != start), CONTEXT, TIME_INPUT)
    return taken, (*(name for name in skips_out if name != stop), stop)


def _bounds(parts: Sequence[Part], begin: str, end: str) -> tuple[int, int]:
    """Numbers of the first module of a slice and of the first behind it."""
    paths = [part.path for part in parts]
    if missing := [path for path in (begin, end) if path and path not in paths]:
        raise SliceError(f"unet: has no {', '.join(missing)}, where axbake was to split it.")
    return paths.index(begin), paths.index(end) if end else len(parts)


def _halved(side: int, times: int) -> int:
    """A side of a picture that was halved so many times; of an odd one the middle stays."""
    return -(-side // 2**times)


def _skip(number: int | None) -> str:
    """Name of a skip; empty for none."""
    return "" if number is None else f"skip_{number}"


def _hidden(parts: Sequence[Part], number: int) -> str:
    """Name of what module *number* takes from the one before it; empty for the first, and behind the last.

    Where that is a skip, it crosses once, under the skip's name.
    """
    if not 0 < number < len(parts):
        return ""
    return _skip(parts[number - 1].keeps) or f"before_{parts[number].path.replace('.', '_')}"


def run(model: Any, parts: Sequence[Part], tensors: dict[str, Any]) -> dict[str, Any]:
    """What *parts* of a UNet make of *tensors*, by name; torch's."""
    import torch

    known = dict(tensors)
    context, row = known[CONTEXT], known[TIME_INPUT]
    hidden = next(iter(known.values()))
    for number, part in enumerate(parts):
        if part.kind == "out":
            known[PREDICTION] = hidden = model.conv_out(model.conv_act(model.conv_norm_out(hidden)))
            break
        module = model.get_submodule(part.path)
        if part.takes is not None:
            hidden = torch.cat([hidden, known[_skip(part.takes)]], dim=1)
        if part.kind == "resnet":
            hidden = module(hidden, row)
        elif part.kind == "attention":
            hidden = module(hidden, encoder_hidden_states=context, return_dict=False)[0]
        elif part.path.startswith("up_"):  # to the size of the skip that comes next, as odd sides want it
            hidden = module(hidden, _size_if_odd(hidden, known[_skip(parts[number + 1].takes)]))
        else:
            hidden = module(hidden)
        if part.keeps is not None:
            known[_skip(part.keeps)] = hidden
    return known | {HIDDEN: hidden}


def _size_if_odd(hidden: Any, skip: Any) -> Any:
    """Size to which an upsampler has to bring *hidden*, where twice its own is not that of *skip*; else None."""
    wanted = skip.shape[2:]
    return None if all(2 * side == other for side, other in zip(hidden.shape[2:], wanted, strict=True)) else wanted
