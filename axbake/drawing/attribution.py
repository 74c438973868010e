"""Which component's quantisation costs what: drawings with one compiled model among float graphs."""

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from axbake.checkpoints.weights import read_description
from axbake.drawing.distance import psnr, ssim
from axbake.drawing.prompts import load_tokenizer
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import EMULATOR, open_model, producer
from axbake.runtime.txt2img import Drawing, Models, decode_latent, draw

logger = logging.getLogger(__name__)


def attribute_error(
    *,
    text_encoder: Path,
    unet: Path,
    vae_decoder: Path,
    float_text_encoder: Path,
    float_text_encoder_tensors: Path,
    float_unet: Path,
    float_unet_tensors: Path,
    float_vae_decoder: Path,
    float_vae_decoder_tensors: Path,
    weights: Path,
    schedule: Path,
    embeddings: Path,
    trajectory: Path,
    distance: Path,
    prompt: str,
    negative_prompt: str,
    guidance_scale: float,
    seed: int,
    height: int,
    width: int,
    attribution: Path,
    float_image: Path,
) -> None:
    """Draw the reference's picture with one compiled model at a time, and with none, and measure each against the float picture.

    The float latent is the reference's last, and the float picture is what the decoder's ONNX graph makes of it; so the VAE
    decoder alone needs no drawing. With all compiled, the figures are those of `axbake.drawing.simulation`. With none, it is
    all that comes before quantisation: export, sampler and runtime against diffusers.

    Args:
        text_encoder, unet, vae_decoder: compiled models that ONNX Runtime runs.
        float_…: `onnx/{component}.onnx` of the same three, and the files of their weights beside them.
        weights: `weights/vae_decoder.safetensors`, which says the latents' scale.
        embeddings: `embeddings.json`.
        trajectory: `reference/trajectory.npy`.
        distance: `simulation/distance.json`.
        attribution: JSON to write: by what is quantised, PSNR of the last latent in dB, null where that is the reference's own,
            PSNR of the picture in dB, and SSIM.
        float_image: PNG to write: what the float ONNX graphs draw.
    """
    scaling_factor = read_description(weights).config["scaling_factor"]
    steps, tokenizer, latent = load_schedule(schedule), load_tokenizer(embeddings), np.load(trajectory)[-1]
    decoder = open_model(float_vae_decoder)
    wanted = decode_latent(decoder, latent, scaling_factor=scaling_factor)

    def drawn_with(encoder: Path, network: Path) -> Drawing:
        return draw(
            Models(open_model(encoder), open_model(network), decoder),
            tokenizer,
            steps,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            seed=seed,
            scaling_factor=scaling_factor,
            height=height,
            width=width,
        )

    def distance_of(drawing: Drawing) -> dict[str, float | None]:
        return _distance(wanted, drawing.image, round(psnr(latent, drawing.latents[-1]), 2))

    found: dict[str, dict[str, float | None]] = {}
    logger.info("attributing: 1 of 4: none")
    floating = drawn_with(float_text_encoder, float_unet)
    Image.fromarray(floating.image).save(float_image)
    found["none"] = distance_of(floating)
    logger.info("attributing: 2 of 4: vae_decoder")
    image = decode_latent(open_model(vae_decoder), latent, scaling_factor=scaling_factor)
    found["vae_decoder"] = _distance(wanted, image, None)
    logger.info("attributing: 3 of 4: text_encoder")
    found["text_encoder"] = distance_of(drawn_with(text_encoder, float_unet))
    logger.info("attributing: 4 of 4: unet")
    found["unet"] = distance_of(drawn_with(float_text_encoder, unet))
    simulated = json.loads(distance.read_text(encoding="utf-8"))
    found["all"] = {name: simulated[name] for name in found["unet"]}
    content = {
        "emulated": producer(unet) == EMULATOR,
        "compared": "one compiled model among float ONNX graphs, through ONNX Runtime on the host, against the float picture",
        "quantised": found,
    }
    attribution.write_text(json.dumps(content, indent=1) + "\n")


def _distance(wanted: np.ndarray, image: np.ndarray, latent_psnr: float | None) -> dict[str, float | None]:
    return {
        "latent_psnr_db": latent_psnr,
        "image_psnr_db": round(psnr(wanted, image, peak=255), 2),
        "image_ssim": round(ssim(wanted, image), 4),
    }
