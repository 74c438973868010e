"""What a network's config may be: others are refused by name, before one is built."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError
from axbake.networks.architecture import drawn_on
from axbake.networks.component import DENOISER, TEXT, Component, Files
from axbake.printable import shown
from axbake.runtime.tokenizer import VOCABULARY
from axbake.runtime.values import CANVAS, Conditioning, Latents

WORDS = ("picture", "mask")  # for what is in the columns `CANVAS`
MOST_CHANNELS, MOST_LEVELS, MOST_WORDS = 1 << 16, 16, 1 << 20


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_CHANNELS


def _is_counts(value: Any) -> bool:
    """One count for all levels, or one for each."""
    return _is_count(value) or (
        isinstance(value, list) and 0 < len(value) <= MOST_LEVELS and all(map(_is_count, value))
    )


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


UNET_ACTIVATIONS = ("swish", "silu", "mish", "gelu", "relu")  # diffusers' `activations.py`
TEXT_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")  # of transformers' `ACT2FN`
#: Entry of a config -> whether a value can be meant, and which can
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "attention_head_dim": (_is_counts, "a number above 0, or one for each level"),
    "num_attention_heads": (_is_counts, "a number above 0, or one for each level"),
    "norm_num_groups": (_is_count, "a number above 0"),
    "norm_eps": (_is_share, "a number between 0 and 1"),
    "layer_norm_eps": (_is_share, "a number between 0 and 1"),
    "act_fn": (lambda value: value in list(UNET_ACTIVATIONS), f"one of {', '.join(UNET_ACTIVATIONS)}"),
    "hidden_act": (lambda value: value in list(TEXT_ACTIVATIONS), f"one of {', '.join(TEXT_ACTIVATIONS)}"),
    "flip_sin_to_cos": (lambda value: isinstance(value, bool), "true or false"),
    "freq_shift": (lambda value: _is_number(value) and abs(value) < 1000, "a number"),
    "scaling_factor": (lambda value: _is_number(value) and 0 < value < 1000, "a number above 0"),
}
ANYTHING = (lambda value: True, "anything")


class UnknownFamily(AxbakeError):
    """The file's tensors fit no family, or axbake cannot bake this kind of model."""


class TensorMismatch(AxbakeError):
    """The file's tensors do not match those of the network exactly."""


class CanvasError(AxbakeError):
    """A denoiser takes a picture or a mask that the row does not give, or takes none though the row gives one."""


def _plain(value: Any) -> Any:
    """*value* of a JSON file, with tuples for lists, as entries of `Files.without` have them."""
    return tuple(value) if isinstance(value, list) else value


def check_told(path: Path, files: Files, told: Mapping[str, Any]) -> None:
    """Refuse a folder's config that speaks of a network of another make, or says what cannot be meant.

    Raises:
        UnknownFamily: lists the entries.
    """
    faults = [
        f"{name}: {shown(told[name], 80)}, wanted {' or '.join(map(str, wanted))}"
        for name, wanted in files.without.items()
        if name in told and _plain(told[name]) not in wanted
    ]
    faults += [
        f"{name}: {shown(told[name], 80)}, wanted {words}"
        for name in files.told
        if told.get(name) is not None
        for fits, words in [VALUES.get(name, ANYTHING)]
        if not fits(told[name])
    ]
    if faults:
        raise UnknownFamily(
            f"{path}: {files.folder}/config.json: {'; '.join(faults)}. axbake cannot export such a network."
        )


