"""The networks of a model as torch modules, made from `weights/{component}.safetensors`.

A job has one of them, and each class takes a second or more to import: so they are imported where they are built.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from axbake.checkpoints.weights import read_description, read_shapes, read_tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


class VaeEncoder(torch.nn.Module):
    """The encoder half of an autoencoder: image -> its latent; of an AutoencoderKL mean and log-variance of it."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, getattr(vae, "quant_conv", torch.nn.Identity())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in -1..1 -> (1, 4 or 8, H/8, W/8), not yet scaled: means, then of an AutoencoderKL log-variances."""
        return self.quant_conv(self.encoder(image))


class VaeDecoder(torch.nn.Module):
    """The decoder half of an autoencoder."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.post_quant_conv = getattr(vae, "post_quant_conv", torch.nn.Identity())
        self.decoder = vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, 4, H/8, W/8), already divided by the scaling factor -> (1, 3, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(latent))


def _text_encoder(config: dict) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    # Only eager attention adds the mask as a tensor; the other kinds hide it in a fused operator.
    return CLIPTextModel(CLIPTextConfig(**config, attn_implementation="eager"))


def _unet(config: dict) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


def autoencoder(config: dict) -> Any:
    """diffusers' autoencoder of *config*, which names its class; both halves."""
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


BUILDERS = {
    "text_encoder": _text_encoder,
    "unet": _unet,
    "vae_encoder": lambda config: VaeEncoder(autoencoder(config)),
    "vae_decoder": lambda config: VaeDecoder(autoencoder(config)),
}


def build(component: str, config: dict) -> Any:
    """The network of *config* (diffusers' form) with whatever weights the surrounding device context gives."""
    return BUILDERS[component](config).eval().requires_grad_(False)


def wanted_shapes(component: str, config: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the network of *config* has; nothing is allocated."""
    return dict(_wanted_shapes(component, json.dumps(config)))


@functools.lru_cache(maxsize=32)
def _wanted_shapes(component: str, config: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(component, json.loads(config)).state_dict().items()}


def load(weights: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """The network of a `weights/{component}.safetensors`, in evaluation mode.

    One tensor at a time is read and converted, so the peak is the network's own size.
    """
    description = read_description(weights)
    tensors = {name: read_tensor(weights, name).to(dtype) for name in read_shapes(weights)}
    return filled(description.component, description.config, tensors)


def filled(component: str, config: dict, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The network of *config* with *tensors* as its own, in evaluation mode."""
    with torch.device("meta"):
        module = build(component, config)
    module.load_state_dict(tensors, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # CLIP's position ids, the only buffer that no checkpoint holds
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module.eval().requires_grad_(False)


def channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """*network* with the channels of its convolutions last, which halves their time on CPUs."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
