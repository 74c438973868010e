"""How long drawing took and where, as the programs of a bundle write it with `--timings`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .session import CARDS
from .txt2img import Drawing

DIGITS = 6  # of seconds
PACKAGES = ("numpy", "pillow", "tokenizers", "onnxruntime", "axengine")


def timings(
    *,
    provider: str,
    load_seconds: dict[str, float],
    card: dict[str, Any],
    pictures: list[dict[str, Any]],
    total_seconds: float,
    **about: Any,
) -> dict[str, Any]:
    """What `--timings` writes: wall-clock seconds, on this machine, copies to and from a card included.

    Args:
        provider: that ran the models.
        load_seconds: by component.
        card: what it loaded and copied (`axbake.runtime.card_chain.card_counts`); empty where that is not counted.
        pictures: one entry each (`picture_timings`).
        about: what was drawn, and with what.
    """
    runtime = next((name for name, card in CARDS.items() if card == provider), "onnxruntime")
    return {
        **about,
        "runtime": runtime,
        "provider": provider,
        "host": host(),
        "load_seconds": {name: round(seconds, DIGITS) for name, seconds in load_seconds.items()},
        **({"card": {**card, "load_seconds": round(card["load_seconds"], DIGITS)}} if card else {}),
        "pictures": pictures,
        "total_seconds": round(total_seconds, DIGITS),
    }


def picture_timings(drawing: Drawing) -> dict[str, Any]:
    """The times of one drawing; of its steps those that ran the denoiser."""
    return {
        "text_embedding_seconds": round(drawing.text_embedding_seconds, DIGITS),
        "step_seconds": [round(seconds, DIGITS) for seconds in drawing.step_seconds],
        "decode_seconds": round(drawing.decode_seconds, DIGITS),
        "total_seconds": round(drawing.total_seconds, DIGITS),
        "runs": {name: [round(seconds, DIGITS) for seconds in runs] for name, runs in drawing.seconds.items()},
    }


def host() -> dict[str, Any]:
    """This machine, as far as it says something of times; without its name."""
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": packages,
    }
