"""Cosmos-Predict2's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_cosmos import CosmosPatchEmbed

from axbake.networks.cosmos import PATCH, STRETCH, THETA
from axbake.networks.patches import convolution_of, embed, picture_of
from axbake.networks.rotary import Tables, attend, grid, rotate, tables


class WithoutMask(CosmosPatchEmbed):
    """The patches' embedding, which adds the channel of the padding mask itself: of a whole picture, 0."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, h, w) -> (B, 1, h / 2, w / 2, D)."""
        return super().forward(torch.cat([hidden_states, torch.zeros_like(hidden_states[:, :1])], dim=1))


class SlicedCosmos(torch.nn.Module):
    """Some of its blocks, with the text's tokens and the time's row among their inputs.

    The first slice takes latent, tokens and row, the others the hidden tensor, tokens and row. The last gives the
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
        self.derived: dict[str, Any] = {}
        self.patch: torch.nn.Parameter | None = None
        if begin == 0:
            self.patch = torch.nn.Parameter(_patch_weight(model.patch_embed.proj.weight), requires_grad=False)
            self.derived["patch"] = "patch_embed.proj.weight", _patch_weight
        self.tables: Tables | None = None
        if size:
            self.tables = self._tables(*size)
            self.derived |= self.tables.sources("tables")

    def _tables(self, height: int, width: int) -> Tables:
        """Those of the first frame."""
        head = self.model.config.attention_head_dim
        side = head // 6 * 2
        widths = (head - 2 * side, side, side)
        theta = [THETA * stretch ** (wide / (wide - 2)) for stretch, wide in zip(STRETCH, widths, strict=True)]
        places = grid(height // PATCH, width // PATCH)
        positions = np.concatenate([np.zeros((len(places), 1)), places], axis=1)
        cosines, sines = tables(positions, widths=widths, theta=theta)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, given: torch.Tensor, context: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        height, width = self.size or given.shape[2:]
        hidden = given if self.patch is None else embed(given, self.patch.to(row.dtype), None)
        inner = row.shape[1] // 4
        active, embedded = row[:, None, :inner], row[:, None, inner:]
        made = self.tables or self._tables(height, width)
        turned = made.cosines, made.sines
        for number in range(self.begin, self.end):
            block = self.model.transformer_blocks[number]
            normed, gate = _modulated(block.norm1, hidden, active, embedded)
            hidden = hidden + gate * _attention(block.attn1, normed, normed, turned)
            normed, gate = _modulated(block.norm2, hidden, active, embedded)
            hidden = hidden + gate * _attention(block.attn2, normed, context, None)
            normed, gate = _modulated(block.norm3, hidden, active, embedded)
            hidden = hidden + gate * block.ff(normed)
        if self.end < len(self.model.transformer_blocks):
            return hidden
        final = self.model.norm_out
        shift, scale = (final.linear_2(final.linear_1(active)) + embedded[..., : 2 * inner]).chunk(2, dim=-1)
        tokens = self.model.proj_out(final.norm(hidden) * (1 + scale) + shift)
        return picture_of(tokens, PATCH, height, width)


def _patch_weight(weight: torch.Tensor) -> torch.Tensor:
    """That of the channels of the latent, without the mask's, which is the last."""
    return convolution_of(weight, patch=PATCH, channels_last=False)[:, :-1].contiguous()


def _modulated(
    norm: Any, hidden: torch.Tensor, active: torch.Tensor, embedded: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normalised and modulated tensor, and the gate of what is made of it."""
    shift, scale, gate = (norm.linear_2(norm.linear_1(active)) + embedded).chunk(3, dim=-1)
    return norm.norm(hidden) * (1 + scale) + shift, gate


def _attention(attention: Any, normed: torch.Tensor, other: torch.Tensor, turned: Any) -> torch.Tensor:
    query = attention.norm_q(attention.to_q(normed).unflatten(-1, (attention.heads, -1)))
    key = attention.norm_k(attention.to_k(other).unflatten(-1, (attention.heads, -1)))
    value = attention.to_v(other).unflatten(-1, (attention.heads, -1))
    if turned:
        query, key = rotate(query, *turned), rotate(key, *turned)
    return attention.to_out[0](attend(query, key, value))