def check_limits(path: Path, component: str, config: dict) -> None:
    """Refuse shapes that no network has, before one is built from them, even one without memory."""
    numbers = [value for name, value in config.items() if type(value) is int and name != "vocab_size"]
    numbers += [
        value for values in config.values() if isinstance(values, list) for value in values if type(value) is int
    ]
    levels = [len(values) for values in config.values() if isinstance(values, list)]
    levels += [blocks for half in ("encoder", "decoder") for blocks in config.get(f"num_{half}_blocks", [])]
    deep = max([config.get("layers_per_block", 0), config.get("num_hidden_layers", 0) // 8, *levels])
    if (
        min(numbers) < 0
        or max(numbers) > MOST_CHANNELS
        or config.get("vocab_size", 0) > MOST_WORDS
        or deep > MOST_LEVELS
        or 0 in [width for name, widths in config.items() if name.endswith("block_out_channels") for width in widths]
    ):
        raise TensorMismatch(
            f"{path}: {component}: not a plausible width or depth (up to {max(numbers)} channels, {deep} levels)."
        )
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if width is not None and (type(heads) is not int or width % heads):
        raise TensorMismatch(f"{path}: {component}: {width} channels cannot be split into {heads} attention heads.")


def check_latents(path: Path, config: dict, latents: Latents) -> None:
    """Refuse networks that take or give other latents than *latents*.

    Raises:
        UnknownFamily: of other channels, or of other pixels a side for one of a latent's.
    """
    kinds = {5: "a depth-to-image checkpoint", 7: "an upscaler"}
    patch = config["patch_size"][0] if "latent_channels" in config and "patch_size" in config else 1  # that it packs
    beside = {latents.channels + latents.beside(masked=masked) for masked in (False, True)}
    found = {name: config[name] for name in ("in_channels", "out_channels") if "cross_attention_dim" in config}
    found |= {name: config[name] * patch**2 for name in ("latent_channels",) if name in config}
    for name, channels in found.items():
        if channels != latents.channels and not (name == "in_channels" and channels in beside):
            kind = kinds.get(channels, "a checkpoint with other latents")
            raise UnknownFamily(
                f"{path}: {name}: {channels}, wanted {latents.channels}: this is {kind}, which axbake does not bake."
                " Give the checkpoint for text to image, inpainting or instructions (InstructPix2Pix)."
            )
    levels = (
        config.get("encoder_block_out_channels") or config["block_out_channels"] if "latent_channels" in config else []
    )
    factor = patch * 2 ** (len(levels) - 1)  # each level but the last halves the picture
    if levels and factor != latents.factor:
        raise UnknownFamily(
            f"{path}: an autoencoder that makes one pixel of a latent of {factor} × {factor} of a picture, wanted "
            f"{latents.factor} × {latents.factor}. It belongs to another model; give a VAE for the checkpoint's "
            "family."
        )


#: What a denoiser draws on (`drawn_on`) -> what it is, and what to do about a row that gives something else
DRAWN_ON: dict[tuple[str, ...], tuple[str, str]] = {
    (): (
        "it is for text to image",
        "Empty the columns image and mask, or give a checkpoint for inpainting or for instructions (InstructPix2Pix).",
    ),
    CANVAS[:1]: (
        "it is for instructions (InstructPix2Pix)",
        "Fill in the column image with the picture to change, and leave the column mask empty.",
    ),
    CANVAS: (
        "it is for inpainting",
        "Fill in the columns image and mask: a picture, and a PNG of its size that is white where to paint.",
    ),
}


def check_canvas(component: str, config: Mapping[str, Any], *, given: Sequence[str]) -> None:
    """Refuse a denoiser of *config* that draws on something else than what the row gives.

    Args:
        given: of the columns `CANVAS`, those that the row fills in.

    Raises:
        CanvasError
    """
    wanted = drawn_on(config)
    if tuple(given) != wanted:
        kind, remedy = DRAWN_ON[wanted]
        found = " and ".join(
            f"{'a' if name in given else 'no'} {word}" for name, word in zip(CANVAS, WORDS, strict=True)
        )
        raise CanvasError(
            f"{component}: takes {config['in_channels']} channels: {kind}, but the row has {found}. {remedy}"
        )


def check_texts(
    path: Path, components: Sequence[Component], configs: Mapping[str, dict], conditioning: Conditioning
) -> None:
    """Refuse text encoders whose words are not CLIP's, or that do not speak of tokens of the denoiser's width.

    Args:
        configs: of the networks, by component.
        conditioning: of the family.

    Raises:
        TensorMismatch
    """
    for one in components:
        if one.role == TEXT and not one.host and configs[one.name]["vocab_size"] < VOCABULARY:
            raise TensorMismatch(
                f"{path}: {one.name}: has {configs[one.name]['vocab_size']} tokens, wanted CLIP's {VOCABULARY}: axbake "
                "reads prompts with CLIP's tokenizer. Give a checkpoint with CLIP's text encoder."
            )
    (denoiser,) = (one for one in components if one.role == DENOISER)
    widths = {one.name: one.width(configs[one.name]) for one in components if one.width}
    speaking = [conditioning.conditioner] if conditioning.conditioner else conditioning.encoders
    if conditioning.joined == "language":
        speaking = [one.name for one in components if one.language and one.name in conditioning.encoders]
    behind = [one.name for one in components if one.language and one.name in speaking]  # tokens of their own
    if len(behind) < len(speaking):
        speaking = [name for name in speaking if name not in behind]
    wrong = [widths[name] for name in behind if widths[name] != widths[denoiser.name]]
    given, heard = wrong[0] if wrong else sum(widths[name] for name in speaking), widths[denoiser.name]
    told = given if wrong else max(given, conditioning.width or 0)  # filled up to that
    if told != heard:
        raise TensorMismatch(
            f"{path}: its text encoder gives {given} channels per token, its {denoiser.name.replace('unet', 'UNet')} takes"
            f" {heard}. They do not belong to one model."
        )
    pooled = {one.name: one.pooled(configs[one.name]) for one in components if one.pooled}
    if pooled and sum(pooled[name] for name in conditioning.pooled.split()) != pooled[denoiser.name]:
        said = ", ".join(f"{name} {width}" for name, width in pooled.items())
        raise TensorMismatch(
            f"{path}: pooled prompts of different widths: {said} channels. They do not belong to one model."
        )
