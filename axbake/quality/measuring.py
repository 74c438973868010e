"""What the layers of a model's denoiser cost its last latent, on the reference's drawing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from axbake.calibration.observation import read_observed
from axbake.calibration.reference_samples import reference_samples
from axbake.drawing.parts import Drawn
from axbake.networks.component import DENOISER
from axbake.quality.assignment import NARROW, WIDE
from axbake.quality.directions import drawing_directions, guidance_weights, important_steps
from axbake.quality.network import Network
from axbake.quality.passes import Passes
from axbake.quality.records import model_of, write_model
from axbake.quality.sensitivity import Samples, measure
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.progress import progress
from axbake.runtime.sampler import load_schedule
from axbake.runtime.values import Latents, Picture
from axbake.weights.networks import Build

logger = logging.getLogger(__name__)
LATENT = "sample"  # the input that every program calls so
STEPS = 8  # of the drawing whose errors are measured, at most
DIRECTIONS = 4


def measure_sensitivity(
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
    addresses: list[str],
    sensitivity: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    encoder_weights: Sequence[Path] = (),
    encoder_build: Build | None = None,
    latents: Latents | None = None,
) -> None:
    """Measure what each layer's rounding costs the last latent of the reference's drawing, by derivatives of the float graphs.

    Args:
        graphs, tensors: float graphs of the components in *drawn*, which are text encoders and denoiser, and the files of their
            weights beside them.
        schedule, embeddings, trajectory: as `axbake.calibration.held_out.check_calibration` has them, and all that is not here.
        ranges: of `axbake.calibration.observation.observe_denoiser`: those that the denoiser is quantised with.
        prompts: that were calibrated with.
        addresses: of the denoiser's graphs.
        sensitivity: JSON to write (`axbake.quality.records`).

    Raises:
        NoGradient: a graph has an operator that axbake has no derivative of.
    """
    steps, component = load_schedule(schedule), drawn.of_role(DENOISER)
    observed = read_observed(ranges)
    run = [step for step in range(len(steps.timesteps)) if steps.runs_model(step)]
    feeds = reference_samples(
        graphs=graphs,
        schedule=steps,
        embeddings=embeddings,
        trajectory=trajectory,
        picture=picture,
        drawn=drawn,
        taken=observed.taken,
        steps=run,
        added_weights=added_weights,
        added=added,
        canvas=canvas,
        encoder_weights=encoder_weights,
        encoder_build=encoder_build,
        latents=latents,
    )
    network = Network.load(drawn.files(graphs)[component])
    weights: dict[tuple[int, int], float] = {}
    for step in run:
        branches = sorted(branch for one, branch in feeds if one == step)
        scales = guidance_weights(len(branches), picture.guidance_scale, picture.image_guidance_scale)
        weights |= {(step, branch): scale for branch, scale in zip(branches, scales, strict=True)}
    last = np.load(trajectory)[-1].astype(np.float64)
    directions = drawing_directions(
        Passes(network),
        feeds,
        steps,
        weights,
        latent=LATENT,
        shape=last.shape,
        count=DIRECTIONS,
        seed=picture.seed,
        tell=progress("going back through the drawing: sample"),
    )
    power = {
        step: sum(float(np.square(one, dtype=np.float64).sum()) for (at, _), one in directions.items() if at == step)
        for step in run
    }
    seen = important_steps(power, STEPS)
    which = [one for one in weights if one[0] in seen]
    samples = Samples(
        [feeds[one] for one in which],
        np.stack([directions[one] for one in which]),
        [step for step, _ in which],
        seen,
    )
    spans = observed.ranges.overall()
    found = measure(network, spans, samples, progress("measuring layers: part"))
    model = model_of(network, addresses, found, float(np.ptp(last) ** 2 * last.size))
    whole = {kind: round(model.sqnr(model.noise([kind] * len(model.layers))), 2) for kind in (NARROW, WIDE)}
    facts = {
        "component": component,
        "prompt": picture.prompt,
        "held_out": picture.prompt not in prompts,
        "steps": {str(step + 1): round(stands_for, 3) for step, stands_for in seen.items()},
        "directions": DIRECTIONS,
        # In runs of the network, whose backward passes take about as long; with the number of layers none of them grows.
        "runs": {
            "through_the_drawing": sum(step != run[0] for step, _ in feeds)
            * (2 + DIRECTIONS),  # not through its first step
            "of_layers": len(which) * (3 + DIRECTIONS),
        },
        "db": whole | {"weights": round(model.sqnr(model.least), 2)},
    }
    logger.info("%s: rounding alone leaves %s dB of the latent in U8, %s in U16", component, whole[NARROW], whole[WIDE])
    write_model(sensitivity, model, facts)
