"""Whether the samples that were chosen hold for a drawing that calibration has not seen: the reference's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from axbake.calibration.denoiser_samples import BRANCHES
from axbake.calibration.modules import read_module_ranges
from axbake.calibration.observation import chosen_rows
from axbake.calibration.reference_samples import reference_samples
from axbake.calibration.trajectories import run_samples, taken_rows, watched_denoiser
from axbake.drawing.parts import Drawn
from axbake.emulator.ranges import Ranges
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.progress import progress
from axbake.runtime.sampler import load_schedule
from axbake.runtime.values import Latents, Picture
from axbake.weights.networks import Build

STEPS = 8  # of the reference that are looked at, at most
WORST = 10  # modules that the record names


def check_calibration(
    *,
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    denoiser: Path,
    component: str,
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    trajectories: Path,
    record: Path,
    picture: Picture,
    prompts: list[str],
    drawn: Drawn,
    build: Build,
    with_rows: Callable[[Any], Any],
    precision: str,
    device: str,
    held_out: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    encoder_weights: Sequence[Path] = (),
    encoder_build: Build | None = None,
    latents: Latents | None = None,
) -> None:
    """Compare the calibrated ranges of what the denoiser's modules give with those of the reference picture's drawing.

    Nothing is drawn again: the denoiser runs in torch, as calibration recorded it, on the reference's latents, at up to `STEPS`
    steps from first to last.

    Args:
        graphs, tensors: float graphs of the components in *drawn*, which are text encoders, and the files of their weights
            beside them.
        denoiser: `weights/{component}.safetensors` of the denoiser, *component*; *build*, *with_rows*: of the family.
        added_weights, added: as `axbake.drawing.simulation.simulate` has them.
        embeddings: `embeddings.json`.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        encoder_weights, encoder_build, latents: with a canvas: of the VAE encoder, in a list, what builds it, and the family's.
        trajectory: `reference/trajectory.npy`.
        trajectories: `calibration/trajectories.npz`, recorded on *device* in *precision*.
        record: of `axbake.calibration.tars.calibrate_denoiser`: which of the recorded samples are calibrated with.
        prompts: that were calibrated with. If the picture's is one of them, it is not held out, and the record says so.
        held_out: JSON to write. A clip rate in it is the share of pairs of a held-out sample and a module in which the sample's
            range leaves the calibrated one; an excess is how far it does, as a share of the calibrated range's width. How many
            values are clipped is not counted.
    """
    steps = load_schedule(schedule)
    run = [step for step in range(len(steps.timesteps)) if steps.runs_model(step)]
    seen = [run[i] for i in np.unique(np.linspace(0, len(run) - 1, STEPS).round().astype(int))]
    feeds = reference_samples(
        graphs=graphs,
        schedule=steps,
        embeddings=embeddings,
        trajectory=trajectory,
        picture=picture,
        drawn=drawn,
        taken=taken_rows(steps),
        steps=seen,
        added_weights=added_weights,
        added=added,
        canvas=canvas,
        encoder_weights=encoder_weights,
        encoder_build=encoder_build,
        latents=latents,
    )
    denoising, ranges = watched_denoiser(denoiser, build, with_rows, precision=precision, device=device)
    tell = progress("checking: step")
    for done, step in enumerate(seen, start=1):
        run_samples(denoising, [feed for (at, _), feed in feeds.items() if at == step])
        tell(done, len(seen))
    calibrated, rows = read_module_ranges(trajectories), chosen_rows(record)
    content = {
        "component": component,
        "prompt": picture.prompt,
        "held_out": picture.prompt not in prompts,
        "steps": [step + 1 for step in seen],
        "texts": [BRANCHES[branch] for branch in sorted({branch for _, branch in feeds})],
        "clip_rate_is": "share of pairs of a held-out sample and a module whose range leaves the calibrated one",
        "excess_is": "how far a range leaves the calibrated one, as a share of that one's width",
        "chosen": compare(ranges.found(), replace(calibrated, low=calibrated.low[rows], high=calibrated.high[rows])),
    }
    held_out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(found: Ranges, calibrated: Ranges) -> dict[str, Any]:
    """How the ranges *found* on held-out samples leave those that the rows of *calibrated* span, both extended to 0.

    Values of equal ranges in every sample count once, by the first one's name: a module often gives what its last one gave.

    Values that are 0 in all these rows are skipped if they are 0 in what was found, and else have an excess of their
    own whole range, 1.
    """
    assert found.names == calibrated.names
    _, first = np.unique(
        np.concatenate([found.low, found.high, calibrated.low, calibrated.high]), axis=1, return_index=True
    )
    found, calibrated = (_of(one, np.sort(first)) for one in (found, calibrated))
    bottom, top = np.minimum(calibrated.low.min(axis=0), 0), np.maximum(calibrated.high.max(axis=0), 0)
    beyond = np.maximum(bottom - found.low, 0).astype(np.float64) + np.maximum(found.high - top, 0)  # (N, T)
    width = (top - bottom).astype(np.float64)
    excess = np.divide(beyond, width, out=(beyond > 0).astype(np.float64), where=width > 0)
    largest = excess.max(axis=0)
    worst = np.argsort(-largest, kind="stable")[:WORST]
    return {
        "samples": len(calibrated.low),
        "clip_rate": round(float((excess > 0).mean()), 4),
        "mean_excess_of_the_clipped": round(float(excess[excess > 0].mean()), 4) if (excess > 0).any() else 0.0,
        "largest_excess": {found.names[i]: round(float(largest[i]), 4) for i in worst if largest[i] > 0},
    }


def _of(ranges: Ranges, columns: np.ndarray) -> Ranges:
    """*ranges* of these *columns* alone."""
    return Ranges(tuple(ranges.names[i] for i in columns), ranges.low[:, columns], ranges.high[:, columns])
