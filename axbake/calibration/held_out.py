"""Whether the samples that were chosen hold for a drawing that calibration has not seen: the reference's."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axbake.calibration.denoiser_samples import BRANCHES
from axbake.calibration.observation import observe_chain, read_observed
from axbake.calibration.reference_samples import reference_samples
from axbake.drawing.parts import Drawn
from axbake.emulator.ranges import Ranges
from axbake.networks.component import DENOISER
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.sampler import load_schedule
from axbake.runtime.values import Latents, Picture
from axbake.weights.networks import Build

STEPS = 8  # of the reference that are looked at, at most
WORST = 10  # tensors that the record names


def check_calibration(
    *,
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    ranges: Path,
    picture: Picture,
    prompts: list[str],
    drawn: Drawn,
    held_out: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    encoder_weights: Sequence[Path] = (),
    encoder_build: Build | None = None,
    latents: Latents | None = None,
) -> None:
    """Compare the calibrated ranges of the denoiser's activations with those of the reference picture's drawing.

    Nothing is drawn again: the float denoiser is observed on the reference's latents, at up to `STEPS` steps from first to last.

    Args:
        graphs, tensors: float graphs of the components in *drawn*, which are text encoders and denoiser, and the files of their
            weights beside them.
        added_weights, added: as `axbake.drawing.simulation.simulate` has them.
        embeddings: `embeddings.json`.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        encoder_weights, encoder_build, latents: with a canvas: of the VAE encoder, in a list, what builds it, and the family's.
        trajectory: `reference/trajectory.npy`.
        ranges: `calibration/{component}.ranges.npz` of the denoiser.
        prompts: that were calibrated with. If the picture's is one of them, it is not held out, and the record says so.
        held_out: JSON to write. A clip rate in it is the share of pairs of a held-out sample and a tensor in which the sample's
            range leaves the calibrated one; an excess is how far it does, as a share of the calibrated range's width. How many
            values of a tensor are clipped is not counted.
    """
    steps = load_schedule(schedule)
    files, denoiser = drawn.files(graphs), drawn.of_role(DENOISER)
    run = [step for step in range(len(steps.timesteps)) if steps.runs_model(step)]
    seen = [run[i] for i in np.unique(np.linspace(0, len(run) - 1, STEPS).round().astype(int))]
    observed = read_observed(ranges)
    feeds = reference_samples(
        graphs=graphs,
        schedule=steps,
        embeddings=embeddings,
        trajectory=trajectory,
        picture=picture,
        drawn=drawn,
        taken=observed.taken,
        steps=seen,
        added_weights=added_weights,
        added=added,
        canvas=canvas,
        encoder_weights=encoder_weights,
        encoder_build=encoder_build,
        latents=latents,
    )
    samples, branches = list(feeds.values()), sorted({branch for _, branch in feeds})
    found = observe_chain(
        files[denoiser], lambda: iter(samples), len(samples), beside=held_out.parent, what="checking:"
    )
    content = {
        "component": denoiser,
        "prompt": picture.prompt,
        "held_out": picture.prompt not in prompts,
        "steps": [step + 1 for step in seen],
        "texts": [BRANCHES[branch] for branch in branches],
        "clip_rate_is": "share of (held-out sample, tensor) pairs whose range leaves the calibrated one",
        "excess_is": "how far a range leaves the calibrated one, as a share of that one's width",
        "chosen": compare(found, observed.ranges),
    }
    held_out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(found: Ranges, calibrated: Ranges) -> dict[str, Any]:
    """How the ranges *found* on held-out samples leave those that the rows of *calibrated* span, both extended to 0.

    Tensors that are 0 in all these rows are skipped if they are 0 in what was found, and else have an excess of their
    own whole range, 1.
    """
    assert found.names == calibrated.names
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
