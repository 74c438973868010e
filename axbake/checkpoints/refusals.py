"""What a network's config may be: others are refused by name, before one is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError
from axbake.networks.component import Files
from axbake.runtime.values import Latents

MOST_CHANNELS, MOST_LEVELS = 1 << 16, 16


class UnknownFamily(AxbakeError):
    """The file's tensors fit no family, or are of a kind that axbake does not bake."""


class TensorMismatch(AxbakeError):
    """The file's tensors are not exactly those of the network that they describe."""


def check_told(path: Path, files: Files, told: Mapping[str, Any]) -> None:
    """Refuse a folder's config that speaks of a network of another make."""
    faults = [
        f"{name}: {str(told[name])[:80]}, wanted {' or '.join(map(str, wanted))}"
        for name, wanted in files.without.items()
        if name in told and told[name] not in wanted
    ]
    scale = told.get("scaling_factor", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1000:
        faults.append(f"scaling_factor: {str(scale)[:80]}, wanted a number above 0")
    if faults:
        raise UnknownFamily(
            f"{path}: {files.folder}/config.json: {'; '.join(faults)}. axbake has no export of such a network."
        )


def check_limits(path: Path, component: str, config: dict) -> None:
    """Refuse shapes that no network has before one is built from them, be it without memory."""
    numbers = [value for value in config.values() if type(value) is int]
    numbers += [
        value for values in config.values() if isinstance(values, list) for value in values if type(value) is int
    ]
    levels = [len(values) for values in config.values() if isinstance(values, list)]
    levels += [blocks for half in ("encoder", "decoder") for blocks in config.get(f"num_{half}_blocks", [])]
    deep = max([config.get("layers_per_block", 0), config.get("num_hidden_layers", 0) // 8, *levels])
    if (
        min(numbers) < 0
        or max(numbers) > MOST_CHANNELS
        or deep > MOST_LEVELS
        or 0 in [width for name, widths in config.items() if name.endswith("block_out_channels") for width in widths]
    ):
        raise TensorMismatch(
            f"{path}: {component}: no network is so wide, so deep or so empty (up to {max(numbers)} channels, {deep} levels)."
        )


def check_channels(path: Path, config: dict, latents: Latents) -> None:
    """Refuse networks that take or give other latents than *latents*."""
    kinds = {9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint", 5: "a depth-to-image checkpoint"}
    kinds |= {7: "an upscaler"}
    found = {name: config[name] for name in ("in_channels", "out_channels") if "cross_attention_dim" in config}
    found |= {name: config[name] for name in ("latent_channels",) if name in config}
    for name, channels in found.items():
        if channels != latents.channels:
            kind = kinds.get(channels, "a checkpoint of other latents")
            raise UnknownFamily(
                f"{path}: {name}: {channels}, wanted {latents.channels}: this is {kind}, which axbake does not bake."
                " Give the checkpoint for text to image."
            )
