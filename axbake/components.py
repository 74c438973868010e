"""The networks of a model as torch modules, made from `weights/{component}.safetensors`.

Such a file describes itself: its metadata holds one entry, `axbake`, a JSON of the component's name, its family's name, and its
config in diffusers' form. So whoever has the file can rebuild the network, and two checkpoints that share one give the same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from axbake.families import FAMILIES

METADATA = "axbake"


class VaeEncoder(torch.nn.Module):
    """The encoder half of an AutoencoderKL: image -> mean and log-variance of its latent."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in -1..1 -> (1, 8, H/8, W/8): 4 channels of means, then 4 of log-variances, not yet scaled."""
        return self.quant_conv(self.encoder(image))


class VaeDecoder(torch.nn.Module):
    """The decoder half of an AutoencoderKL."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, 4, H/8, W/8), already divided by the scaling factor -> (1, 3, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(latent))


def _text_encoder(config: dict) -> torch.nn.Module:
    # Only eager attention adds the mask as a tensor; the other kinds hide it in a fused operator.
    return CLIPTextModel(CLIPTextConfig(**config, attn_implementation="eager"))


BUILDERS = {
    "text_encoder": _text_encoder,
    "unet": UNet2DConditionModel.from_config,
    "vae_encoder": lambda config: VaeEncoder(AutoencoderKL.from_config(config)),
    "vae_decoder": lambda config: VaeDecoder(AutoencoderKL.from_config(config)),
}


def build(component: str, config: dict) -> torch.nn.Module:
    """The network of *config* (diffusers' form) with whatever weights the surrounding device context gives."""
    return BUILDERS[component](config).eval().requires_grad_(False)


def wanted_shapes(component: str, config: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the network of *config* has; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(component, config).state_dict().items()}


@dataclass(frozen=True)
class Description:
    """What a `weights/{component}.safetensors` says of itself."""

    component: str
    family: str
    config: dict  # diffusers' form


def read_description(weights: Path) -> Description:
    """Description in the metadata of a `weights/{component}.safetensors`."""
    with safe_open(weights, "pt") as file:
        return Description(**json.loads(file.metadata()[METADATA]))


def prediction_type(unet: Path) -> str:
    """diffusers' name of what the UNet of a `weights/unet.safetensors` was trained to predict."""
    return FAMILIES[read_description(unet).family].prediction_type


def load(weights: Path, *, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The network of a `weights/{component}.safetensors`, in evaluation mode.

    One tensor at a time is read and converted, so the peak is the network's own size.
    """
    description = read_description(weights)
    with torch.device("meta"):
        module = build(description.component, description.config)
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118  # not a dict
    module.load_state_dict(tensors, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # CLIP's position ids, the only buffer that no checkpoint holds
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module.eval().requires_grad_(False)
