"""Qwen-Image's autoencoder, which Anima draws with too: that of Wan 2.1, trained further, for one frame.

It makes films. Its convolutions go back in time, and before the first frame nothing is, so for a picture only the last slice of
each counts: graphs have convolutions of two dimensions. The names in its authors' files are those of github Wan-Video/Wan2.1,
`wan/modules/vae.py`; diffusers calls it `AutoencoderKLQwenImage`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from axbake.networks import autoencoder
from axbake.networks.autoencoder import VAE_DECODER, VAE_ENCODER
from axbake.networks.component import Files, Graph, Interface, Module, Naming, Rename, Shapes, Tensor
from axbake.runtime.values import Latents

#: Of each channel, as `AutoencoderKLQwenImage` has them
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
LATENTS = Latents(channels=16, factor=8, mean=MEAN, std=STD)
WITHOUT = {"latents_mean": (MEAN,), "latents_std": (STD,), "attn_scales": ((),), "input_channels": (3,)}
RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
RESIDUAL |= {"shortcut": "conv_shortcut"}
ENDS = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
BETWEEN = {"encoder": ("conv1", "quant_conv"), "decoder": ("conv2", "post_quant_conv")}


def _renamer(shapes: Shapes, half: str) -> Rename:
    """The authors' names of a half, or diffusers', to diffusers'."""
    ups = [int(m[1]) for name in shapes if (m := re.match(r"decoder\.upsamples\.(\d{1,3})\.resample\.", name))]
    level = 1 + min(ups, default=0)  # modules of a level of the decoder
    theirs, ours = BETWEEN[half]

    def rename(name: str) -> str | None:
        stem, _, kind = name.rpartition(".")
        if stem in (theirs, ours):
            return f"{ours}.{kind}"
        if not stem.startswith(f"{half}."):
            return None
        place = stem.removeprefix(f"{half}.")
        if place in ENDS:
            return f"{half}.{ENDS[place]}.{kind}"
        if m := re.fullmatch(r"middle\.([012])\.(.+)", place):
            return f"{half}.mid_block.{MIDDLE[m[1]]}.{RESIDUAL.get(m[2], m[2])}.{kind}"
        if m := re.fullmatch(r"downsamples\.(\d{1,3})\.(.+)", place):
            return f"{half}.down_blocks.{int(m[1])}.{RESIDUAL.get(m[2], m[2])}.{kind}"
        if m := re.fullmatch(r"upsamples\.(\d{1,3})\.(.+)", place):
            number, within = divmod(int(m[1]), level)
            part = f"resnets.{within}" if m[2] in RESIDUAL else "upsamplers.0"
            return f"{half}.up_blocks.{number}.{part}.{RESIDUAL.get(m[2], m[2])}.{kind}"
        return name

    return rename


def encoder_renamer(shapes: Shapes) -> Rename:
    """Names of the encoder half."""
    return _renamer(shapes, "encoder")


def decoder_renamer(shapes: Shapes) -> Rename:
    """Names of the decoder half."""
    return _renamer(shapes, "decoder")


def _config(latent: int, base: int, widths: list[int], blocks: int, later: list[bool]) -> dict:
    return {
        "_class_name": "AutoencoderKLQwenImage",
        "base_dim": base,
        "z_dim": latent,
        "dim_mult": [wide // base for wide in widths],
        "num_res_blocks": blocks,
        "temperal_downsample": later,
    }


def encoder_config(shapes: Shapes) -> dict:
    """Config of the autoencoder whose encoder half this is."""
    places = {int(m[1]) for name in shapes if (m := re.match(r"encoder\.down_blocks\.(\d{1,3})\.", name))}
    widths, blocks, later = [0], 0, []
    for place in sorted(places):
        start = f"encoder.down_blocks.{place}."
        if f"{start}conv1.weight" in shapes:
            widths[-1] = shapes[f"{start}conv1.weight"][0]
            blocks += len(widths) == 1
        else:
            widths.append(0)
            later.append(f"{start}time_conv.weight" in shapes)
    return _config(shapes["quant_conv.weight"][0] // 2, shapes["encoder.conv_in.weight"][0], widths, blocks, later)


def decoder_config(shapes: Shapes) -> dict:
    """The same of the decoder half."""
    ups = "decoder.up_blocks."
    levels = 1 + max(int(m[1]) for name in shapes if (m := re.match(r"decoder\.up_blocks\.(\d{1,3})\.", name)))
    widths = [shapes[f"{ups}{level}.resnets.0.conv1.weight"][0] for level in reversed(range(levels))]
    later = [f"{ups}{level}.upsamplers.0.time_conv.weight" in shapes for level in reversed(range(levels - 1))]
    blocks = sum(bool(re.fullmatch(r"decoder\.up_blocks\.0\.resnets\.\d\.conv1\.weight", name)) for name in shapes)
    return _config(shapes["decoder.conv_in.weight"][1], shapes["decoder.conv_out.weight"][1], widths, blocks - 1, later)


def build_encoder(config: Mapping) -> Module:
    """Its half that makes latents."""
    from axbake.networks.qwen_image_vae_modules import FrameEncoder

    return FrameEncoder(autoencoder.autoencoder(config))


def build_lean_encoder(config: Mapping) -> Module:
    """The same with convolutions of two dimensions, a third of the work."""
    from axbake.networks.qwen_image_vae_modules import LeanEncoder

    return LeanEncoder(autoencoder.autoencoder(config))


def build_decoder(config: Mapping) -> Module:
    """Its half that makes pictures."""
    from axbake.networks.qwen_image_vae_modules import FrameDecoder

    return FrameDecoder(autoencoder.autoencoder(config))


def decoder_interface(config: Mapping, *, height: int, width: int, program: str) -> Interface:
    """A latent in, pixels out."""
    latent = LATENTS.shape(height, width)
    inputs = autoencoder.decoder_inputs(program=program)
    return Interface({name: Tensor(latent, dtype) for name, dtype in inputs.items()}, ("sample",))


def folded_encoder(network: Module, face: Interface) -> Module:
    """The half with convolutions of two dimensions."""
    from axbake.networks.qwen_image_vae_modules import FoldedEncoder

    return FoldedEncoder(network)


def folded_decoder(network: Module, face: Interface) -> Module:
    """The half with convolutions of two dimensions."""
    from axbake.networks.qwen_image_vae_modules import FoldedDecoder

    return FoldedDecoder(network)


def _files(half: str, renamer: Any, config: Any) -> Files:
    return Files(
        namings=(Naming(f"{half}.conv1.weight", renamer), Naming(f"{half}.conv_in.weight", renamer)),
        architecture=config,
        folder=autoencoder.FOLDER,
        prefix=autoencoder.PREFIX,
        without=WITHOUT,
    )


ENCODER = replace(
    VAE_ENCODER,
    files=_files("encoder", encoder_renamer, encoder_config),
    build=build_encoder,
    lean=build_lean_encoder,
    graphs=(Graph("vae_encoder", autoencoder.encoder_inputs, autoencoder.encoder_interface, folded_encoder),),
)
DECODER = replace(
    VAE_DECODER,
    files=_files("decoder", decoder_renamer, decoder_config),
    build=build_decoder,
    graphs=(Graph("vae_decoder", autoencoder.decoder_inputs, decoder_interface, folded_decoder),),
)
