"""Denoisers that draw on a picture, whose latent they take beside their own: within a mask, or as the prompt says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import BundleError
from .img2img import Encode, beginning_late, encoding, normalised, read_picture, sampled, upright_picture
from .noise import TorchNoise
from .prompt import chunks_of
from .sampler import Schedule, initial_latent
from .tokenizer import ClipTokenizer
from .txt2img import Begin, Drawing, Models, draw_from, latent_shape
from .values import Conditioning, Latents, Picture

WHITE = 128  # from this grey on a mask is white, as diffusers' `VaeImageProcessor` rounds it


@dataclass(frozen=True)
class Canvas:
    """A picture, and where it is to be painted anew; without a mask, the prompt says what to change (InstructPix2Pix)."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray | None = None  # (H, W) bool


def read_canvas(picture: Path, mask: Path | None = None, *, height: int, width: int) -> Canvas:
    """A picture and its mask, if there is one, in the size that a model draws, both cut and scaled as `read_picture` does.

    White is painted anew, black and what is transparent in the mask stays.

    Raises:
        BundleError: one cannot be read, the two are of different sizes, or nothing is white.
    """
    if mask is None:
        return Canvas(read_picture(picture, height=height, width=width))
    wanted, upright = upright_picture(picture).size, upright_picture(mask)
    if upright.size != wanted:
        raise BundleError(
            f"{mask}: {upright.width}x{upright.height} pixels, but {picture} has {wanted[0]}x{wanted[1]}. Give a mask of the "
            "picture's size."
        )
    grey = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright).convert("L")
    if grey.size != (width, height):
        grey = ImageOps.fit(grey, (width, height), Image.Resampling.LANCZOS)
    white = np.asarray(grey) >= WHITE
    if not white.any():
        raise BundleError(f"{mask}: no white pixel in the part that is drawn; wanted white where to paint.")
    return Canvas(read_picture(picture, height=height, width=width), white)


def beside_latent(canvas: Canvas, encode: Encode, noise: TorchNoise, *, latents: Latents) -> np.ndarray:
    """What the denoiser takes beside the latent, (1 or B, K, h, w) float32; B: one for each branch of guidance.

    With a mask, as in diffusers' `StableDiffusionInpaintPipeline`, (1, 1 + C, h, w): the mask, then the latent of the picture
    outside it. The mask is 1 where to paint, every 8th pixel of it counts, and the picture is grey there. The latent is a
    sample, which takes the noise's next array.

    Without, as in diffusers' `StableDiffusionInstructPix2PixPipeline`, (3, C, h, w): for prompt and negative prompt the means
    of the picture's latent, not scaled; for the negative prompt without the picture, zeros.
    """
    if canvas.mask is None:
        means = encode(normalised(canvas.pixels))[:, : latents.channels]
        return np.concatenate([means, means, np.zeros_like(means)])
    outside = normalised(canvas.pixels) * ~canvas.mask
    mask = canvas.mask[None, None, :: latents.factor, :: latents.factor].astype(np.float32)
    return np.concatenate([mask, latents.from_encoder(sampled(encode(outside), noise, latents=latents))], axis=1)


def paint(
    canvas: Canvas,
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    picture: Picture,
    *,
    latents: Latents,
    conditioning: Conditioning | None = None,
) -> Drawing:
    """Draw *picture* on *canvas*, as diffusers' pipelines do (`beside_latent`).

    Args:
        models: with the VAE encoder.
        picture: with a strength, as in `redraw`; 1 or None begins with noise alone. Without a mask, with an image guidance scale.
        latents, conditioning: as in `draw`.

    Raises:
        BundleError: models, schedule, picture and canvas do not fit each other; or no step is left.
    """
    shape = latent_shape(
        models,
        schedule,
        picture,
        latents=latents,
        chunks=chunks_of(models.denoiser, tokenizer, conditioning),
        beside=latents.beside(masked=canvas.mask is not None),
    )
    if models.encoder is None:
        raise BundleError("a picture to draw on without a VAE encoder; wanted one among the models.")
    encode = encoding(models.encoder)
    drawn, begin = schedule, pure_noise(schedule, shape)
    if picture.strength not in (None, 1):
        drawn, begin = beginning_late(canvas.pixels, encode, schedule, picture, shape, latents=latents)
    return draw_from(
        begin,
        models,
        tokenizer,
        drawn,
        picture,
        latents=latents,
        conditioning=conditioning,
        beside=lambda noise: beside_latent(canvas, encode, noise, latents=latents),
    )


def pure_noise(schedule: Schedule, shape: tuple[int, ...]) -> Begin:
    """A drawing's beginning with nothing but noise."""
    return lambda noise: initial_latent(schedule, noise, shape)
