"""What the page of a model says of precision layer by layer: the trade as a curve, and the error along the network."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axbake.pages.gallery import picture_uri, read_picture
from axbake.pages.plots import HEIGHT, WIDTH, Plot

POINTS = {"U16": "all layers in 16 bits", "recipe": "the recipe", "U8": "all layers in 8 bits"}


@dataclass(frozen=True)
class Trade:
    """A recipe's JSON, its curve, the three points on it with their names, and their pictures."""

    said: dict[str, Any]
    plot: Plot
    marks: list[tuple[str, float, float]]
    pictures: list[tuple[str, str, dict[str, Any]]]  # name, data URI, figures


@dataclass(frozen=True)
class Along:
    """The error after each layer: JSON, a plot, for each layer its place in it and what it is, and the worst layers."""

    said: dict[str, Any]
    plot: Plot
    layers: list[tuple[float, float, str]]
    worst: list[dict[str, Any]]


def read_trade(files: Sequence[Path]) -> Trade | None:
    """The trade in *files*: JSON, and PNGs in the order of `POINTS`; None of no files."""
    if not files:
        return None
    trade, *images = files
    said = json.loads(trade.read_text(encoding="utf-8"))
    points = said["points"]
    drawn = [(points[name]["narrow_share"], points[name]["latent_psnr_db"]) for name in POINTS]
    curve = [(one["narrow_share"], one["forecast_db"]) for one in said["curve"]]
    low, high = _bounds([decibels for _, decibels in [*curve, *drawn]])

    def place(share: float, decibels: float) -> tuple[float, float]:
        return round(WIDTH * share, 1), round(HEIGHT * (high - decibels) / (high - low), 1)

    plot = Plot(
        "multiplications in 8 bits",
        [place(*one) for one in curve],
        [(f"{share} %", WIDTH * share / 100) for share in range(0, 101, 25)],
        _ticks(low, high),
    )
    marks = [(text, *place(*one)) for text, one in zip(POINTS.values(), drawn, strict=True)]
    pictures = [
        (text, picture_uri(read_picture(image)), points[name])
        for (name, text), image in zip(POINTS.items(), images, strict=True)
    ]
    return Trade(said, plot, marks, pictures)


def read_along(nodes: Path) -> Along:
    """The comparison in `simulation/nodes.json` (`axbake.quality.nodes`)."""
    said = json.loads(nodes.read_text(encoding="utf-8"))
    layers = said["layers"]
    shown = [min(one["sqnr_db"], MOST) for one in layers]
    low, high = _bounds(shown)
    between = max(1, len(layers) - 1)
    points = [
        (round(WIDTH * number / between, 1), round(HEIGHT * (high - decibels) / (high - low), 1))
        for number, decibels in enumerate(shown)
    ]
    plot = Plot("layers, from the input to the output", points, [], _ticks(low, high))
    told = [(x, y, _layer(one)) for (x, y), one in zip(points, layers, strict=True)]
    return Along(said, plot, told, [layers[place] for place in said["worst"]])


MOST = 100  # dB; what is above was not rounded yet


def _layer(one: dict[str, Any]) -> str:
    """A layer in a line: what the pointer over it shows."""
    span = (
        f"{one['type']}, {one['low']} to {one['high']}, {100 * one['clipped']:.3g} % clipped"
        if one["low"] is not None
        else "float"
    )
    return f"{one['layer']} ({one['operator']}): {one['sqnr_db']} dB; {span}"


def _bounds(decibels: Sequence[float]) -> tuple[int, int]:
    low = 5 * math.floor(min(decibels) / 5)
    return low, max(low + 5, 5 * math.ceil(max(decibels) / 5))


def _ticks(low: int, high: int) -> list[tuple[str, float]]:
    grid = 5 * max(1, math.ceil((high - low) / 30))
    return [
        (f"{decibels} dB", round(HEIGHT * (high - decibels) / (high - low), 1))
        for decibels in range(low, high + 1, grid)
    ]
