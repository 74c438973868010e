"""FLUX.2's autoencoder as torch modules in the form that graphs are made of."""

from __future__ import annotations

from typing import Any

import torch

from axbake.networks.modules import VaeDecoder, VaeEncoder

PATCH = 2  # latent pixels a side for one token


class Statistics(torch.nn.Module):
    """A batch norm's statistics without what training counts."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, norm: torch.nn.BatchNorm2d):
        super().__init__()
        self.eps = norm.eps
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    @property
    def mean(self) -> torch.Tensor:
        """(1, C, 1, 1)."""
        return self.running_mean[None, :, None, None]

    @property
    def deviation(self) -> torch.Tensor:
        """(1, C, 1, 1): what the norm divides by."""
        return torch.sqrt(self.running_var + self.eps)[None, :, None, None]


class Flux2Encoder(VaeEncoder):
    """Image -> mean of its latent, packed and normalised."""

    def __init__(self, vae: Any):
        super().__init__(vae)
        self.bn = vae.bn

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in -1..1 -> (1, 128, H / 16, W / 16)."""
        mean, _ = super().forward(image).chunk(2, dim=1)
        packed = torch.nn.functional.pixel_unshuffle(mean, PATCH)
        return (packed - self.bn.mean) / self.bn.deviation


class Flux2Decoder(VaeDecoder):
    """Such a latent -> image."""

    def __init__(self, vae: Any):
        super().__init__(vae)
        self.bn = vae.bn

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, 128, H / 16, W / 16) -> (1, 3, H, W), about -1..1."""
        packed = latent * self.bn.deviation + self.bn.mean
        return super().forward(unpacked(packed))


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """`pixel_shuffle`, (1, 4 C, h, w) -> (1, C, 2 h, 2 w), in two transpositions: the NPU orders channels differently."""
    _, channels, height, width = packed.shape
    lines = packed.reshape(channels // PATCH, PATCH, height, width).permute(0, 2, 3, 1)
    columns = lines.reshape(channels // PATCH**2, PATCH, height, PATCH * width).transpose(1, 2)
    return columns.reshape(1, channels // PATCH**2, PATCH * height, PATCH * width)
