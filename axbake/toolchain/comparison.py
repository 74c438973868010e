"""What a model would draw if its denoiser were calibrated with the first samples recorded, as published scripts do it."""

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.calibration.tars import calibrate_denoiser
from axbake.distance import psnr, ssim
from axbake.drawing.parts import Drawn
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import latents_of
from axbake.networks.component import DENOISER
from axbake.runtime.sampler import load_schedule
from axbake.runtime.txt2img import draw, save_png
from axbake.runtime.values import Latents, Picture
from axbake.toolchain.pulsar2 import compile_model

logger = logging.getLogger(__name__)


def compare_calibration(
    *,
    models: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    trajectories: Path,
    schedule: Path,
    ranges: Path,
    encoder_weights: Path,
    embeddings: Path,
    reference: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    latents: Latents,
    samples: int,
    configs: Sequence[dict[str, Any]],
    compiler: dict[str, str],
    launch: dict[str, Any],
    image: Path,
    comparison: Path,
) -> None:
    """Calibrate the denoiser with the first *samples*, compile it, draw the reference's picture and measure the distance.

    All else is as the model has it: graph, config of the compiler, the other compiled models, prompt and noise.

    Args:
        models: that ONNX Runtime runs, of all components in the order of *drawn*; the denoiser's are not used.
        graphs, tensors: the denoiser's in order, and the files of their weights beside them.
        trajectories, schedule, ranges: what was recorded for its calibration (`axbake.calibration.tars.calibrate_denoiser`).
        encoder_weights: of the VAE encoder, which say the latents' scale.
        embeddings: `embeddings.json`.
        reference, trajectory: the reference's picture and latents.
        latents: of the family.
        configs: Pulsar2's, one a graph of the denoiser.
        compiler, launch: of the emulator (`axbake.toolchain.pulsar2.compile_model`).
        image: PNG to write.
        comparison: JSON to write: how many samples, what share of the ranges they cover; PSNR of the last latent and of the
            picture, in dB, and SSIM.

    Raises:
        CalibrationError: fewer than *samples* were recorded.
    """
    denoiser, files = drawn.of_role(DENOISER), drawn.files(models)
    with tempfile.TemporaryDirectory(dir=image.parent) as place:
        work = [Path(place) / str(number) for number in range(len(graphs))]
        archives = [at / f"{graph.stem}.tar" for at, graph in zip(work, graphs, strict=True)]
        for at in work:
            at.mkdir()
        record = Path(place) / "calibration.json"
        calibrate_denoiser(
            graphs,
            tensors,
            trajectories,
            schedule,
            ranges,
            component=denoiser,
            samples=samples,
            selection="first",
            archives=archives,
            record=record,
        )
        files[denoiser] = [at / f"{graph.stem}.axmodel" for at, graph in zip(work, graphs, strict=True)]
        for graph, weights, archive, config, axmodel in zip(
            graphs, tensors, archives, configs, files[denoiser], strict=True
        ):
            compile_model(
                graph,
                weights,
                archive,
                component=graph.stem,
                role=DENOISER,
                config=config,
                compiler=compiler,
                launch=launch,
                axmodel=axmodel,
                record=axmodel.with_suffix(".json"),
            )
        steps, tokenizer, scaled = (
            load_schedule(schedule),
            load_tokenizer(embeddings),
            latents_of(latents, encoder_weights),
        )
        drawing = draw(drawn.open(files), tokenizer, steps, picture, latents=scaled, conditioning=drawn.conditioning)
        covered = json.loads(record.read_text(encoding="utf-8"))["coverage"]
    save_png(image, drawing.image, picture.parameters())
    wanted = np.asarray(Image.open(reference).convert("RGB"))
    result = {
        "emulated": True,
        "compared": "compiled models, the denoiser's calibrated with the first samples recorded, against diffusers in float32",
        "samples": samples,
        "coverage": covered,
        "latent_psnr_db": round(psnr(np.load(trajectory)[-1], drawing.latents[-1]), 2),
        "image_psnr_db": round(psnr(wanted, drawing.image, peak=255), 2),
        "image_ssim": round(ssim(wanted, drawing.image), 4),
    }
    logger.info("with the first %(samples)d samples: picture %(image_psnr_db)s dB, SSIM %(image_ssim)s", result)
    comparison.write_text(json.dumps(result, indent=1) + "\n")
