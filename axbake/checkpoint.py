"""Checkpoints: what a file is, and its components under diffusers' names.

Everything is decided from the header of the file (names, shapes, dtypes). Tensor data is only copied.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from axbake import components
from axbake.errors import AxbakeError
from axbake.families import COMPONENTS, FAMILIES, Family, Shapes
from axbake.weights import Description, read_places, write_tensors

# Tensors that training leaves behind and no run of the model reads (CompVis' `ddpm.py`, Lightning, transformers 4).
LEFTOVERS = (
    ("model_ema.", "moving average of the UNet kept by training; the UNet itself is used"),
    ("cond_stage_model.transformer.text_model.embeddings.position_ids", "a constant: 0 to 76"),
    ("cond_stage_model.logit_scale", "only CLIP's training uses it"),
    ("cond_stage_model.transformer.text_projection", "only CLIP's pooled output uses it"),
)
NOISE_SCHEDULE = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "lvlb_weights")

# Files that are no checkpoint axbake bakes, by a part of a tensor's name that only they have. The sources are the loaders
# of diffusers (`single_file_utils.py`), ComfyUI (`model_detection.py`) and stable-diffusion.cpp (`model_loader.cpp`).
KNOWN_OTHERS = (
    (
        ("lora_up.weight", "lora_down.weight", "lora_A.weight", "lora_B.weight", "hada_w1_a", "lokr_w1"),
        "a LoRA, which changes a checkpoint but is none; give the checkpoint that it was made for",
    ),
    (("control_model.", "controlnet_cond_embedding."), "a ControlNet, which axbake does not bake"),
    (("emb_params", "string_to_param"), "a textual-inversion embedding, which is no checkpoint"),
    (
        (
            "conditioner.embedders.1.",
            "conditioner.embedders.0.",
            "add_embedding.linear_1.weight",
            "label_emb.0.0.weight",
        ),
        "a Stable Diffusion XL checkpoint; axbake bakes Stable Diffusion 1.x",
    ),
    (("cond_stage_model.model.",), "a Stable Diffusion 2.x checkpoint; axbake bakes Stable Diffusion 1.x"),
    (("joint_blocks.0.",), "a Stable Diffusion 3 checkpoint; axbake bakes Stable Diffusion 1.x"),
    (("double_blocks.0.", "single_blocks.0."), "a FLUX checkpoint; axbake bakes Stable Diffusion 1.x"),
)


LATENT_CHANNELS = 4


class UnreadableCheckpoint(AxbakeError):
    """The file is no whole safetensors file."""


class UnknownFamily(AxbakeError):
    """The file's tensors fit no family, or several."""


class TensorMismatch(AxbakeError):
    """The file's tensors are not exactly those of the network that they describe."""


@dataclass(frozen=True)
class Header:
    """Names, shapes and dtypes of a safetensors file."""

    path: Path
    shapes: Shapes
    dtypes: Mapping[str, str]  # safetensors' names: F16, BF16, F32 …


def read_header(path: Path) -> Header:
    """Header of the safetensors file *path*.

    Raises:
        UnreadableCheckpoint: no such form, or cut off.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            return Header(
                path,
                {name: tuple(tensor.get_shape()) for name, tensor in slices.items()},
                {name: tensor.get_dtype() for name, tensor in slices.items()},
            )
    except (SafetensorError, OSError) as error:
        raise UnreadableCheckpoint(
            f"{path}: {path.stat().st_size if path.is_file() else 0} bytes that are no whole safetensors file"
            f" ({error}). Download it again and compare its SHA-256 with the page it is from."
        ) from error


def find_family(header: Header) -> Family:
    """The one family whose marks are all in *header*.

    Raises:
        UnknownFamily: none or several; says what the file is where that can be told.
    """
    fitting = [family for family in FAMILIES.values() if all(mark in header.shapes for mark in family.marks)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{family.name} ({family.title})" for family in FAMILIES.values())
    for marks, kind in KNOWN_OTHERS:
        if any(mark in name for name in header.shapes for mark in marks):
            raise UnknownFamily(f"{header.path}: this is {kind}. Known families: {known}.")
    lacking = {family.name: [m for m in family.marks if m not in header.shapes] for family in FAMILIES.values()}
    raise UnknownFamily(
        f"{header.path}: {len(header.shapes)} tensors that fit no family; known: {known}. Missing: "
        + "; ".join(f"for {name}: {', '.join(marks)}" for name, marks in lacking.items())
    )


@dataclass(frozen=True)
class Part:
    """One component inside a checkpoint."""

    config: dict  # diffusers' form
    sources: Mapping[str, str]  # diffusers name -> name in the file
    shapes: Shapes  # by diffusers name; 1×1 convolutions of the VAE's attention already as matrices


def find_part(header: Header, family: Family, component: str) -> Part:
    """Tensors of *component* in a checkpoint of *family*, with the config they describe.

    Raises:
        TensorMismatch: they are not exactly the network's, by name and shape.
    """
    wanted = family.components[component]
    inside = {
        name.removeprefix(wanted.prefix): shape
        for name, shape in header.shapes.items()
        if name.startswith(wanted.prefix)
    }
    rename = wanted.renamer(inside)
    sources: dict[str, str] = {}
    for name in sorted(inside):
        new = rename(name)
        if new in sources:
            raise TensorMismatch(f"{header.path}: {sources[new]} and {wanted.prefix}{name} are both {new}")
        if new:
            sources[new] = wanted.prefix + name
    shapes = {new: _as_matrix(new, header.shapes[old]) for new, old in sources.items()}
    try:
        config = wanted.architecture(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise TensorMismatch(
            f"{header.path}: {component}: cannot be read from {len(shapes)} tensors; without {error} there is no"
            " telling how wide or deep it is. The file is not a whole checkpoint of"
            f" {family.title}."
        ) from error
    _compare(header.path, component, shapes, components.wanted_shapes(component, config))
    _check_channels(header.path, config)
    return Part(config, sources, shapes)


def _check_channels(path: Path, config: dict) -> None:
    """Refuse networks that take or give something else than latents of four channels."""
    kinds = {9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint"}
    found = {name: config[name] for name in ("in_channels", "out_channels") if "cross_attention_dim" in config}
    found |= {name: config[name] for name in ("latent_channels",) if name in config}
    for name, channels in found.items():
        if channels != LATENT_CHANNELS:
            kind = kinds.get(channels, "a checkpoint of other latents")
            raise UnknownFamily(
                f"{path}: {name}: {channels}, wanted {LATENT_CHANNELS}: this is {kind}, which axbake does not bake."
                " Give the checkpoint for text to image."
            )


def _as_matrix(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a VAE attention weight without the two 1s that LDM's 1×1 convolutions have and diffusers' matrices not."""
    return shape[:2] if ".attentions.0.to_" in name and shape[2:] == (1, 1) else shape


