"""Z-Image's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from axbake.networks.modules import MASKED, counted_or_last
from axbake.networks.patches import convolution_of, embed, picture_of
from axbake.networks.rotary import Tables, attend, grid, rotate, rotate_pairs, sort_parameters, tables
from axbake.networks.z_image import EMBEDDER, PATCH, THETA

SORTED = ("to_q", "to_k", "norm_q", "norm_k")
OWN, FILLED = 1, 2  # kinds of tokens: the prompt's, and those that fill it up and count


class SlicedZImage(torch.nn.Module):
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
        width = model.dim // model.n_heads
        parts = [f"{name}.attention.{part}.weight" for name in names[begin:end] for part in SORTED]
        self.derived: dict[str, Any] = sort_parameters(model, parts, width=width)
        self.patch: torch.nn.Parameter | None = None
        if begin == 0:
            embedder = model.get_submodule("all_x_embedder")["2-1"]
            self.patch = torch.nn.Parameter(_patch_weight(embedder.weight), requires_grad=False)
            self.derived["patch"] = f"{EMBEDDER}.weight", _patch_weight
        self.tables: Tables | None = None
        if size and words:
            self.tables = self._tables(words, *size)
            self.derived |= self.tables.sources("tables")

    def _tables(self, text: int, height: int, width: int) -> Tables:
        """Those of the picture, then of a text of so many places, the last of which is one before the picture."""
        places = grid(height // PATCH, width // PATCH)
        picture = np.concatenate([np.full((len(places), 1), text + 1), places], axis=1)
        words = np.zeros((text, 3))
        words[:, 0] = np.arange(1, text + 1)
        cosines, sines = tables(np.concatenate([picture, words]), widths=self.model.axes_dims, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *given, row, mask = tensors
        hidden = given[0]
        height, width = self.size or given[0].shape[2:]
        if self.patch is not None:
            embedder = self.model.get_submodule("all_x_embedder")["2-1"]
            hidden = torch.cat([embed(given[0], self.patch.to(row.dtype), embedder.bias), given[1]], dim=1)
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
        final = self.model.get_submodule("all_final_layer")["2-1"]
        scale = 1 + final.adaLN_modulation(row)[:, None]
        return picture_of(final.linear(final.norm_final(hidden[:, :pixels]) * scale), PATCH, height, width)


def _patch_weight(weight: torch.Tensor) -> torch.Tensor:
    return convolution_of(weight, patch=PATCH, channels_last=True)


def _block(
    block: Any, hidden: torch.Tensor, row: torch.Tensor, rotary: Any, scores: torch.Tensor | None
) -> torch.Tensor:
    """A block that the time modulates."""
    scale, gate, late_scale, late_gate = block.adaLN_modulation(row)[:, None].chunk(4, dim=-1)
    attended = _attention(block.attention, block.attention_norm1(hidden) * (1 + scale), rotary, scores)
    hidden = hidden + gate.tanh() * block.attention_norm2(attended)
    fed = block.feed_forward(block.ffn_norm1(hidden) * (1 + late_scale))
    return hidden + late_gate.tanh() * block.ffn_norm2(fed)


def _attention(attention: Any, normed: torch.Tensor, rotary: Any, scores: torch.Tensor | None) -> torch.Tensor:
    states = (
        linear(normed).unflatten(-1, (attention.heads, -1))
        for linear in (attention.to_q, attention.to_k, attention.to_v)
    )
    query, key, value = states
    query, key = rotate(attention.norm_q(query), *rotary), rotate(attention.norm_k(key), *rotary)
    return attention.to_out[0](attend(query, key, value, scores))


class Conditioner(torch.nn.Module):
    """What of the network depends on the prompt alone: the states' embedding, and the blocks that only the text goes through."""

    def __init__(self, cap_embedder: Any, context_refiner: Any, cap_pad_token: torch.nn.Parameter, axes: Any):
        super().__init__()
        self.cap_embedder, self.context_refiner, self.cap_pad_token = cap_embedder, context_refiner, cap_pad_token
        self.axes = axes

    @classmethod
    def of(cls, model: Any) -> Conditioner:
        """That of a whole network."""
        return cls(model.cap_embedder, model.context_refiner, model.cap_pad_token, model.axes_dims)

    def tables(self, tokens: int) -> Tables:
        """Rotary tables of so many tokens."""
        positions = np.zeros((tokens, 3))
        positions[:, 0] = np.arange(1, tokens + 1)
        cosines, sines = tables(positions, widths=self.axes, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, states: torch.Tensor, kinds: torch.Tensor, made: Tables | None = None) -> torch.Tensor:
        """(1, T, V) states of the language model and (1, T) kinds of tokens -> (1, T, C), the last where no token counts."""
        counts = (kinds > 0).to(states.dtype)
        filled = (kinds == FILLED).to(states.dtype)[..., None]
        hidden = self.cap_embedder(states) * (1 - filled) + self.cap_pad_token * filled
        made = made or self.tables(states.shape[1])
        turned = made.cosines, made.sines
        scores = ((1 - counts) * -1e9)[:, None, None]
        for block in self.context_refiner:
            attended = _paired_attention(block.attention, block.attention_norm1(hidden), turned, scores)
            hidden = hidden + block.attention_norm2(attended)
            hidden = hidden + block.ffn_norm2(block.feed_forward(block.ffn_norm1(hidden)))
        return counted_or_last(hidden, counts)


def _paired_attention(attention: Any, normed: torch.Tensor, turned: Any, scores: torch.Tensor) -> torch.Tensor:
    """Attention whose neighbours are rotated, as the file has its rows."""
    states = (
        linear(normed).unflatten(-1, (attention.heads, -1))
        for linear in (attention.to_q, attention.to_k, attention.to_v)
    )
    query, key, value = states
    query, key = (rotate_pairs(part, *turned) for part in (attention.norm_q(query), attention.norm_k(key)))
    return attention.to_out[0](attend(query, key, value, scores))
