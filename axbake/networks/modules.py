"""Networks as torch modules in the form that graphs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from axbake.networks.unet_slices import HIDDEN, Part, run

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

# What a causal mask adds to a score that must not count. -inf, or float32's lowest number, would take up the whole range
# of a quantised tensor; exp(-100) is 4e-44, nothing beside scores that differ by tens.
MASKED = -100.0


class VaeEncoder(torch.nn.Module):
    """The encoder half of an autoencoder: image -> its latent; of an AutoencoderKL mean and log-variance of it."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, getattr(vae, "quant_conv", None) or torch.nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in -1..1 -> (1, C or 2 C, h, w), not yet scaled: means, then of an AutoencoderKL log-variances."""
        return self.quant_conv(self.encoder(image))


class VaeDecoder(torch.nn.Module):
    """The decoder half of an autoencoder."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.post_quant_conv = getattr(vae, "post_quant_conv", None) or torch.nn.Identity()
        self.decoder = vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, C, h, w), already divided by the scaling factor -> (1, 3, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(latent))


def counted_or_last(tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """*tokens*, (1, T, C), with the last in the places of those that do not count, (1, T) 0 or 1.

    A mask keeps the others from attending to these, but they go through all layers, and are in the ranges that a graph is
    quantised with: of zeros, a norm would make rounding errors as large as any token.
    """
    counts = counts[..., None]
    return tokens * counts + tokens[:, -1:] * (1 - counts)


def causal_mask(tokens: int) -> torch.Tensor:
    """(1, 1, T, T): what is added to the scores of attention, so that no token looks at those behind it."""
    return torch.triu(torch.full((tokens, tokens), MASKED), 1)[None, None]


class MaskedTextEncoder(torch.nn.Module):
    """CLIP's text encoder with its causal mask as a bounded constant."""

    def __init__(self, model: Any, tokens: int):
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        mask = causal_mask(self.tokens)
        hidden = self.model.embeddings(input_ids=input_ids, position_ids=torch.arange(self.tokens)[None])
        hidden = self.model.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        return self.model.final_layer_norm(hidden)


class PenultimateTextEncoder(torch.nn.Module):
    """CLIP's text encoder as Stable Diffusion XL takes it: the last but one hidden state, without the final norm.

    Of one with a projection, also what each token would give as the pooled prompt; the host takes the end token's.
    """

    def __init__(self, model: Any, tokens: int):
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        mask = causal_mask(self.tokens)
        hidden = self.model.embeddings(input_ids=input_ids, position_ids=torch.arange(self.tokens)[None])
        *layers, last = self.model.encoder.layers
        for layer in layers:
            hidden = layer(hidden, mask)
        if not hasattr(self.model, "text_projection"):
            return hidden
        return hidden, self.model.text_projection(self.model.final_layer_norm(last(hidden, mask)))


class Passed(torch.nn.Module):
    """Stands where the time embedding was: hands on the row that comes from outside."""

    def forward(self, sample: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return sample


class CutUnet(torch.nn.Module):
    """A UNet whose third input is the time embedding's row after SiLU, as every resnet would compute it anew.

    The rows of a schedule are few and known, so the host computes them once (`schedule.npz`), in float32.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        model.time_embedding = Passed()
        model.get_time_embed = lambda sample, timestep: timestep
        model.get_aug_embed = lambda **given: None  # Stable Diffusion XL's is in the row
        for module in model.modules():
            if hasattr(module, "skip_time_act"):
                module.skip_time_act = True

    def forward(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.model(sample, row, encoder_hidden_states, return_dict=False)[0]


class SlicedUnet(torch.nn.Module):
    """Some modules of a UNet, the time embedding's row among their inputs (`axbake.networks.unet_slices`)."""

    def __init__(self, model: Any, parts: Sequence[Part], taken: Sequence[str], given: Sequence[str]):
        super().__init__()
        self.model = CutUnet(model).model
        self.parts, self.taken, self.given = parts, taken, given

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        made = run(self.model, self.parts, dict(zip(self.taken, tensors, strict=True)))
        given = tuple(made[name if name in made else HIDDEN] for name in self.given)
        return given if len(given) > 1 else given[0]


class WholeUnet(torch.nn.Module):
    """A UNet that takes the timestep, its time embedding within."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