def _compare(path: Path, component: str, found: Shapes, wanted: Shapes) -> None:
    problems = [f"{name}: missing, wanted {shape}" for name, shape in wanted.items() if name not in found]
    problems += [
        f"{name}: {shape}, which the network has no use for" for name, shape in found.items() if name not in wanted
    ]
    problems += [
        f"{name}: found {found[name]}, wanted {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise TensorMismatch(f"{path}: {component}: {'; '.join(problems[:8])}{more}")


def import_checkpoint(checkpoint: Path, *, component: str, weights: Path) -> None:
    """Write *component* of *checkpoint* under diffusers' names, in the precision it is stored in, one tensor at a time.

    Args:
        checkpoint: single-file safetensors with LDM names.
        component: text_encoder, unet, vae_encoder or vae_decoder.
        weights: the safetensors file to write; its metadata holds the network's config (`axbake.weights`).

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch
    """
    header = read_header(checkpoint)
    family = find_family(header)
    part = find_part(header, family, component)
    places = read_places(checkpoint)
    with checkpoint.open("rb") as file:

        def read(name: str) -> bytes:
            start, end = places[part.sources[name]]
            file.seek(start)
            return file.read(end - start)

        write_tensors(
            weights,
            {new: (header.dtypes[old], part.shapes[new]) for new, old in part.sources.items()},
            read,
            metadata=Description(component, family.name, part.config).as_metadata(),
        )


def _why_unused(name: str) -> str:
    if any(name.startswith(start) for start in NOISE_SCHEDULE) and "." not in name:
        return "noise schedule of training; the scheduler column decides"
    return next((why for start, why in LEFTOVERS if name.startswith(start)), "unknown to this family")


def describe_checkpoint(checkpoint: Path, *, records: list[Path], sha256: str, description: Path) -> None:
    """Write what *checkpoint* is: family, configs, precision, parameters, and which tensors are not used and why.

    Args:
        records: what `axbake.fetch` says of a fetched file; none of the user's own.
        sha256: of the user's own file.
        description: JSON to write.

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch
    """
    header = read_header(checkpoint)
    family = find_family(header)
    parts = {component: find_part(header, family, component) for component in COMPONENTS}
    used = {old for part in parts.values() for old in part.sources.values()}
    unused: dict[str, list[str]] = {}
    for name in sorted(set(header.shapes) - used):
        unused.setdefault(_why_unused(name), []).append(name)
    fetched = json.loads(records[0].read_text(encoding="utf-8")) if records else {}
    content = {
        "sha256": fetched.get("sha256", sha256),
        "autov2": fetched.get("sha256", sha256)[:10],
        "fetched": fetched or None,
        "bytes": checkpoint.stat().st_size,
        "family": family.name,
        "title": family.title,
        "prediction_type": family.prediction_type,
        "scaling_factor": family.scaling_factor,
        "components": {
            component: {
                "parameters": sum(math.prod(shape) for shape in part.shapes.values()),
                "precision": sorted({header.dtypes[old] for old in part.sources.values()}),
                "config": part.config,
            }
            for component, part in parts.items()
        },
        "unused_tensors": [{"why": why, "count": len(names), "first": names[:5]} for why, names in unused.items()],
    }
    description.write_text(json.dumps(content, indent=1) + "\n")
