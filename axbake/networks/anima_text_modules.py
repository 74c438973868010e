"""Anima's text conditioner as a torch module in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from axbake.networks.anima_text import states
from axbake.networks.cosmos import TOKENS
from axbake.networks.rotary import Tables, tables

THETA = 10000.0  # of the rotary positions


class Turned(Tables):
    """Stands where the conditioner computes cosines and sines."""

    cosines: torch.Tensor
    sines: torch.Tensor

    def forward(self, hidden: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cosines, self.sines


class GraphOfConditioner(torch.nn.Module):
    """The conditioner for prompts of one length.

    Attributes:
        derived: parameters that the file does not have (`axbake.graphs.export`).
    """

    def __init__(self, model: Any):
        super().__init__()
        head = model.config.model_dim // model.config.num_attention_heads
        cosines, sines = tables(np.arange(TOKENS)[:, None], widths=(head,), theta=THETA)
        both = {"cosines": np.tile(cosines, 2)[None], "sines": np.tile(sines, 2)[None]}
        self.model = model
        model.rotary_emb = Turned(**both)
        self.derived = model.rotary_emb.sources("model.rotary_emb")

    def forward(self, given: torch.Tensor, kinds: torch.Tensor, ids: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return states(self.model, given, kinds, ids, own)[0]
