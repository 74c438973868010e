"""Qwen-Image's autoencoder as torch modules: for one frame, and in the form that graphs are made of."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageAttentionBlock,
    QwenImageCausalConv3d,
    QwenImageResample,
    QwenImageResidualBlock,
    QwenImageRMS_norm,
)

from axbake.networks.modules import VaeDecoder, VaeEncoder
from axbake.networks.rotary import attend

EPSILON = 1e-12  # added to a mean of squares; diffusers' norm divides by no less than 1e-12


class FrameEncoder(VaeEncoder):
    """The encoder of films for a film of one frame."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in -1..1 -> (1, 2 C, h, w): means, then log-variances."""
        return super().forward(image[:, :, None])[:, :, 0]


class FrameDecoder(VaeDecoder):
    """The decoder of films for a film of one frame."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, C, h, w) -> (1, 3, H, W), about -1..1."""
        return super().forward(latent[:, :, None])[:, :, 0]


class _Folded(torch.nn.Module):
    """A half whose convolutions have two dimensions.

    Attributes:
        derived: parameters that the file does not have as they are here (`axbake.graphs.export`).
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.derived: dict[str, Any] = {}
        for name, module in model.named_modules():
            for kind, attribute, change in (
                (QwenImageCausalConv3d, "weight", _last_frame),
                (QwenImageRMS_norm, "gamma", _of_channels),
            ):
                if isinstance(module, kind):
                    flat = change(getattr(module, attribute))
                    module.flat = torch.nn.Parameter(flat, requires_grad=False)
                    self.derived[f"model.{name}.flat"] = f"{name}.{attribute}", change


class FoldedEncoder(_Folded):
    """`FrameEncoder` so."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        encoder = self.model.encoder
        hidden = _convolution(encoder.conv_in, image)
        for module in encoder.down_blocks:
            hidden = _run(module, hidden)
        hidden = _middle(encoder.mid_block, hidden)
        return _convolution(self.model.quant_conv, _ended(encoder, hidden))


class LeanEncoder(FrameEncoder):
    """`FrameEncoder` that folds its convolutions when it is first run."""

    @functools.cached_property
    def folded(self) -> FoldedEncoder:
        """Of the weights that it has by then."""
        return FoldedEncoder(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.folded(image)


class FoldedDecoder(_Folded):
    """`FrameDecoder` so."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        decoder = self.model.decoder
        hidden = _convolution(decoder.conv_in, _convolution(self.model.post_quant_conv, latent))
        hidden = _middle(decoder.mid_block, hidden)
        for block in decoder.up_blocks:
            for module in [*block.resnets, *(block.upsamplers or [])]:
                hidden = _run(module, hidden)
        return _ended(decoder, hidden)


def _last_frame(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, T, h, w) -> (O, I, h, w): what a causal convolution multiplies the first frame with; before it all is 0."""
    return weight[:, :, -1].contiguous()


def _of_channels(gamma: torch.Tensor) -> torch.Tensor:
    return gamma.reshape(-1, 1, 1)


def _convolution(module: Any, given: torch.Tensor) -> torch.Tensor:
    across, _, down, *_ = module._padding
    return torch.nn.functional.conv2d(given, module.flat, module.bias, padding=(down, across))


def _norm(module: Any, given: torch.Tensor) -> torch.Tensor:
    """The root of the mean square of all channels is 1, then each is scaled."""
    return given / torch.sqrt((given * given).mean(dim=1, keepdim=True) + EPSILON) * module.flat


def _ended(half: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _convolution(half.conv_out, torch.nn.functional.silu(_norm(half.norm_out, hidden)))


def _middle(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    first, *others = block.resnets
    hidden = _run(first, hidden)
    for attention, resnet in zip(block.attentions, others, strict=True):
        hidden = _run(resnet, _run(attention, hidden))
    return hidden


@functools.singledispatch
def _run(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    raise TypeError(f"{type(module).__name__}: no part of Qwen-Image's autoencoder that is known")


@_run.register
def _(module: QwenImageResidualBlock, hidden: torch.Tensor) -> torch.Tensor:
    beside = hidden
    if isinstance(module.conv_shortcut, QwenImageCausalConv3d):
        beside = _convolution(module.conv_shortcut, hidden)
    for norm, convolution in ((module.norm1, module.conv1), (module.norm2, module.conv2)):
        hidden = _convolution(convolution, torch.nn.functional.silu(_norm(norm, hidden)))
    return hidden + beside


@_run.register
def _(module: QwenImageResample, hidden: torch.Tensor) -> torch.Tensor:
    """Half or double the size; what it does in time, it does from the second frame on."""
    first, convolution = module.resample
    if module.mode.startswith("upsample"):
        doubled = torch.nn.functional.interpolate(hidden, scale_factor=2.0, mode="nearest")  # as nearest-exact, at 2
        return convolution(doubled)
    return convolution(first(hidden))


@_run.register
def _(module: QwenImageAttentionBlock, hidden: torch.Tensor) -> torch.Tensor:
    parts = module.to_qkv(_norm(module.norm, hidden)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    query, key, value = (part[:, :, None] for part in parts)
    attended = attend(query, key, value).transpose(1, 2).reshape(hidden.shape)
    return module.proj(attended) + hidden
