"""Lumina-Image 2's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from axbake.networks.lumina import AXES, PATCH, THETA
from axbake.networks.modules import MASKED, counted_or_last
from axbake.networks.patches import convolution_of, embed, picture_of
from axbake.networks.rotary import Tables, attend, grid, rotate, rotate_pairs, sort_parameters, tables

SORTED = ("to_q", "to_k", "norm_q", "norm_k")


class SlicedLumina(torch.nn.Module):
    """Some of its blocks, first those that only the picture goes through, with the time's row and the text's mask as inputs.

    The first slice takes latent, tokens, row and mask, the others the hidden tensor, picture before text, row and mask. The last
    gives the prediction, in the latent's shape; the others the hidden tensor.

    Attributes:
        derived: parameters that the file does not have as they are here (`axbake.graphs.export`).
    """

    def __init__(self, model: Any, begin: int, end: int, *, size: tuple[int, int] | None, words: int | None):
        """
        Args:
            size: height and width of the latent, and *words*: tokens of a prompt, for which the rotary tables are made
                beforehand; None: as they come.
        """
        super().__init__()
        self.model, self.begin, self.end, self.size = model, begin, end, size
        self.refiners = len(model.noise_refiner)
        self.blocks = [*model.noise_refiner, *model.layers]
        names = [f"noise_refiner.{n}" for n in range(self.refiners)] + [f"layers.{n}" for n in range(len(model.layers))]
        self.head = self.blocks[0].head_dim
        parts = [f"{name}.attn.{part}.weight" for name in names[begin:end] for part in SORTED]
        self.derived: dict[str, Any] = sort_parameters(model, parts, width=self.head)
        self.patch: torch.nn.Parameter | None = None
        if begin == 0:
            self.patch = torch.nn.Parameter(_patch_weight(model.x_embedder.weight), requires_grad=False)
            self.derived["patch"] = "x_embedder.weight", _patch_weight
        self.tables: Tables | None = None
        if size and words:
            self.tables = self._tables(words, *size)
            self.derived |= self.tables.sources("tables")

    def _tables(self, text: int, height: int, width: int) -> Tables:
        """Those of the picture, then of a text of so many places, the last of which is one before the picture."""
        places = grid(height // PATCH, width // PATCH)
        picture = np.concatenate([np.full((len(places), 1), text), places], axis=1)
        words = np.zeros((text, AXES))
        words[:, 0] = np.arange(text)
        positions = np.concatenate([picture, words])
        cosines, sines = tables(positions, widths=[self.head // AXES] * AXES, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *given, row, mask = tensors
        hidden = given[0]
        height, width = self.size or given[0].shape[2:]
        if self.patch is not None:
            picture = embed(given[0], self.patch.to(row.dtype), self.model.x_embedder.bias)
            hidden = torch.cat([picture, given[1]], dim=1)
        pixels, text = height * width // PATCH**2, mask.shape[1]
        made = self.tables or self._tables(text, height, width)
        rotary: Any = (made.cosines, made.sines)
        of_picture = tuple(table[:pixels] for table in rotary)
        counted = torch.nn.functional.pad(mask, (pixels, 0), value=1.0)
        scores = ((1 - counted) * MASKED)[:, None, None]
        for number in range(self.begin, self.end):
            block = self.blocks[number]
            if number < self.refiners:
                picture = _block(block, hidden[:, :pixels], row, of_picture, None)
                hidden = torch.cat([picture, hidden[:, pixels:]], dim=1)
            else:
                hidden = _block(block, hidden, row, rotary, scores)
        if self.end < len(self.blocks):
            return hidden
        final = self.model.norm_out
        scale = 1 + final.linear_1(row)[:, None]
        return picture_of(final.linear_2(final.norm(hidden[:, :pixels]) * scale), PATCH, height, width)


def _patch_weight(weight: torch.Tensor) -> torch.Tensor:
    return convolution_of(weight, patch=PATCH, channels_last=True)


def _block(
    block: Any, hidden: torch.Tensor, row: torch.Tensor, rotary: Any, scores: torch.Tensor | None
) -> torch.Tensor:
    """A block that the time modulates; *row* is behind its SiLU."""
    scale, gate, late_scale, late_gate = block.norm1.linear(row)[:, None].chunk(4, dim=-1)
    query, key, value = _projected(block.attn, block.norm1.norm(hidden) * (1 + scale))
    attended = block.attn.to_out[0](attend(rotate(query, *rotary), rotate(key, *rotary), value, scores))
    hidden = hidden + gate.tanh() * block.norm2(attended)
    fed = block.feed_forward(block.ffn_norm1(hidden) * (1 + late_scale))
    return hidden + late_gate.tanh() * block.ffn_norm2(fed)


def _projected(attention: Any, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values in heads, (B, N, heads, D); there are fewer heads of the latter two."""
    head = attention.norm_q.weight.shape[0]
    query, key, value = (
        linear(normed).unflatten(-1, (-1, head)) for linear in (attention.to_q, attention.to_k, attention.to_v)
    )
    return attention.norm_q(query), attention.norm_k(key), value


class Conditioner(torch.nn.Module):
    """What of the network depends on the prompt alone: the states' embedding, and the blocks that only the text goes through."""

    def __init__(self, caption_embedder: Any, context_refiner: Any):
        super().__init__()
        self.caption_embedder, self.context_refiner = caption_embedder, context_refiner

    @classmethod
    def of(cls, model: Any) -> Conditioner:
        """That of a whole network."""
        return cls(model.time_caption_embed.caption_embedder, model.context_refiner)

    def tables(self, tokens: int) -> Tables:
        """Rotary tables of so many tokens."""
        positions = np.zeros((tokens, AXES))
        positions[:, 0] = np.arange(tokens)
        head = self.context_refiner[0].head_dim
        cosines, sines = tables(positions, widths=[head // AXES] * AXES, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, states: torch.Tensor, kinds: torch.Tensor, made: Tables | None = None) -> torch.Tensor:
        """(1, T, V) states of the language model, and (1, T) which count -> (1, T, C), the last where none counts."""
        counts = kinds.to(states.dtype)
        hidden = self.caption_embedder(states)
        made = made or self.tables(states.shape[1])
        turned: Any = (made.cosines, made.sines)
        scores = ((1 - counts) * -1e9)[:, None, None]
        for block in self.context_refiner:
            query, key, value = _projected(block.attn, block.norm1(hidden))
            attended = attend(rotate_pairs(query, *turned), rotate_pairs(key, *turned), value, scores)
            hidden = hidden + block.norm2(block.attn.to_out[0](attended))
            hidden = hidden + block.ffn_norm2(block.feed_forward(block.ffn_norm1(hidden)))
        return counted_or_last(hidden, counts)
