"""One page a model: settings, pictures, distances, sizes, times. It holds all it shows, so it can be sent as a file."""

import base64
import csv
import json
import math
from pathlib import Path

import jinja2

TEMPLATE = Path(__file__).with_suffix(".html.j2")


def write_report(
    *,
    model: str,
    checkpoint: Path,
    drawn: Path,
    reference: Path,
    simulation: Path,
    distance: Path,
    attribution: Path,
    calibration: Path,
    check: Path,
    preflight: Path,
    parities: list[Path],
    records: list[Path],
    benchmarks: list[Path],
    page: Path,
) -> None:
    """Write the page of *model*.

    Args:
        checkpoint: `checkpoint.json`.
        drawn: how the reference picture was made, JSON.
        reference, simulation: PNGs.
        distance: JSON of the simulation.
        attribution: `simulation/attribution.json`.
        calibration, check: `calibration/unet.json` and `unet.check.json`.
        preflight: `preflight.json`.
        parities, records: JSONs of parity and compile, one a component.
        benchmarks: Snakemake's benchmark files, one a job.
    """
    described = json.loads(checkpoint.read_text())
    made = {entry["component"]: entry for entry in map(_read_json, records)}
    near = {entry["component"]: entry for entry in map(_read_json, parities)}
    components = {
        name: {
            "parameters": part["parameters"],
            "precision": ", ".join(part["precision"]),
            "psnr_db": near[name]["psnr_db"],
            "bytes": made[name]["bytes"],
            "version": made[name]["version"],
        }
        for name, part in described["components"].items()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = environment.from_string(TEMPLATE.read_text()).render(
        model=model,
        emulated=any(entry["emulated"] for entry in made.values()),
        reference=_data_uri(reference),
        simulation=_data_uri(simulation),
        distance=_read_json(distance),
        attribution=_read_json(attribution)["quantised"],
        calibration=_read_json(calibration),
        plot=_plot(_read_json(calibration)["coverage_by_samples"]),
        check=_read_json(check),
        findings=_read_json(preflight)["findings"],
        settings=_read_json(drawn),
        checkpoint=described,
        components=components,
        jobs=[_read_benchmark(path) for path in benchmarks],
    )
    page.write_text(html, encoding="utf-8")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _plot(curve: list[float]) -> dict[str, list]:
    """Places of *curve*, coverage by number of samples, in a plot of 560 × 200 pixels: samples in octaves, coverage up to 1."""
    lowest = math.floor(curve[0] * 10) / 10 if curve[0] < 1 else 0.0

    def x(samples: int) -> float:
        return round(560 * math.log(samples) / math.log(max(2, len(curve))), 1)

    def y(share: float) -> float:
        return round(200 * (1 - share) / (1 - lowest), 1)

    octaves = [2**power for power in range(len(curve).bit_length())]
    tenths = [share / 10 for share in range(round(10 * lowest), 11)]
    return {
        "points": [(x(number), y(share)) for number, share in enumerate(curve, start=1)],
        "samples": [(number, x(number)) for number in octaves],
        "shares": [(share, y(share)) for share in tenths],
    }


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _read_benchmark(path: Path) -> dict:
    """Name and wall time in seconds of a job."""
    with path.open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    return {"name": " ".join(path.with_suffix("").parts[2:]), "seconds": float(row["s"])}
