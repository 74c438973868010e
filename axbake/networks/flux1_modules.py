"""FLUX.1's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from axbake.networks.flux1 import PATCH, THETA, TOKENS
from axbake.networks.patches import convolution_of, embed, picture_of
from axbake.networks.rotary import Tables, attend, grid, rotate, sort_parameters, tables

SORTED = tuple(f"{part}.{kind}" for part in ("to_q", "to_k") for kind in ("weight", "bias"))
SORTED += ("norm_q.weight", "norm_k.weight")
SORTED_TEXT = tuple(f"add_{letter}_proj.{kind}" for letter in "qk" for kind in ("weight", "bias"))
SORTED_TEXT += ("norm_added_q.weight", "norm_added_k.weight")
OF_PICTURE = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
OF_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")


class SlicedFlux1(torch.nn.Module):
    """Some of its blocks, counted through both kinds, the time's row after SiLU among their inputs.

    The first slice takes latent, tokens and row, the others the hidden tensor, text before picture, and row. The last gives the
    prediction, in the latent's shape; the others the hidden tensor.

    Attributes:
        derived: parameters that the file does not have as they are here (`axbake.graphs.export`).
    """

    def __init__(self, model: Any, begin: int, end: int, *, size: tuple[int, int] | None):
        """
        Args:
            size: height and width of the latent, for which the rotary tables are made beforehand; None: as it comes.
        """
        super().__init__()
        self.model, self.begin, self.end, self.size = model, begin, end, size
        self.doubles = len(model.transformer_blocks)
        self.blocks = self.doubles + len(model.single_transformer_blocks)
        self.derived: dict[str, Any] = {}
        for number in range(begin, end):
            double = number < self.doubles
            kind, own = (
                ("transformer_blocks", number) if double else ("single_transformer_blocks", number - self.doubles)
            )
            sorted_ = [f"{kind}.{own}.attn.{name}" for name in (*SORTED, *(SORTED_TEXT if double else ()))]
            self.derived |= sort_parameters(model, sorted_, width=model.config.attention_head_dim)
        for name, change in ({"patch": patch_weight} if begin == 0 else {}).items():
            setattr(self, name, torch.nn.Parameter(change(model.x_embedder.weight), requires_grad=False))
            self.derived[name] = "x_embedder.weight", change
        if end == self.blocks:
            for kind in ("weight", "bias"):
                name = f"projected_{kind}"
                own_tensor = pixels_first(getattr(model.proj_out, kind))
                setattr(self, name, torch.nn.Parameter(own_tensor, requires_grad=False))
                self.derived[name] = f"proj_out.{kind}", pixels_first
        self.tables: Tables | None = None
        if size:
            self.tables = self._tables(*size)
            self.derived |= self.tables.sources("tables")

    def _tables(self, height: int, width: int) -> Tables:
        """Those of the text, all of whose tokens have the place 0, then of the picture."""
        places = grid(height // PATCH, width // PATCH)
        positions = np.zeros((TOKENS + len(places), 3))
        positions[TOKENS:, 1:] = places
        cosines, sines = tables(positions, widths=self.model.config.axes_dims_rope, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *given, row = tensors
        hidden = given[0]
        height, width = self.size or given[0].shape[2:]
        if self.begin == 0:
            patch: Any = self.patch
            picture = embed(given[0], patch.to(row.dtype), self.model.x_embedder.bias)
            hidden = torch.cat([self.model.context_embedder(given[1]), picture], dim=1)
        made = self.tables or self._tables(height, width)
        turned = made.cosines, made.sines
        for number in range(self.begin, self.end):
            if number < self.doubles:
                hidden = _double(self.model.transformer_blocks[number], hidden, row, turned)
            else:
                hidden = _single(self.model.single_transformer_blocks[number - self.doubles], hidden, row, turned)
        if self.end < self.blocks:
            return hidden
        final = self.model.norm_out
        scale, shift = final.linear(row)[:, None].chunk(2, dim=-1)
        normed = final.norm(hidden[:, TOKENS:]) * (1 + scale) + shift
        weight, bias = (getattr(self, f"projected_{kind}").to(row.dtype) for kind in ("weight", "bias"))
        return picture_of(torch.nn.functional.linear(normed, weight, bias), PATCH, height, width)


def patch_weight(weight: torch.Tensor) -> torch.Tensor:
    return convolution_of(weight, patch=PATCH, channels_last=False)


def pixels_first(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of what projects, which stand channel after channel, pixel after pixel."""
    return tensor.unflatten(0, (-1, PATCH**2)).transpose(0, 1).flatten(0, 1).contiguous()


def picture_of_packed(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, N, C × 4), channel after channel, as diffusers has them -> (B, C, height, width)."""
    packed = tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return torch.nn.functional.pixel_shuffle(packed, PATCH)


def projected(attention: Any, normed: torch.Tensor, parts: tuple[str, ...]) -> list[torch.Tensor]:
    """Queries, keys and values in heads, the first two normalised."""
    query, key, value = (getattr(attention, name)(normed).unflatten(-1, (attention.heads, -1)) for name in parts[:3])
    return [getattr(attention, parts[3])(query), getattr(attention, parts[4])(key), value]


def _double(block: Any, hidden: torch.Tensor, row: torch.Tensor, turned: Any) -> torch.Tensor:
    """A block in which text and picture have their own weights."""
    sides = []
    for start, norm, parts in (
        (hidden[:, :TOKENS], block.norm1_context, OF_TEXT),
        (hidden[:, TOKENS:], block.norm1, OF_PICTURE),
    ):
        numbers = norm.linear(row)[:, None].chunk(6, dim=-1)
        normed = norm.norm(start) * (1 + numbers[1]) + numbers[0]
        sides.append((start, numbers, projected(block.attn, normed, parts)))
    query, key, value = (torch.cat([of[2][number] for of in sides], dim=1) for number in range(3))
    attended = attend(rotate(query, *turned), rotate(key, *turned), value)
    ends = []
    for (start, numbers, _), part, out, norm, feed in (
        (sides[0], attended[:, :TOKENS], block.attn.to_add_out, block.norm2_context, block.ff_context),
        (sides[1], attended[:, TOKENS:], block.attn.to_out[0], block.norm2, block.ff),
    ):
        made = start + numbers[2] * out(part)
        ends.append(made + numbers[5] * feed(norm(made) * (1 + numbers[4]) + numbers[3]))
    return torch.cat(ends, dim=1)


def _single(block: Any, hidden: torch.Tensor, row: torch.Tensor, turned: Any) -> torch.Tensor:
    """A block in which they are one sequence."""
    shift, scale, gate = block.norm.linear(row)[:, None].chunk(3, dim=-1)
    normed = block.norm.norm(hidden) * (1 + scale) + shift
    query, key, value = projected(block.attn, normed, OF_PICTURE)
    attended = attend(rotate(query, *turned), rotate(key, *turned), value)
    fed = block.act_mlp(block.proj_mlp(normed))
    return hidden + gate * block.proj_out(torch.cat([attended, fed], dim=2))
