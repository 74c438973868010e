"""Places of curves and of their axes in a page's plots. The pages draw them as SVG, in colours that follow light and dark."""

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 150  # of the plot inside its axes, in units of the SVG


@dataclass(frozen=True)
class Plot:
    """A curve in a frame of `WIDTH` × `HEIGHT`; y grows downwards."""

    label: str  # of the horizontal axis
    points: list[tuple[float, float]]
    x_ticks: list[tuple[str, float]]  # what stands there, and where
    y_ticks: list[tuple[str, float]]


def coverage_plot(curve: list[float]) -> Plot:
    """*curve*, coverage of 0 to 1 by number of samples from 1 on: samples in octaves, coverage up to 1."""
    lowest = math.floor(curve[0] * 10) / 10 if curve[0] < 1 else 0.0

    def x(samples: int) -> float:
        return round(WIDTH * math.log(samples) / math.log(max(2, len(curve))), 1)

    def y(share: float) -> float:
        return round(HEIGHT * (1 - share) / (1 - lowest), 1)

    tenths = range(round(10 * lowest), 11, 1 if lowest >= 0.5 else 2)
    return Plot(
        "samples",
        [(x(number), y(share)) for number, share in enumerate(curve, start=1)],
        [(str(2**power), x(2**power)) for power in range(len(curve).bit_length())],
        [(f"{10 * share} %", y(share / 10)) for share in tenths],
    )


def decibel_plot(by_step: list[float]) -> Plot:
    """PSNR in dB, one figure a step from 1 on; the vertical axis begins at a multiple of five below the least."""
    low = 5 * math.floor(min(by_step) / 5)
    high = max(low + 5, 5 * math.ceil(max(by_step) / 5))
    between = max(1, len(by_step) - 1)
    grid = 5 * max(1, math.ceil((high - low) / 30))

    def x(step: int) -> float:
        return round(WIDTH * (step - 1) / between, 1)

    def y(decibels: float) -> float:
        return round(HEIGHT * (high - decibels) / (high - low), 1)

    marked = range(1, len(by_step) + 1, max(1, len(by_step) // 5))
    return Plot(
        "step",
        [(x(step), y(decibels)) for step, decibels in enumerate(by_step, start=1)],
        [(str(step), x(step)) for step in marked],
        [(f"{decibels} dB", y(decibels)) for decibels in range(low, high + 1, grid)],
    )
