"""Checkpoints: what a file is, and its components under diffusers' names.

Almost everything is decided from the header (names, shapes, types). Tensor data is only copied, and converted where it is stored
in eight bits.
"""

import functools
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axbake.containers import (
    CONVERTED,
    Container,
    Stored,
    form_of,
    open_container,
    open_safetensors,
    place_of,
    read_configs,
    scan_folder,
)
from axbake.errors import AxbakeError
from axbake.families import COMPONENTS, FAMILIES, Family, Layout, Shapes
from axbake.families.architecture import unet_variant
from axbake.families.others import recognise
from axbake.prediction import decide_sampling, gather_evidence, probe_unet, reasons
from axbake.weights import Description, Sampling, tensor_bytes, write_tensors

# Tensors that training leaves behind and no run of the model reads (CompVis' `ddpm.py`, Lightning, transformers 4).
LEFTOVERS = (
    (
        "model_ema.",
        "moving average of the UNet kept by training; the UNet itself is used, as web UIs, stable-diffusion.cpp and diffusers do",
    ),
    (".position_ids", "a constant: 0 to 76"),
    (".logit_scale", "only CLIP's training uses it"),
    (".text_projection", "only CLIP's pooled output uses it"),
    (".transformer.resblocks.23.", "Stable Diffusion 2.x takes what the last but one layer of its text encoder gives"),
    (".scale_input", "scale of an activation in 8 bits; axbake computes in 32 before it compiles"),
    (".input_scale", "scale of an activation in 8 bits; axbake computes in 32 before it compiles"),
    ("scaled_fp8", "says that weights in 8 bits have scales"),
    ("v_pred", "says that the UNet predicts the velocity"),
    ("ztsnr", "says that the schedule ends in pure noise"),
    ("safety_checker.", "looks at finished pictures; no part of drawing them"),
)
NOISE_SCHEDULE = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "lvlb_weights")

LATENT_CHANNELS = 4
#: Type that a weight is stored in -> type that it is imported as
PRECISIONS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32", "F8_E4M3": "F16", "F8_E5M2": "F16"}
SCALES = (".scale_weight", ".weight_scale")  # beside a weight in 8 bits, which is to be multiplied by it (ComfyUI)
NO_WEIGHTS = (*SCALES, ".scale_input", ".input_scale", "scaled_fp8")

#: What a diffusers folder's config says and shapes do not; it goes before the family's.
TOLD_BY_CONFIG = {
    "unet": (
        "attention_head_dim",
        "num_attention_heads",
        "norm_num_groups",
        "norm_eps",
        "act_fn",
        "flip_sin_to_cos",
        "freq_shift",
    ),
    "vae": ("norm_num_groups", "act_fn", "scaling_factor"),
    "text_encoder": ("hidden_act", "num_attention_heads", "layer_norm_eps"),
}


