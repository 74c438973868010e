"""Language models as torch modules in the form that graphs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from axbake.networks.component import Interface
from axbake.networks.rotary import Tables
from axbake.runtime.language import LanguageFormat

HIDDEN = -1e9  # what a mask adds to a score that must not count; on hosts nothing is quantised but weights


class SlicedLanguageModel(torch.nn.Module):
    """Some layers of a decoder of transformers, with its masks and rotary tables made beforehand.

    Attributes:
        derived: parameters that the file does not have (`axbake.graphs.export`).
    """

    def __init__(self, model: Any, begin: int, end: int, face: Interface, states: Sequence[int], form: LanguageFormat):
        """
        Args:
            states: which hidden states the last graph gives.
            form: of the prompts.
        """
        super().__init__()
        self.model, self.begin, self.end, self.face, self.states, self.form = model, begin, end, face, states, form
        (_, tokens) = face.inputs["attention_mask"].shape
        config = model.config
        angles = np.outer(np.arange(tokens), _frequencies(config.rope_parameters["rope_theta"], config.head_dim))
        both = np.concatenate([angles, angles], axis=1)[None]
        causal = np.triu(np.full((tokens, tokens), HIDDEN), 1)[None, None]
        arrays = {"cosines": np.cos(both), "sines": np.sin(both), "causal": causal}
        self.tables = Tables(**{name: array.astype(np.float32) for name, array in arrays.items()})
        self.derived = self.tables.sources("tables")

    def forward(self, *tensors: torch.Tensor) -> Any:
        known = dict(zip(self.face.inputs, tensors, strict=True))
        mask = (known["attention_mask"] == 1).float()[:, None, None]
        causal: Any = self.tables.causal
        scores = causal + (1 - mask) * HIDDEN
        hidden = self._embedded(known["input_ids"]) if self.begin == 0 else known[f"hidden_states_{self.begin}"]
        turned = self.tables.cosines, self.tables.sines
        for number in range(self.begin, self.end):
            known[f"hidden_states_{number}"] = hidden
            layer = self.model.layers[number]
            if self.form.side == "left" and not self.form.masked:  # the denoiser takes what stands before a prompt too
                hidden = _attending_to_own(layer, hidden, scores, turned, mask[:, 0, 0, :, None])
            else:
                hidden = layer(hidden, attention_mask=scores, position_embeddings=turned)
        last = self.end == len(self.model.layers)
        known[f"hidden_states_{self.end}"] = self.model.norm(hidden) if last else hidden
        if self.face.outputs == ("prompt_embeds",):
            return torch.cat([known[f"hidden_states_{layer}"] for layer in self.states], dim=-1)[:, self.form.drop :]
        given = tuple(known[name] for name in self.face.outputs)
        return given if len(given) > 1 else given[0]

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the token table, which some models scale."""
        table = self.model.embed_tokens
        scale = getattr(table, "scalar_embed_scale", None)
        rows = torch.nn.functional.embedding(ids, table.weight)
        return rows if scale is None else rows * scale


def _attending_to_own(layer: Any, hidden: torch.Tensor, scores: torch.Tensor, turned: Any, own: torch.Tensor) -> Any:
    """*layer*, whose attention gives 0 where no token of the prompt stands; *own*: (1, T, 1), 1 where one does."""
    attended, _ = layer.self_attn(layer.input_layernorm(hidden), attention_mask=scores, position_embeddings=turned)
    hidden = hidden + attended * own
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _frequencies(theta: float, width: int) -> np.ndarray:
    """(width / 2,) float32, as transformers computes them."""
    return (1 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
