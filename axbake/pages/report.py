"""One page a model: pictures, distances, calibration, sizes, times, and where all of it comes from."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from axbake.jobs.record import JobRecord, read_records
from axbake.judging import POOR, judge_picture
from axbake.networks.component import DENOISER
from axbake.pages.gallery import difference_maps, picture_uri, read_picture, thumbnail_uri
from axbake.pages.html import render
from axbake.pages.plots import coverage_plot, decibel_plot
from axbake.pages.precision import read_along, read_trade
from axbake.pages.timeline import timeline

logger = logging.getLogger(__name__)
WIDEST = 5  # residual sums that the page names


def write_report(
    *,
    model: str,
    loras: list[dict[str, Any]],
    advice: list[str],
    roles: dict[str, str],
    limits: dict[str, Any],
    addresses: list[str],
    components: list[str],
    logs: list[str],
    checkpoint: Path,
    drawn: Path,
    activations: Path,
    reference: Path,
    floating: Path,
    simulation: Path,
    comparison: list[Path],
    distance: Path,
    attribution: Path,
    calibration: Path,
    residuals: Path,
    held_out: Path,
    preflight: Path,
    verdict: Path,
    parities: list[Path],
    records: list[Path],
    checks: list[Path],
    nodes: Path,
    page: Path,
    facts: Path,
    trade: Sequence[Path] = (),
) -> None:
    """Write the page of *model*, and what it says as JSON.

    Args:
        addresses: of all graphs, or of a component whose layers were built at once its name, in the order of *records*.
        components: in the order of *parities* and *checks*.
        loras: those of its row: `name`, and the strengths for `text_encoder` and `unet`.
        advice: what of the row has no effect, or another than its writer may expect; sentences without full stops.
        roles: of the components.
        limits: config's `picture`.
        checkpoint: `checkpoint.json`.
        drawn: how the reference picture was made, JSON.
        activations: the largest activation in the VAE decoder that drew it, JSON.
        reference, floating, simulation: PNGs: of diffusers, of the float VAE decoder's graph, of the compiled models.
        comparison: PNG and JSON of `axbake.toolchain.comparison`; empty where config wants none.
        distance: JSON of the simulation.
        attribution: `simulation/attribution.json`.
        calibration, held_out: what the denoiser was calibrated with, and `simulation/held_out.json`.
        residuals: `calibration/{denoiser}.residuals.json`.
        preflight, verdict: `preflight.json`, `verdict.json`.
        parities, checks: JSONs of parity, and of the check of what was compiled, one a component.
        records: JSONs of the compiles, one a graph.
        logs: of the jobs that made all this; one that is gone is skipped. No inputs of the rule, which would cost a dry run
            more than all other inputs of a model together: what writes them makes some other input too.
        nodes: the comparison of the denoiser layer by layer (`axbake.quality.nodes`).
        trade: of a denoiser with a recipe: its JSON and pictures (`axbake.pages.precision`); else empty.
        page: HTML to write.
        facts: JSON to write, which `axbake.pages.overview` reads of all models.
    """
    made, compared = [_read_json(path) for path in records], [_read_json(path) for path in checks]
    distances = _read_json(distance)
    described, before = _read_json(checkpoint), _read_json(preflight)
    thresholds = _read_json(verdict)
    quantised = _read_json(attribution)["quantised"]
    judged = judge_picture(distances, quantised, roles, limits)
    if judged["verdict"] == POOR:
        logger.warning("POOR %s. Try: %s.", judged["why"], "; ".join(judged["advice"]))
    graphs = dict(zip(addresses, made, strict=True))
    by_job = {_job(log, model): read_records(Path(log)) for log in logs}
    jobs = [record for of_one in by_job.values() for record in of_one]
    pictures = {
        "Reference": read_picture(reference),
        "Float ONNX": read_picture(floating),
        "Emulated" if distances["emulated"] else "Compiled": read_picture(simulation),
    }
    said = {
        "model": model,
        "emulated": distances["emulated"],  # what is drawn; hosts do not draw with others
        "models_emulated": any(entry["emulated"] for entry in made),
        "toolchain": made[0]["version"],
        "family": described["title"],
        "settings": _read_json(drawn),
        "loras": loras,
        "advice": advice + _unused_parameters(described),
        "checkpoint": {name: value for name, value in described.items() if isinstance(value, str | int | float | bool)},
        "distance": distances,
        "largest_activation": _read_json(activations),
        "attribution": quantised,
        "comparison": _read_json(comparison[1]) if comparison else None,
        "picture": judged,
        "components": {
            name: _component(name, described["components"][name], graphs, before, _read_json(parity), check, thresholds)
            for name, parity, check in zip(components, parities, compared, strict=True)
        },
        "jobs": [{"job": job} | asdict(record) for job, of_one in by_job.items() for record in of_one],
        "times": times(jobs),
        "versions": {tool: version for record in jobs for tool, version in record.tools.items()},
        "thumbnails": [thumbnail_uri(pictures["Reference"]), thumbnail_uri(read_picture(simulation))],
    }
    facts.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    covered = _read_json(calibration)
    gain, shown = _gallery(pictures)
    html = render(
        "report.html.j2",
        **said,
        float16_max=float(np.finfo(np.float16).max),
        pictures=shown,
        gain=gain,
        limits=limits,
        timeline=timeline(by_job),
        addresses=addresses,
        calibration=covered,
        residuals=_widest(_read_json(residuals)),
        denoiser=next(name for name, role in roles.items() if role == DENOISER),
        first=picture_uri(read_picture(comparison[0])) if comparison else None,
        held_out=_read_json(held_out),
        coverage_plot=coverage_plot(covered["coverage_by_samples"]),
        latent_plot=decibel_plot(said["distance"]["latent_psnr_db_by_step"]),
        findings=before["findings"],
        trade=read_trade(trade),
        along=read_along(nodes),
    )
    page.write_text(html, encoding="utf-8")


def _widest(residuals: dict) -> dict:
    """With the sums of which U16 keeps least."""
    known = {name: one for name, one in residuals["sums"].items() if one["u16_db"] is not None}
    order = sorted(known, key=lambda name: known[name]["u16_db"])
    return residuals | {"widest": {name: known[name] for name in order[:WIDEST]}}


def _job(log: str, model: str) -> str:
    """Name of the job whose *log* it is: `onnx/unet`."""
    return log.rpartition(f"logs/{model}/")[2].removesuffix(".log")


def _unused_parameters(described: dict) -> list[str]:
    """A sentence about the parameters of the address that changed nothing, if there were any."""
    unused = (described["fetched"] or {}).get("unused_parameters", [])
    return [f"the checkpoint's address has parameters that change nothing here: {', '.join(unused)}"] if unused else []


def times(jobs: list[JobRecord]) -> dict[str, float]:
    """Sums over *jobs*: counts, and wall times in seconds.

    Returns:
        `jobs`, `stored`: how many there are, and of how many the result came from the build cache. `work_seconds`: of all builds,
        whenever and wherever they ran. `saved_seconds`: of the stored ones' builds, less the placing.
    """
    stored = [record for record in jobs if record.stored]
    return {
        "jobs": len(jobs),
        "stored": len(stored),
        "work_seconds": round(sum(record.work_seconds for record in jobs), 1),
        "saved_seconds": round(sum(max(0.0, record.work_seconds - record.seconds) for record in stored), 1),
    }


def _component(
    name: str, described: dict, graphs: dict[str, dict], before: dict, parity: dict, check: dict, limits: dict
) -> dict[str, Any]:
    """What the page tells of a component, its graphs together; `compiled_sqnr_db` is None where config wants no sample run."""
    own = [graph for graph in graphs if graph.partition("/")[0] == name]
    return {
        "parameters": described["parameters"],
        "precision": ", ".join(described["precision"]),
        "psnr_db": parity["psnr_db"],
        "min_psnr_db": limits["min_psnr_db"][name],
        "compiled_sqnr_db": min((output["sqnr_db"] for output in check.get("outputs", {}).values()), default=None),
        "graphs": sum(graphs[graph].get("layers", 1) for graph in own),
        "bytes": sum(graphs[graph]["bytes"] for graph in own),
        "estimated_cmm_mb": round(
            sum(before["components"][graph]["estimate"]["cmm_mb"] for graph in own if graph in before["components"]), 1
        ),
        "version": graphs[own[0]]["version"],
    }


def _gallery(pictures: dict[str, np.ndarray]) -> tuple[int, list[dict[str, Any]]]:
    """Scale of the difference maps, and the pictures as the page shows them; the first is what others are compared with."""
    wanted, *others = pictures.values()
    gain, apart = difference_maps(wanted, others)
    shown = [
        {"name": name, "uri": picture_uri(picture), "emulated": name == "Emulated", "apart": differs}
        for (name, picture), differs in zip(pictures.items(), [None, *apart], strict=True)
    ]
    return gain, shown


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
