"""FLUX.2's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from axbake.networks.flux2 import ROWS, THETA
from axbake.networks.rotary import Tables, attend, grid, rotate, sort_parameters, tables

OF_PICTURE = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
OF_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")
SORTED = ("to_q", "to_k", "norm_q", "norm_k", "add_q_proj", "add_k_proj", "norm_added_q", "norm_added_k")


class SlicedFlux2(torch.nn.Module):
    """Some of its blocks, counted through both kinds, with all modulations among their inputs.

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
        self.derived = self._sorted()
        self.tables: Tables | None = None
        if size:
            from axbake.networks.flux2 import TOKENS

            self.tables = self._tables(TOKENS, *size)
            self.derived |= self.tables.sources("tables")

    def _sorted(self) -> dict[str, Any]:
        """The rows of queries and keys, sorted for rotation."""
        width, inner = self.model.config.attention_head_dim, self.model.inner_dim
        made: dict[str, Any] = {}
        for number in range(self.begin, self.end):
            if number < self.doubles:
                names = [f"transformer_blocks.{number}.attn.{name}.weight" for name in SORTED]
                made |= sort_parameters(self.model, names, width=width)
                continue
            place = f"single_transformer_blocks.{number - self.doubles}.attn"
            made |= sort_parameters(self.model, [f"{place}.norm_q.weight", f"{place}.norm_k.weight"], width=width)
            made |= sort_parameters(self.model, [f"{place}.to_qkv_mlp_proj.weight"], width=width, rows=2 * inner)
        return made

    def _tables(self, tokens: int, height: int, width: int) -> Tables:
        """Those of a text of so many tokens, then of the picture."""
        text = np.zeros((tokens, 4))
        text[:, 3] = np.arange(tokens)
        picture = np.zeros((height * width, 4))
        picture[:, 1:3] = grid(height, width)
        axes = self.model.config.axes_dims_rope
        cosines, sines = tables(np.concatenate([text, picture]), widths=axes, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *given, row = tensors
        inner = self.model.inner_dim
        parts = row[:, None].split([count * inner for count in ROWS], dim=-1)
        height, width = self.size or given[0].shape[2:]
        pixels = height * width
        hidden = given[0]
        if self.begin == 0:
            picture = self.model.x_embedder(given[0].flatten(2).transpose(1, 2))
            hidden = torch.cat([self.model.context_embedder(given[1]), picture], dim=1)
        tokens = hidden.shape[1] - pixels
        made = self.tables or self._tables(tokens, height, width)
        rotary = made.cosines, made.sines
        text, picture = hidden[:, :tokens], hidden[:, tokens:]
        for block in self.model.transformer_blocks[self.begin : self.end]:
            text, picture = _double(block, text, picture, parts[1], parts[0], rotary)
        if self.begin < self.doubles:
            hidden = torch.cat([text, picture], dim=1)
        first, last = max(0, self.begin - self.doubles), max(0, self.end - self.doubles)
        for block in self.model.single_transformer_blocks[first:last]:
            hidden = _single(block, hidden, parts[2], rotary)
        if self.end < self.blocks:
            return hidden
        scale, shift = parts[3].chunk(2, dim=-1)
        normed = self.model.norm_out.norm(hidden[:, tokens:]) * (1 + scale) + shift
        return self.model.proj_out(normed).transpose(1, 2).unflatten(2, (height, width))


def _double(block: Any, text: Any, picture: Any, of_text: Any, of_picture: Any, rotary: Any) -> tuple[Any, Any]:
    """A block in which text and picture have their own weights."""
    streams = list(_streams(block, text, picture, of_text, of_picture))
    states = [list(_states(block.attn, names, normed)) for _, normed, names, _, _ in streams]
    query, key, value = (torch.cat(both, dim=1) for both in zip(*states, strict=True))
    attended = attend(rotate(query, *rotary), rotate(key, *rotary), value)
    parts = attended.split([text.shape[1], picture.shape[1]], dim=1)
    outs = block.attn.to_add_out, block.attn.to_out[0]
    given = []
    for (hidden, _, _, (gate, shift, scale, late), (norm, feed)), part, out in zip(streams, parts, outs, strict=True):
        hidden = hidden + gate * out(part)
        given.append(hidden + late * feed(norm(hidden) * (1 + scale) + shift))
    return given[0], given[1]


def _streams(block: Any, text: Any, picture: Any, of_text: Any, of_picture: Any) -> Iterator[tuple]:
    """Of text, then picture: hidden tensor, what goes into attention, names of its layers, other modulations, later modules."""
    later = (block.norm2_context, block.ff_context), (block.norm2, block.ff)
    norms = block.norm1_context, block.norm1
    kinds = zip((text, picture), (of_text, of_picture), norms, (OF_TEXT, OF_PICTURE), later, strict=True)
    for hidden, row, norm, names, modules in kinds:
        shift, scale, gate, *second = row.chunk(6, dim=-1)
        yield hidden, norm(hidden) * (1 + scale) + shift, names, (gate, *second), modules


def _states(attention: Any, names: tuple[str, ...], normed: torch.Tensor) -> Iterator[torch.Tensor]:
    """Query, key and value of a stream, (1, N, heads, D)."""
    *linears, query, key = (getattr(attention, name) for name in names)
    made = [linear(normed).unflatten(-1, (-1, attention.head_dim)) for linear in linears]
    yield query(made[0])
    yield key(made[1])
    yield made[2]


def _single(block: Any, hidden: torch.Tensor, row: torch.Tensor, rotary: Any) -> torch.Tensor:
    """A block in which attention and feed-forward layer stand beside each other."""
    attention = block.attn
    shift, scale, gate = row.chunk(3, dim=-1)
    joined = attention.to_qkv_mlp_proj(block.norm(hidden) * (1 + scale) + shift)
    wide = 2 * attention.mlp_hidden_dim
    *states, feed = joined.split([attention.inner_dim] * 3 + [wide], dim=-1)
    query, key, value = (part.unflatten(-1, (-1, attention.head_dim)) for part in states)
    attended = attend(rotate(attention.norm_q(query), *rotary), rotate(attention.norm_k(key), *rotary), value)
    return hidden + gate * attention.to_out(torch.cat([attended, attention.mlp_act_fn(feed)], dim=-1))