#: What a diffusers folder's config may say of parts that Stable Diffusion has not: anything else is another network.
WITHOUT: dict[str, dict[str, Any]] = {
    "unet": {
        "addition_embed_type": None,
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
        "cross_attention_norm": None,
        "dual_cross_attention": False,
        "encoder_hid_dim_type": None,
        "mid_block_scale_factor": 1,
        "resnet_out_scale_factor": 1,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_act_fn": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    "vae": {"latents_mean": None, "latents_std": None, "shift_factor": None},
    "text_encoder": {},
}


class UnknownFamily(AxbakeError):
    """The file's tensors fit no family, or are of a kind that axbake does not bake."""


class TensorMismatch(AxbakeError):
    """The file's tensors are not exactly those of the network that they describe."""


@dataclass(frozen=True)
class Source:
    """Where a tensor of a network comes from."""

    name: str  # in the file
    part: int = 0  # which of *parts* equal parts of its rows
    parts: int = 1
    scale: str | None = None  # name of the tensor that it is to be multiplied by


@dataclass(frozen=True)
class Part:
    """One component inside a checkpoint."""

    config: dict  # diffusers' form
    prefix: str  # of its names in the file
    sources: Mapping[str, Source]  # by diffusers name
    shapes: Shapes  # by diffusers name; 1×1 convolutions of the VAE's attention already as matrices


def _prefixes(shapes: Shapes, layout: Layout) -> list[str]:
    """What stands before the names of a network of *layout*, each time that it is there."""
    end = layout.marker
    return sorted(name.removesuffix(end) for name in shapes if name == end or name.endswith(f".{end}"))


def _find_names(
    path: Path, shapes: Shapes, component: str, layouts: tuple[Layout, ...]
) -> tuple[str, Mapping[str, Source]]:
    """Prefix of *component*'s names, and its tensors by their diffusers names.

    Raises:
        TensorMismatch: not there, there twice, or two tensors become one.
    """
    places = [(layout, prefix) for layout in layouts for prefix in _prefixes(shapes, layout)]
    # Converted files may have names of both layouts under one prefix.
    if len({prefix for _, prefix in places}) != 1:
        found = " and ".join(f"{prefix}{layout.marker}" for layout, prefix in places)
        wanted = " or ".join(layout.marker for layout in layouts)
        why = f"there are several: {found}" if found else f"wanted a tensor {wanted}, with any prefix"
        raise TensorMismatch(
            f"{path}: no telling where its {component} is: {why}. Give a whole checkpoint of one model."
        )
    layout, prefix = places[0]
    inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    rename = layout.renamer(inside)
    sources: dict[str, Source] = {}
    for name in sorted(inside):
        if name.endswith(NO_WEIGHTS):
            continue
        new = rename(name)
        news = (new,) if isinstance(new, str) else new or ()
        stem = name.removesuffix(".weight")
        scale = next((f"{prefix}{stem}{end}" for end in SCALES if f"{stem}{end}" in inside and stem != name), None)
        for part, each in enumerate(news):
            if each in sources:
                raise TensorMismatch(f"{path}: {sources[each].name} and {prefix}{name} are both {each}")
            sources[each] = Source(prefix + name, part, len(news), scale)
    return prefix, sources


def _part_shape(new: str, shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """Shape of a tensor once it is taken out of the file's."""
    # LDM's attention in the VAE has 1×1 convolutions, diffusers' has matrices.
    if ".attentions.0.to_" in new and shape[2:] == (1, 1):
        return shape[:2]
    return (shape[0] // source.parts, *shape[1:]) if source.parts > 1 and shape else shape


def find_family(container: Container) -> Family:
    """The one family whose UNet is in *container*.

    Raises:
        UnknownFamily: none or several; says what the file is where that can be told.
    """
    known = ", ".join(f"{family.name} ({family.title})" for family in FAMILIES.values())
    if other := recognise(container.shapes):
        raise UnknownFamily(f"{container.path}: this is {other.kind}. {other.sentence} Known families: {known}.")
    layouts = {layout.marker: layout for family in FAMILIES.values() for layout in family.components["unet"].layouts}
    shapes = container.shapes
    if not any(_prefixes(shapes, layout) for layout in layouts.values()):
        only = " It holds a UNet's moving average alone (model_ema.…); give the file that it was pruned from."
        raise UnknownFamily(
            f"{container.path}: {len(shapes)} tensors that fit no family; known: {known}. A UNet would have"
            f" {' or '.join(layouts)}.{only if any(name.startswith('model_ema.') for name in shapes) else ''}"
        )
    _, sources = _find_names(container.path, shapes, "unet", tuple(layouts.values()))
    unet = {new: shapes[source.name] for new, source in sources.items()}
    try:
        fitting = [family for family in FAMILIES.values() if family.fits(unet)]
    except (StopIteration, IndexError):
        fitting = []
    if len(fitting) != 1:
        raise UnknownFamily(
            f"{container.path}: a UNet of {len(unet)} tensors that is of no one family; known: {known}. Missing:"
            " cross-attention, by whose widths they are told apart (attn2.to_k.weight, proj_in.weight)."
        )
    return fitting[0]


def find_part(container: Container, family: Family, component: str) -> Part:
    """Tensors of *component* in a checkpoint of *family*, with the config they describe.

    Raises:
        UnknownFamily: a network of another kind than the family's, such as one for inpainting.
        TensorMismatch: they are not exactly the network's, by name and shape.
    """
    from axbake import components  # here, since who only looks at what a file is does without torch

    part = read_part(container, family, component)
    try:
        network = components.wanted_shapes(component, part.config)
    except (ValueError, TypeError, ArithmeticError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        raise TensorMismatch(
            f"{container.path}: {component}: its shapes describe no network that can be built: {str(error)[:300]}"
        ) from error
    _compare(container.path, component, part.shapes, network)
    check_channels(container.path, part.config)
    return part


def read_part(container: Container, family: Family, component: str) -> Part:
    """The same from the header alone, without comparing it with the network that its config describes.

    Raises:
        UnknownFamily: a network of another kind than the family's.
        TensorMismatch: not enough to tell its config, or types that are none of weights.
    """
    wanted = family.components[component]
    _check_vae(container, component)
    prefix, sources = _find_names(container.path, container.shapes, component, wanted.layouts)
    shapes = {new: _part_shape(new, container.tensors[source.name].shape, source) for new, source in sources.items()}
    try:
        config = wanted.architecture(shapes)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise TensorMismatch(
            f"{container.path}: {component}: cannot be read from {len(shapes)} tensors; without {error} there is no"
            " telling how wide or deep it is. The file is not a whole checkpoint of"
            f" {family.title}."
        ) from error
    told = container.configs.get(wanted.folder, {})
    _check_told(container.path, wanted.folder, told)
    config |= {name: told[name] for name in TOLD_BY_CONFIG[wanted.folder] if told.get(name) is not None}
    _check_limits(container.path, component, config)
    _check_types(container, component, sources)
    return Part(config, prefix, sources, shapes)


def _check_vae(container: Container, component: str) -> None:
    """Refuse VAEs of another kind by their name."""
    tiny = [name for name in container.tensors if name.endswith(("decoder.layers.0.weight", "decoder.layers.1.weight"))]
    if component.startswith("vae") and tiny:
        raise UnknownFamily(
            f"{container.path}: its VAE is an AutoencoderTiny (TAESD; {tiny[0]}), as SDXS has it. axbake bakes AutoencoderKL"
            " only; give a checkpoint of the model that holds one."
        )


def _check_told(path: Path, folder: str, told: Mapping[str, Any]) -> None:
    """Refuse a folder's config that speaks of a network of another make."""
    faults = [
        f"{name}: {str(told[name])[:80]}, wanted {value}"
        for name, value in WITHOUT[folder].items()
        if name in told and told[name] != value
    ]
    scale = told.get("scaling_factor", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1000:
        faults.append(f"scaling_factor: {str(scale)[:80]}, wanted a number above 0")
    if faults:
        raise UnknownFamily(
            f"{path}: {folder}/config.json: {'; '.join(faults)}. axbake has no export of such a network."
        )


MOST_CHANNELS, MOST_LEVELS = 1 << 16, 16


def _check_limits(path: Path, component: str, config: dict) -> None:
    """Refuse shapes that no network has before one is built from them, be it without memory."""
    numbers = [value for value in config.values() if type(value) is int]
    numbers += [
        value for values in config.values() if isinstance(values, list) for value in values if type(value) is int
    ]
    levels = [len(values) for values in config.values() if isinstance(values, list)]
    deep = max([config.get("layers_per_block", 0), config.get("num_hidden_layers", 0) // 8, *levels])
    if (
        min(numbers) < 0
        or max(numbers) > MOST_CHANNELS
        or deep > MOST_LEVELS
        or 0 in config.get("block_out_channels", [])
    ):
        raise TensorMismatch(
            f"{path}: {component}: no network is so wide, so deep or so empty (up to {max(numbers)} channels, {deep} levels)."
        )


def check_channels(path: Path, config: dict) -> None:
    """Refuse networks that take or give something else than latents of four channels."""
    kinds = {9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint", 5: "a depth-to-image checkpoint"}
    kinds |= {7: "an upscaler"}
    found = {name: config[name] for name in ("in_channels", "out_channels") if "cross_attention_dim" in config}
    found |= {name: config[name] for name in ("latent_channels",) if name in config}
    for name, channels in found.items():
        if channels != LATENT_CHANNELS:
            kind = kinds.get(channels, "a checkpoint of other latents")
            raise UnknownFamily(
                f"{path}: {name}: {channels}, wanted {LATENT_CHANNELS}: this is {kind}, which axbake does not bake."
                " Give the checkpoint for text to image."
            )
    if config.get("time_cond_proj_dim"):
        raise UnknownFamily(
            f"{path}: time_embedding.cond_proj: this is a UNet distilled for LCM, which takes the guidance as a further input of"
            " its time embedding; axbake does not bake it. Give the model's checkpoint without, and the scheduler lcm."
        )


def _check_types(container: Container, component: str, sources: Mapping[str, Source]) -> None:
    strange = [
        f"{source.name} is {container.tensors[source.name].dtype}"
        for source in sources.values()
        if container.tensors[source.name].dtype not in PRECISIONS
    ]
    if strange:
        raise TensorMismatch(
            f"{container.path}: {component}: {'; '.join(strange[:8])}. Weights are {', '.join(PRECISIONS)}; Pulsar2 quantises"
            " itself, so give the checkpoint that this was made from."
        )


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


def read_part_tensor(container: Container, part: Part, name: str) -> Any:
    """Tensor *name* of a component: in the precision it is stored in, or in fp16 where that has eight bits, scaled."""
    import torch

    source = part.sources[name]
    tensor = container.read(source.name)
    if source.scale:
        scale = container.read(source.scale).float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise TensorMismatch(f"{container.path}: {source.scale}: {tuple(scale.shape)} is no scale of {source.name}")
        tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    tensor = tensor.to(kinds[_precision(container, source)])
    # A piece at a time: the check of a whole tensor would take several times its memory.
    if not all(torch.isfinite(piece).all() for piece in tensor.reshape(-1).split(1 << 20)):
        raise TensorMismatch(f"{container.path}: {source.name} holds values that are not finite. The file is damaged.")
    rows = tensor.shape[0] // source.parts if source.parts > 1 else 0
    tensor = tensor[source.part * rows : (source.part + 1) * rows] if rows else tensor
    return tensor.reshape(part.shapes[name])


def _precision(container: Container, source: Source) -> str:
    """Type that a tensor is imported as."""
    return PRECISIONS[container.tensors[source.name].dtype]


def import_checkpoint(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    *,
    component: str,
    weights: Path,
    strengths: Sequence[float] = (),
    prediction: str = "",
    sidecar: str = "",
) -> None:
    """Write *component* of *checkpoint*, with *loras* in it, under diffusers' names, one tensor at a time.

    Args:
        checkpoint: safetensors file or diffusers folder.
        component: text_encoder, unet, vae_encoder or vae_decoder.
        loras: files, fused in this order (`axbake.loras.fusing`), and their *strengths*.
        weights: the safetensors file to write; its metadata holds the network's config (`axbake.weights`).
        prediction: what the table says that the UNet predicts: epsilon or v_prediction; empty: what the file says.
        sidecar: what the YAML beside the checkpoint says (`axbake.prediction.read_sidecar`).

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, UnknownPrediction, LoraError
    """
    container = open_container(checkpoint)
    family = find_family(container)
    part = find_part(container, family, component)
    if component == "unet":
        _check_widths(container.path, find_part(container, family, "text_encoder"), part)
    sampling = _sampling(container, family, part, prediction, sidecar, probing=True) if component == "unet" else None
    stored = {new: _precision(container, source) for new, source in part.sources.items()}
    read: Callable[[str], Any] = functools.partial(read_part_tensor, container, part)
    if loras:
        from axbake.loras.fusing import Fusion  # here, since a model without LoRAs does without LyCORIS

        given = list(zip(loras, strengths, strict=True))
        fusion = Fusion(component, part.shapes, given, width=token_width(part.config))
        stored, read = fusion.precisions(stored), fusion.reader(read)
    write_tensors(
        weights,
        {name: (kind, part.shapes[name]) for name, kind in stored.items()},
        lambda name: tensor_bytes(read(name)),
        metadata=Description(component, family.name, part.config, sampling).as_metadata(),
    )


def _sampling(
    container: Container, family: Family, unet: Part, prediction: str, sidecar: str, *, probing: bool
) -> Sampling:
    def probe() -> str:
        from axbake import components

        tensors = {name: read_part_tensor(container, unet, name).float() for name in unet.sources}
        return probe_unet(
            components.filled("unet", unet.config, tensors), context_width=unet.config["cross_attention_dim"]
        )

    return decide_sampling(
        gather_evidence(container, sidecar=sidecar),
        family=family,
        config=unet.config,
        prediction=prediction,
        path=container.path,
        probe=probe if probing else None,
    )


def convert_checkpoint(source: list[Path], *, checkpoint: Path) -> None:
    """Make one safetensors file, with the names as they are, of a checkpoint in any other form; of a recipe, what it merges.

    Args:
        source: files of the checkpoint, as `axbake.containers.files_of` lists them.
        checkpoint: safetensors file to write. Its metadata holds a folder's configs, and what was not taken over.

    Raises:
        UnreadableCheckpoint, UnsafeCheckpoint
    """
    from axbake.pickles import convert_pickle

    place = place_of(source)
    form = form_of(place)
    if form == "recipe":
        from axbake.merging import merge_checkpoints  # which reads checkpoints with this module

        merge_checkpoints(place, checkpoint=checkpoint)
        return
    said: dict[str, Any] = {"form": form, "bytes": sum(path.stat().st_size for path in source)}
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as directory:
        made = Path(directory) / "pickle.safetensors"
        if form == "pickle":
            answer = convert_pickle(place, made)
            said |= {name: answer[name] for name in ("left_out", "leftovers")}
            tensors |= open_safetensors(made).tensors
        elif form == "diffusers folder":
            folder = scan_folder(place)
            for name, files in folder.weights.items():
                for number, file in enumerate(files):
                    opened = file
                    if form_of(file) == "pickle":
                        opened = Path(directory) / f"{name}.{number}.safetensors"
                        said.setdefault("leftovers", []).extend(convert_pickle(file, opened)["leftovers"])
                    tensors |= {
                        f"{name}.{tensor}": stored for tensor, stored in open_safetensors(opened).tensors.items()
                    }
            said["configs"] = read_configs(folder)
        else:
            container = open_safetensors(place)
            tensors |= container.tensors
            metadata |= container.metadata
        view = Container(place, form, tensors, {})
        write_tensors(
            checkpoint,
            {name: (stored.dtype, stored.shape) for name, stored in tensors.items()},
            view.content,
            metadata=metadata | {CONVERTED: json.dumps(said, sort_keys=True)},
        )


def _why_unused(name: str) -> str:
    if any(name.startswith(start) for start in NOISE_SCHEDULE) and "." not in name:
        return "noise schedule of training; the scheduler column decides"
    # Names without prefix come with a dot too, so that both are the same here.
    return next((why for part, why in LEFTOVERS if part in f".{name}"), "unknown to this family")


def describe_checkpoint(
    checkpoint: Path, *, sha256: str, description: Path, prediction: str = "", sidecar: str = ""
) -> None:
    """Write what *checkpoint* is: family, configs, precision, parameters, and which tensors are not used and why.

    Args:
        sha256: of the file that the user brought.
        description: JSON to write.
        prediction, sidecar: as `import_checkpoint` has them.

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, UnknownPrediction
    """
    container = open_container(checkpoint)
    content = {"sha256": sha256, "autov2": sha256[:10]} | summary(container, prediction=prediction, sidecar=sidecar)
    description.write_text(json.dumps(content, indent=1) + "\n")


def summary(container: Container, *, prediction: str = "", sidecar: str = "") -> dict:
    """What a checkpoint is, as `checkpoint.json` has it."""
    family = find_family(container)
    parts = {component: find_part(container, family, component) for component in COMPONENTS}
    _check_widths(container.path, parts["text_encoder"], parts["unet"])
    evidence = gather_evidence(container, sidecar=sidecar)
    sampling = _sampling(container, family, parts["unet"], prediction, sidecar, probing=False)
    used = {name for part in parts.values() for source in part.sources.values() for name in (source.name, source.scale)}
    unused: dict[str, list[str]] = {}
    for name in sorted(set(container.tensors) - used):
        unused.setdefault(_why_unused(name), []).append(name)
    said = container.origin
    return {
        "bytes": said.get("bytes", sum(path.stat().st_size for path in {s.path for s in container.tensors.values()})),
        "container": said.get("form", container.format),
        "left_out_of_pickle": sorted({*said.get("left_out", []), *said.get("leftovers", [])}),
        "family": family.name,
        "title": family.title,
        "variant": unet_variant(parts["unet"].config),
        "prediction_type": sampling.prediction_type,
        "zero_terminal_snr": sampling.zero_terminal_snr,
        "prediction_why": reasons(evidence, family=family, prediction=prediction),
        "steps": sampling.steps,
        "scaling_factor": parts["vae_decoder"].config["scaling_factor"],
        "components": {
            component: {
                "names": f"{part.prefix}…",
                "parameters": sum(math.prod(shape) for shape in part.shapes.values()),
                "stored": sorted({container.tensors[source.name].dtype for source in part.sources.values()}),
                "precision": sorted({_precision(container, source) for source in part.sources.values()}),
                "scaled": sum(source.scale is not None for source in part.sources.values()),
                "config": part.config,
            }
            for component, part in parts.items()
        },
        "unused_tensors": [{"why": why, "count": len(names), "first": names[:5]} for why, names in unused.items()],
    }


def token_width(config: Mapping[str, Any]) -> int:
    """Channels of a token's embedding, which a text encoder gives and a UNet takes."""
    return config["cross_attention_dim"] if "cross_attention_dim" in config else config["hidden_size"]


def _check_widths(path: Path, text_encoder: Part, unet: Part) -> None:
    """Refuse a UNet and a text encoder that do not speak of tokens of the same width."""
    told, heard = token_width(text_encoder.config), token_width(unet.config)
    if told != heard:
        raise TensorMismatch(
            f"{path}: its text encoder gives {told} channels a token, its UNet takes {heard}. They are not of one model."
        )
