"""Stable Diffusion 3's transformer as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import torch

from axbake.networks.modules import Passed
from axbake.networks.patches import picture_of

POSITIONS = "pos_embed.pos_embed"  # the table of all positions, in the file


class SlicedMmdit(torch.nn.Module):
    """Some of its blocks, the time embedding's row after SiLU among their inputs.

    The first slice takes latent, tokens and row, the others two hidden tensors and row: the picture's, then the text's. The
    last gives the prediction, in the latent's shape; the others both hidden tensors.

    Attributes:
        derived: parameter of its own -> the weight that it is made of, and how.
    """

    def __init__(self, model: Any, begin: int, end: int, *, size: tuple[int, int] | None):
        """
        Args:
            size: height and width of the latent, for which the table of positions is cut beforehand; None: as it comes.
        """
        super().__init__()
        self.model, self.begin, self.end, self.size = model, begin, end, size
        for module in model.modules():
            if hasattr(module, "silu"):
                module.silu = Passed()
        self.derived: dict[str, tuple[str, Any]] = {}
        if size and begin == 0:
            table = self._positions(model.pos_embed.pos_embed, *size)
            self.positions = torch.nn.Parameter(table, requires_grad=False)
            self.derived = {"positions": (POSITIONS, lambda table: self._positions(table, *size))}

    def _positions(self, table: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The middle of *table*, as `PatchEmbed.cropped_pos_embed` cuts it: (1, height × width / patch², C)."""
        side, patch = self.model.pos_embed.pos_embed_max_size, self.model.config.patch_size
        rows, columns = height // patch, width // patch
        top, left = (side - rows) // 2, (side - columns) // 2
        square = table.reshape(1, side, side, -1)[:, top : top + rows, left : left + columns]
        return square.reshape(1, rows * columns, -1).contiguous()

    def forward(self, first: torch.Tensor, second: torch.Tensor, row: torch.Tensor) -> Any:
        blocks = self.model.transformer_blocks
        hidden, context = first, second
        size = self.size or first.shape[2:]
        if self.begin == 0:
            table = self.positions if self.derived else self._positions(self.model.pos_embed.pos_embed, *size)
            hidden = self.model.pos_embed.proj(first).flatten(2).transpose(1, 2) + table
            context = self.model.context_embedder(second)
        for block in blocks[self.begin : self.end]:
            context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=row)
        if self.end < len(blocks):
            return hidden, context
        return picture_of(self.model.proj_out(self.model.norm_out(hidden, row)), self.model.config.patch_size, *size)
