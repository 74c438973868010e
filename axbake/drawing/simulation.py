"""The picture that the compiled models draw on the host, and how far it is from the reference."""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from axbake.checkpoints import components
from axbake.checkpoints.weights import read_description
from axbake.drawing.distance import psnr, ssim
from axbake.drawing.prompts import load_tokenizer
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import EMULATOR, Session, only, open_model, producer
from axbake.runtime.txt2img import SAMPLERS, Models, draw, png_parameters, save_png

logger = logging.getLogger(__name__)


def simulate(
    *,
    text_encoder: Path,
    unet: Path,
    vae_encoder: Path,
    vae_decoder: Path,
    vae_encoder_weights: Path,
    schedule: Path,
    embeddings: Path,
    reference: Path,
    trajectory: Path,
    model: str,
    prompt: str,
    negative_prompt: str,
    guidance_scale: float,
    seed: int,
    height: int,
    width: int,
    clip_skip: int,
    image: Path,
    distance: Path,
) -> None:
    """Draw the reference's picture with the compiled models and measure the distance.

    The VAE encoder has no part in drawing; it is given the reference picture, and torch's encoder is the measure.

    Args:
        text_encoder, unet, vae_encoder, vae_decoder: models that ONNX Runtime runs.
        vae_encoder_weights: `weights/vae_encoder.safetensors`.
        embeddings: `embeddings.json`.
        reference, trajectory: the reference's picture and latents.
        image: PNG to write.
        distance: JSON to write: PSNR of latents after each step and of the picture, in dB, and SSIM.
    """
    scaling_factor = read_description(vae_encoder_weights).config["scaling_factor"]
    steps = load_schedule(schedule)
    drawing = draw(
        Models(open_model(text_encoder), open_model(unet), open_model(vae_decoder)),
        load_tokenizer(embeddings),
        steps,
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        seed=seed,
        scaling_factor=scaling_factor,
        height=height,
        width=width,
    )
    parameters = png_parameters(
        prompt=prompt,
        negative_prompt=negative_prompt,
        steps=len(steps.timesteps),
        sampler=SAMPLERS[steps.scheduler],
        guidance_scale=guidance_scale,
        seed=seed,
        height=height,
        width=width,
        model=model,
        clip_skip=clip_skip,
    )
    save_png(image, drawing.image, parameters)
    wanted, latents = np.asarray(Image.open(reference).convert("RGB")), np.load(trajectory)
    result = {
        "emulated": producer(unet) == EMULATOR,
        "compared": "compiled models through ONNX Runtime on the host, against diffusers in float32",
        "latent_psnr_db": round(psnr(latents[-1], drawing.latents[-1]), 2),
        "latent_psnr_db_by_step": [round(psnr(a, b), 2) for a, b in zip(latents, drawing.latents, strict=True)],
        "image_psnr_db": round(psnr(wanted, drawing.image, peak=255), 2),
        "image_ssim": round(ssim(wanted, drawing.image), 4),
        "vae_encoder_psnr_db": round(_vae_encoder_psnr(open_model(vae_encoder), vae_encoder_weights, wanted), 2),
    }
    logger.info("latent %(latent_psnr_db)s dB, picture %(image_psnr_db)s dB, SSIM %(image_ssim)s", result)
    distance.write_text(json.dumps(result, indent=1) + "\n")


def _vae_encoder_psnr(compiled: Session, weights: Path, image: np.ndarray) -> float:
    """PSNR in dB of the latent's means that *compiled* gives for *image*, (H, W, 3) uint8, against torch's."""
    pixels = (image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]  # (1, 3, H, W)
    with torch.inference_mode():
        wanted = components.load(weights)(torch.from_numpy(pixels)).numpy()
    name, output = only(compiled.inputs, "vae_encoder, inputs"), only(compiled.outputs, "vae_encoder, outputs")
    found = compiled.run({name: pixels})[output]
    return psnr(wanted[:, :4], found[:, :4])
