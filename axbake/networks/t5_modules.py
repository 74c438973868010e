"""T5's encoder as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from axbake.networks.rotary import Tables


class SlicedT5(torch.nn.Module):
    """Some of its blocks; the first slice takes token ids, the others the hidden tensor.

    Attributes:
        derived: parameters that the file does not have (`axbake.graphs.export`).
    """

    def __init__(self, model: Any, begin: int, end: int, *, tokens: int):
        super().__init__()
        self.model, self.begin, self.end = model, begin, end
        config = model.config
        numbers = buckets(tokens, config.relative_attention_num_buckets, config.relative_attention_max_distance)
        self.tables = Tables(buckets=numbers.astype(np.float32))
        self.derived = self.tables.sources("tables")

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        blocks = self.model.encoder.block
        hidden = torch.nn.functional.embedding(given, self.model.shared.weight) if self.begin == 0 else given
        numbers: Any = self.tables.buckets
        table = blocks[0].layer[0].SelfAttention.relative_attention_bias.weight
        bias = torch.nn.functional.embedding(numbers.long(), table).permute(2, 0, 1)[None]
        for number in range(self.begin, self.end):
            hidden, _, _ = blocks[number].layer[0](hidden, position_bias=bias)
            hidden = blocks[number].layer[1](hidden)
        return self.model.encoder.final_layer_norm(hidden) if self.end == len(blocks) else hidden


def buckets(tokens: int, count: int, most: int) -> np.ndarray:
    """(T, T) numbers of the bias that each token has for each: of near ones its own, of far ones one for many.

    As in Mesh TensorFlow's `transformer_layers.py`, in float32 as transformers computes it.
    """
    distance = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    half = count // 2
    near = half // 2
    away = np.abs(distance)
    with np.errstate(divide="ignore"):
        share = np.log(away.astype(np.float32) / near) / np.float32(np.log(most / near))
    far = np.minimum(near + np.where(away > 0, share * (half - near), 0).astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(away < near, away, far)
