"""A model as one safetensors file with LDM's names, fp16, as stable-diffusion.cpp and web UIs read it."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from axbake.checkpoints.weights import (
    Description,
    read_description,
    read_shapes,
    read_tensor,
    tensor_bytes,
    write_tensors,
)
from axbake.errors import AxbakeError
from axbake.families import COMPONENTS, FAMILIES
from axbake.families.names import OPEN_CLIP, OPEN_CLIP_ENDS, RESNET, UNET_ENDS, VAE_ATTENTION

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP_PREFIX = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
# Of each level, whatever it holds: diffusers' converter numbers so, and stable-diffusion.cpp's narrow UNets expect its gaps.
STRIDE = 3
#: (family, prediction) -> architecture as Stability's model spec names it (github.com/Stability-AI/ModelSpec)
ARCHITECTURES = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v_prediction"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
}


class SingleFileError(AxbakeError):
    """The model cannot be written as one fp16 file of LDM names."""


def write_single_file(
    *, text_encoder: Path, unet: Path, vae_encoder: Path, vae_decoder: Path, single_file: Path
) -> None:
    """Write all components as one file, one tensor at a time.

    Distilled UNets are numbered as diffusers' `convert_diffusers_to_original_stable_diffusion.py` does, with gaps; but all their
    tensors have LDM's names, those too that it does not know.

    Args:
        text_encoder, unet, vae_encoder, vae_decoder: `weights/{component}.safetensors`.
        single_file: safetensors file to write; its metadata says what the UNet predicts.

    Raises:
        SingleFileError: a weight is too large for fp16, or LDM has no names for a network.
    """
    places = dict(zip(COMPONENTS, (text_encoder, unet, vae_encoder, vae_decoder), strict=True))
    descriptions = {component: read_description(path) for component, path in places.items()}
    _check_vae(descriptions["vae_decoder"])
    sources: dict[str, tuple[Path, tuple[str, ...]]] = {}  # name in the file -> where its rows are, one after the other
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for component, path in places.items():
        rename = _renamer(descriptions[component])
        for name, shape in sorted(read_shapes(path).items()):
            new = rename(name)
            names = (*sources.get(new, (path, ()))[1], name)
            sources[new] = path, names
            height = len(names) * shape[0]
            # LDM's attention in the VAE is made of 1×1 convolutions.
            convolution = (1, 1) if ".attn_1." in new and len(shape) == 2 else ()
            shapes[new] = "F16", (height, *shape[1:], *convolution)

    def read(name: str) -> memoryview:
        path, names = sources[name]
        # The parts of a fused tensor are query, key and value, in this order.
        order = sorted(names, key=lambda part: "qkv".find(part.partition("self_attn.")[2][:1]))
        tensor = (
            torch.cat([read_tensor(path, part) for part in order]) if len(names) > 1 else read_tensor(path, names[0])
        )
        half = tensor.to(torch.float16)
        if not torch.isfinite(half).all():
            raise SingleFileError(
                f"{name}: {float(tensor.abs().max()):g} is too large for fp16, whose largest is 65504."
            )
        return tensor_bytes(half)

    write_tensors(single_file, shapes, read, metadata=_metadata(descriptions["unet"]))


def _check_vae(vae: Description) -> None:
    if vae.config["_class_name"] != "AutoencoderKL":
        raise SingleFileError(
            f"The VAE is an {vae.config['_class_name']} (TAESD), which LDM has no names for; stable-diffusion.cpp and web UIs"
            " take it as a file of its own. Give the row a VAE that is an AutoencoderKL in the column vae."
        )


def _metadata(unet: Description) -> dict[str, str]:
    sampling = unet.sampling
    assert sampling, "a UNet's weights say how it is run"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[unet.family, sampling.prediction_type],
        "modelspec.implementation": "sgm",
        "modelspec.title": f"{FAMILIES[unet.family].title}, written by axbake",
        "modelspec.prediction_type": "v" if sampling.prediction_type == "v_prediction" else "epsilon",
    }


def _renamer(description: Description) -> Callable[[str], str]:
    """diffusers names of a component to LDM's."""
    if description.component == "unet":
        return lambda name: UNET + unet_name(name)
    if description.component == "text_encoder":
        # open_clip's only of the family that its names mean; LDM reads them so.
        return open_clip_name if description.family == "sd2" else lambda name: CLIP + name
    levels = len(description.config["block_out_channels"])
    return lambda name: VAE + vae_name(name, levels)


def _swapped_start(name: str, table: dict[str, str]) -> str | None:
    """*name* with its start replaced as in *table*, from right to left; None if no entry is its start."""
    for new, old in table.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def unet_name(name: str) -> str:
    """LDM's name of a UNet's tensor; what LDM has not keeps its own, as diffusers' converter leaves it."""
    if name == "time_embedding.cond_proj.weight":
        return name
    if end := _swapped_start(name, UNET_ENDS):
        return end
    if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = f"middle_block.{2 * int(m[2]) if m[1] == 'resnets' else 1}"
        return f"{place}.{_swapped_start(m[3], RESNET) if m[1] == 'resnets' else m[3]}"
    m = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert m, f"{name}: no tensor of a UNet"
    side, level, kind, index, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
    if kind == "downsamplers":
        return f"input_blocks.{STRIDE * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{STRIDE * level + 2}.{2 if level else 1}.{rest}"
    place = (
        f"input_blocks.{STRIDE * level + index + 1}" if side == "down" else f"output_blocks.{STRIDE * level + index}"
    )
    return f"{place}.0.{_swapped_start(rest, RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"


def vae_name(name: str, levels: int) -> str:
    """LDM's name of a tensor of an autoencoder of so many levels."""
    name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda m: f".up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    if m := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)", name):
        name = f"{m[1]}.mid.attn_1.{_swapped_start(m[2], VAE_ATTENTION)}"
    return name.replace("conv_shortcut", "nin_shortcut").replace(".conv_norm_out.", ".norm_out.")


def open_clip_name(name: str) -> str:
    """open_clip's name of a text encoder's tensor, with LDM's prefix; query, key and value get one name."""
    for new, old in OPEN_CLIP_ENDS.items():
        if name == old:
            return OPEN_CLIP_PREFIX + new
    m = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
    assert m, f"{name}: no tensor of a text encoder"
    place = f"{OPEN_CLIP_PREFIX}transformer.resblocks.{m[1]}"
    if fused := re.fullmatch(r"self_attn\.[qkv]_proj\.(weight|bias)", m[2]):
        return f"{place}.attn.in_proj_{fused[1]}"
    return f"{place}.{_swapped_start(m[2], OPEN_CLIP)}"
