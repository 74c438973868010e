"""What a model would draw if its denoiser were calibrated with the first samples recorded, as published scripts do it."""

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.calibration.tars import calibrate_denoiser
from axbake.distance import psnr, ssim
from axbake.drawing.canvas import canvas_of
from axbake.drawing.parts import Drawn, added_of
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import latents_of
from axbake.emulator.build import build
from axbake.networks.component import DENOISER
from axbake.quality.recipe import read_recipe, with_recipe
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.sampler import load_schedule
from axbake.runtime.txt2img import save_png
from axbake.runtime.values import Latents, Picture

logger = logging.getLogger(__name__)


def compare_calibration(
    *,
    models: Sequence[Path],
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    trajectories: Path,
    schedule: Path,
    encoder_weights: Path,
    embeddings: Path,
    reference: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    latents: Latents,
    samples: int,
    addresses: Sequence[str],
    configs: Sequence[dict[str, Any]],
    image: Path,
    comparison: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    recipe: Sequence[Path] = (),
) -> None:
    """Calibrate the denoiser with the first *samples*, emulate its compile, draw the picture and measure it.

    All else is as the model has it: graph, recipe, config of the compiler, the other compiled models, prompt and noise.

    Args:
        models: that ONNX Runtime runs, of all components in the order of *drawn*; the denoiser's are not used.
        graphs, tensors: the denoiser's in order, and the files of their weights beside them.
        trajectories, schedule: what was recorded for its calibration (`axbake.calibration.tars.calibrate_denoiser`).
        encoder_weights: of the VAE encoder, which say the latents' scale.
        embeddings: `embeddings.json`.
        reference, trajectory: the reference's picture and latents.
        latents: of the family.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        addresses, configs: of the denoiser's graphs, and Pulsar2's config of each.
        recipe: the denoiser's, in a list, if it has one.
        image: PNG to write.
        comparison: JSON to write: how many samples, what share of the ranges they cover; PSNR of the last latent and of the
            picture, in dB, and SSIM.
        added_weights, added: as `axbake.drawing.simulation.simulate` has them.

    Raises:
        CalibrationError: fewer than *samples* were recorded.
    """
    denoiser, files = drawn.of_role(DENOISER), drawn.models(models)
    with tempfile.TemporaryDirectory(dir=image.parent) as place:
        archives = [Path(place) / f"{graph.stem}.tar" for graph in graphs]
        files[denoiser] = [archive.with_suffix(".axmodel") for archive in archives]
        record = Path(place) / "calibration.json"
        calibrate_denoiser(
            graphs,
            tensors,
            trajectories,
            schedule,
            component=denoiser,
            guidance_scale=picture.guidance_scale,
            samples=samples,
            selection="first",
            archives=archives,
            record=record,
        )
        for address, graph, archive, config, axmodel in zip(
            addresses, graphs, archives, configs, files[denoiser], strict=True
        ):
            for path in recipe:
                config = with_recipe(config, read_recipe(path), address, graph)
            given = [entry | {"calibration_dataset": str(archive)} for entry in config["quant"]["input_configs"]]
            settings = archive.with_suffix(".json")
            settings.write_text(
                json.dumps(config | {"quant": config["quant"] | {"input_configs": given}}), encoding="utf-8"
            )
            build(settings, {"input": str(graph), "output_dir": place, "output_name": axmodel.name})
        drawn_image, drawn_latents = drawn.draw(
            files,
            load_tokenizer(embeddings),
            load_schedule(schedule),
            picture,
            latents=latents_of(latents, encoder_weights),
            added=added_of(added, added_weights),
            canvas=canvas_of(canvas, height=picture.height, width=picture.width),
        )
        covered = json.loads(record.read_text(encoding="utf-8"))["coverage"]
    save_png(image, drawn_image, picture.parameters(), emulated=True)
    wanted = np.asarray(Image.open(reference).convert("RGB"))
    result = {
        "emulated": True,
        "compared": "compiled models, the denoiser's calibrated with the first samples recorded, against diffusers in float32",
        "samples": samples,
        "coverage": covered,
        "latent_psnr_db": round(psnr(np.load(trajectory)[-1], drawn_latents[-1]), 2),
        "image_psnr_db": round(psnr(wanted, drawn_image, peak=255), 2),
        "image_ssim": round(ssim(wanted, drawn_image), 4),
    }
    logger.info("with the first %(samples)d samples: picture %(image_psnr_db)s dB, SSIM %(image_ssim)s", result)
    comparison.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
