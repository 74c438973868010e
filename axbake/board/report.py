"""A page of what a bundle did on a board, or on this host: the published tables' times beside theirs, steps, pictures."""

import base64
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from axbake.board.errors import UnreadableOutput
from axbake.board.published import PUBLISHED
from axbake.distance import psnr, ssim
from axbake.pages.html import render
from axbake.runtime.txt2img import SAMPLERS

logger = logging.getLogger(__name__)
WIDTH, HEIGHT = 560, 200  # of the plot, in pixels


def write_board_report(
    *,
    benchmark: Path,
    image: Path,
    reference: Path,
    simulation: Path,
    simulated: Path,
    distance: Path,
    page: Path,
) -> None:
    """Write the page of one benchmark.

    Args:
        benchmark: JSON of `benchmark_board` or `benchmark_host`.
        image, reference, simulation: PNGs: what was drawn there, by diffusers, and by emulated models on the host.
        simulated: `simulation/distance.json`, which says how the simulation was made.
        distance: JSON to write: PSNR in dB and SSIM of *image* against both others.
        page: HTML to write; it holds all it shows.
    """
    found = json.loads(benchmark.read_text(encoding="utf-8"))
    others = {"reference": reference, "simulation": simulation}
    apart = {name: distances(path, image) for name, path in others.items()}
    distance.write_text(json.dumps(apart, indent=1) + "\n", encoding="utf-8")
    html = render(
        "board.html.j2",
        found=found,
        on_board=found["ran_on"] == "board",
        sampler=SAMPLERS[found["settings"]["scheduler"]],
        published=PUBLISHED,
        pictures={"drawn": _data_uri(image)} | {name: _data_uri(path) for name, path in others.items()},
        simulated=json.loads(simulated.read_text(encoding="utf-8")),
        distances=apart,
        plot=plot_of_steps(found["drawings"][str(found["settings"]["steps"])]["seconds_of_each_step"]),
        parts=parts_of(found["models"]),
    )
    page.write_text(html, encoding="utf-8")


def parts_of(models: Iterable[str]) -> list[str]:
    """Rows of the table of *models*, by their addresses: before those of a component of several graphs, the component."""
    return list(dict.fromkeys(row for address in models for row in (address.partition("/")[0], address)))


def distances(wanted: Path, drawn: Path) -> dict[str, float]:
    """PSNR in dB, and SSIM, of the PNG *drawn* against the PNG *wanted*."""
    a, b = (np.asarray(Image.open(path).convert("RGB")) for path in (wanted, drawn))
    if a.shape != b.shape:
        raise UnreadableOutput(f"{drawn} is {b.shape[1]}x{b.shape[0]} pixels, {wanted} is {a.shape[1]}x{a.shape[0]}.")
    return {"psnr_db": round(psnr(a, b, peak=255), 2), "ssim": round(ssim(a, b), 4)}


def plot_of_steps(pictures: list[list[float]]) -> dict:
    """Places in a plot of `WIDTH` × `HEIGHT` of the seconds of each step of each picture; the axis of seconds begins at 0."""
    slowest = max(seconds for steps in pictures for seconds in steps) or 1.0
    count = max(map(len, pictures))
    decade = 10.0 ** np.floor(np.log10(slowest))
    top = next(
        float(end * decade) for end in (1, 2, 4, 6, 8, 10) if end * decade >= slowest
    )  # quarters of it are short

    def x(step: int) -> float:
        return round(WIDTH * (step + 0.5) / count, 1)

    def y(seconds: float) -> float:
        return round(HEIGHT * (1 - seconds / top), 1)

    return {
        "lines": [[(x(step), y(seconds)) for step, seconds in enumerate(steps)] for steps in pictures],
        "seconds": [(f"{part * top / 4:.3g}", y(part * top / 4)) for part in range(5)],
        "steps": [(step + 1, x(step)) for step in range(0, count, max(1, count // 10))],
    }


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
