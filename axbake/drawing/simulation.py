"""The picture that the compiled models draw on the host, and how far it is from the reference."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axbake.distance import psnr, ssim
from axbake.drawing.canvas import canvas_of
from axbake.drawing.parts import Drawn, added_of
from axbake.drawing.prompts import load_tokenizer
from axbake.networks.component import DENOISER, ENCODER
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.producer import EMULATOR, producer
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import save_png
from axbake.runtime.values import Latents, Picture
from axbake.weights.files import read_description

logger = logging.getLogger(__name__)


def latents_of(latents: Latents, weights: Path) -> Latents:
    """The family's *latents* with the scale that an autoencoder's weights say; those that say none do it within."""
    return replace(latents, scale=read_description(weights).config.get("scaling_factor", 1.0))


def simulate(
    *,
    models: Sequence[Path],
    encoder_weights: Path,
    schedule: Path,
    embeddings: Path,
    reference: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    latents: Latents,
    build: Callable[[dict], Any],
    image: Path,
    simulated: Path,
    distance: Path,
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    decoder_weights: Sequence[Path] = (),
    decoder_build: Callable[[dict], Any] | None = None,
    tile: int | None = None,
) -> None:
    """Draw the reference's picture with the compiled models and measure the distance.

    The VAE encoder has a part only where the denoiser draws on a picture. It is given the reference picture, and compared with
    torch's encoder.

    Args:
        models: that ONNX Runtime runs, of all components in the order of *drawn*.
        encoder_weights: weights of the VAE encoder, and *build*, which builds it.
        added_weights: weights of the denoiser, if prompts add to its time embedding, and *added*, which reads them.
        embeddings: `embeddings.json`.
        reference, trajectory: the reference's picture and latents.
        latents: of the family.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        decoder_weights, decoder_build, tile: of a VAE decoder of tiles its weights, in a list, what builds it, and the side of a
            tile in latent pixels.
        image: PNG to write.
        simulated: .npy to write: (N, 1, C, h, w) float32, the latent after each step.
        distance: JSON to write: PSNR of latents after each step and of the picture, in dB, and SSIM; with tiles also what these
            cost (`axbake.drawing.seams`), on the reference's latent.
    """
    files, scaled = drawn.models(models), latents_of(latents, encoder_weights)
    drawn_image, drawn_latents = drawn.draw(
        files,
        load_tokenizer(embeddings),
        load_schedule(schedule),
        picture,
        latents=scaled,
        added=added_of(added, added_weights),
        canvas=canvas_of(canvas, height=picture.height, width=picture.width),
    )
    emulated = producer(files[drawn.of_role(DENOISER)][0]) == EMULATOR
    save_png(image, drawn_image, picture.parameters(), emulated=emulated)
    np.save(simulated, drawn_latents)
    wanted, before = np.asarray(Image.open(reference).convert("RGB")), np.load(trajectory)
    encoder = open_models(files[drawn.of_role(ENCODER)])
    result: dict[str, Any] = {
        "emulated": emulated,
        "compared": "compiled models through ONNX Runtime on the host, against diffusers in float32",
        "latent_psnr_db": round(psnr(before[-1], drawn_latents[-1]), 2),
        "latent_psnr_db_by_step": [round(psnr(a, b), 2) for a, b in zip(before, drawn_latents, strict=True)],
        "image_psnr_db": round(psnr(wanted, drawn_image, peak=255), 2),
        "image_ssim": round(ssim(wanted, drawn_image), 4),
        "vae_encoder_psnr_db": round(_encoder_psnr(encoder, encoder_weights, build, wanted, latents.channels), 2),
    }
    if tile and decoder_build:
        from axbake.drawing.seams import measure_seams  # here, since others do without torch

        (weights,) = decoder_weights
        of_tiles = {"tile": tile, "factor": latents.factor}
        result["seams"] = measure_seams(weights, decoder_build, scaled.for_decoder(before[-1]), **of_tiles)
        logger.info(
            "%(tiles)d tiles of %(tile)d pixels: %(psnr_db)s dB from the whole in float32, at most "
            "%(largest_in_overlaps)s of 255 where they overlap",
            result["seams"],
        )
    logger.info("latent %(latent_psnr_db)s dB, picture %(image_psnr_db)s dB, SSIM %(image_ssim)s", result)
    distance.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _encoder_psnr(compiled: Any, weights: Path, build: Callable, image: np.ndarray, channels: int) -> float:
    """PSNR in dB of the latent's means that *compiled* gives for *image*, (H, W, 3) uint8, against torch's."""
    import torch

    from axbake.weights import networks

    pixels = (image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]  # (1, 3, H, W)
    with torch.inference_mode():
        wanted = networks.load(weights, build)(torch.from_numpy(pixels)).numpy()
    (name,), (output,) = compiled.inputs, compiled.outputs
    found = compiled.run({name: pixels})[output]
    return psnr(wanted[:, :channels], found[:, :channels])
