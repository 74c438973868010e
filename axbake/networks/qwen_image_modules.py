"""Qwen-Image's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from axbake.networks.flux1_modules import (
    OF_PICTURE,
    OF_TEXT,
    SORTED,
    SORTED_TEXT,
    patch_weight,
    pixels_first,
    projected,
)
from axbake.networks.modules import MASKED
from axbake.networks.patches import embed, picture_of
from axbake.networks.qwen_image import PATCH, THETA
from axbake.networks.rotary import Tables, attend, grid, rotate, sort_parameters, tables


class SlicedQwenImage(torch.nn.Module):
    """Some of its blocks, the time's row after SiLU and the text's mask among their inputs.

    The first slice takes latent, tokens, row and mask, the others the hidden tensor, text before picture, row and mask. The last
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
        self.blocks = len(model.transformer_blocks)
        names = [
            f"transformer_blocks.{number}.attn.{part}" for number in range(begin, end) for part in SORTED + SORTED_TEXT
        ]
        self.derived: dict[str, Any] = sort_parameters(model, names, width=model.config.attention_head_dim)
        if begin == 0:
            self._derive("patch", "img_in.weight", patch_weight)
        if end == self.blocks:
            for kind in ("weight", "bias"):
                self._derive(f"projected_{kind}", f"proj_out.{kind}", pixels_first)
        self.tables: Tables | None = None
        if size and words:
            self.tables = self._tables(words, *size)
            self.derived |= self.tables.sources("tables")

    def _derive(self, name: str, source: str, change: Any) -> None:
        tensor = change(self.model.get_parameter(source))
        setattr(self, name, torch.nn.Parameter(tensor, requires_grad=False))
        self.derived[name] = source, change

    def _tables(self, words: int, height: int, width: int) -> Tables:
        """Those of the text, which begins where the picture's longer side ends, then of the picture, whose middle is 0."""
        sides = height // PATCH, width // PATCH
        text = np.arange(words)[:, None] + np.full(3, max(side // 2 for side in sides))
        picture = np.zeros((sides[0] * sides[1], 3))
        picture[:, 1:] = grid(*sides) - [side - side // 2 for side in sides]
        axes = self.model.config.axes_dims_rope
        cosines, sines = tables(np.concatenate([text, picture]), widths=axes, theta=THETA)
        return Tables(cosines=cosines, sines=sines)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *given, row, mask = tensors
        hidden, words = given[0], mask.shape[1]
        height, width = self.size or given[0].shape[2:]
        if self.begin == 0:
            patch: Any = self.patch
            picture = embed(given[0], patch.to(row.dtype), self.model.img_in.bias)
            hidden = torch.cat([self.model.txt_in(self.model.txt_norm(given[1])), picture], dim=1)
        made = self.tables or self._tables(words, height, width)
        turned: Any = (made.cosines, made.sines)
        counted = torch.nn.functional.pad(mask, (0, height * width // PATCH**2), value=1.0)
        scores = ((1 - counted) * MASKED)[:, None, None]
        for block in self.model.transformer_blocks[self.begin : self.end]:
            hidden = _block(block, hidden, row, turned, scores, words)
        if self.end < self.blocks:
            return hidden
        final = self.model.norm_out
        scale, shift = final.linear(row)[:, None].chunk(2, dim=-1)
        normed = final.norm(hidden[:, words:]) * (1 + scale) + shift
        weight, bias = (getattr(self, f"projected_{kind}").to(row.dtype) for kind in ("weight", "bias"))
        return picture_of(torch.nn.functional.linear(normed, weight, bias), PATCH, height, width)


def _block(
    block: Any, hidden: torch.Tensor, row: torch.Tensor, turned: Any, scores: torch.Tensor, words: int
) -> torch.Tensor:
    """One block; *row* is behind its SiLU, and the first *words* tokens are the text's."""
    sides = []
    for start, side, parts in ((hidden[:, :words], "txt", OF_TEXT), (hidden[:, words:], "img", OF_PICTURE)):
        numbers = getattr(block, f"{side}_mod")[1](row)[:, None].chunk(6, dim=-1)
        normed = getattr(block, f"{side}_norm1")(start) * (1 + numbers[1]) + numbers[0]
        sides.append((start, side, numbers, projected(block.attn, normed, parts)))
    query, key, value = (torch.cat([made[number] for *_, made in sides], dim=1) for number in range(3))
    attended = attend(rotate(query, *turned), rotate(key, *turned), value, scores)
    ends = []
    for (start, side, numbers, _), part, out in zip(
        sides, (attended[:, :words], attended[:, words:]), (block.attn.to_add_out, block.attn.to_out[0]), strict=True
    ):
        made = start + numbers[2] * out(part)
        normed = getattr(block, f"{side}_norm2")(made) * (1 + numbers[4]) + numbers[3]
        ends.append(made + numbers[5] * getattr(block, f"{side}_mlp")(normed))
    return torch.cat(ends, dim=1)
