"""Image to image: the VAE encoder's latent of a picture, with noise, drawn on from a step in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import BundleError
from .model import Session, only
from .noise import TorchNoise
from .prompt import chunks_of
from .reading import shown
from .sampler import Schedule
from .tokenizer import ClipTokenizer
from .txt2img import Begin, Drawing, Models, draw_from, latent_shape
from .values import Conditioning, Latents, Picture

MOST_PIXELS = 50_000_000  # of a picture that is read: 0.8 GB while it is scaled, of a Raspberry Pi's 4 or 8
FORMATS = ["PNG", "JPEG", "WEBP"]  # that are read; of some others Pillow runs programs, as Ghostscript for EPS
LOG_VARIANCE = (-30, 20)  # diffusers' `DiagonalGaussianDistribution` clips it to these
#: (1, 3, H, W) float32 pixels, -1 to 1 -> what a VAE encoder gives for them
Encode = Callable[[np.ndarray], np.ndarray]


def upright_picture(path: Path) -> Image.Image:
    """The picture in a file as its camera means it to be looked at, in RGBA.

    Raises:
        BundleError: no plain file, no picture of `FORMATS`, or one of more than `MOST_PIXELS`; nothing is decoded then.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such file. Give a PNG or a JPEG.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height <= MOST_PIXELS:
                return ImageOps.exif_transpose(image).convert("RGBA")
            size = f"{image.width}x{image.height}"
    except Image.DecompressionBombError as error:
        size = shown(error)
    except (OSError, SyntaxError, ValueError) as error:
        raise BundleError(f"{path}: no picture that can be read ({shown(error)}). Give a PNG or a JPEG.") from error
    raise BundleError(f"{path}: {size}: wanted {MOST_PIXELS // 10**6} million pixels at most. Make it smaller.")


def read_picture(path: Path, *, height: int, width: int) -> np.ndarray:
    """The picture in a file, (height, width, 3) uint8 RGB: the largest part of that shape from its middle, scaled.

    What is transparent is white.

    Raises:
        BundleError: see `upright_picture`.
    """
    upright = upright_picture(path)
    white = Image.new("RGBA", upright.size, "white")
    picture = Image.alpha_composite(white, upright).convert("RGB")
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def redraw(
    pixels: np.ndarray,
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    picture: Picture,
    *,
    latents: Latents,
    conditioning: Conditioning | None = None,
) -> Drawing:
    """Draw *picture* over *pixels*, as diffusers' `StableDiffusionImg2ImgPipeline` does.

    Args:
        pixels: (height, width, 3) uint8 RGB.
        models: with the VAE encoder.
        picture: with a strength, 0 to 1: the share of the schedule's steps that are drawn, the last ones; the rest are skipped.
        latents, conditioning: as in `draw`.

    Raises:
        BundleError: models, schedule, picture and pixels do not fit each other; or no step is left.
    """
    chunks = chunks_of(models.denoiser, tokenizer, conditioning)
    shape = latent_shape(models, schedule, picture, latents=latents, chunks=chunks)
    if models.encoder is None:
        raise BundleError("image to image without a VAE encoder; wanted one among the models.")
    late, begin = beginning_late(pixels, encoding(models.encoder), schedule, picture, shape, latents=latents)
    return draw_from(begin, models, tokenizer, late, picture, latents=latents, conditioning=conditioning)


def beginning_late(
    pixels: np.ndarray,
    encode: Encode,
    schedule: Schedule,
    picture: Picture,
    shape: tuple[int, ...],
    *,
    latents: Latents,
) -> tuple[Schedule, Begin]:
    """The steps of *schedule* that the strength of *picture* leaves, and the latent of *pixels* with the first one's noise.

    Raises:
        BundleError: no strength, or one that leaves no step.
    """
    steps, strength = len(schedule.timesteps), picture.strength
    if strength is None:
        raise BundleError("image to image without a strength; wanted 0 to 1.")
    drawn = min(int(steps * strength), steps)
    if not 0 <= strength <= 1 or drawn < 1:
        raise BundleError(
            f"strength {strength:g}: {drawn} of {steps} steps; wanted at least one: {1 / steps:g} to 1 with this "
            "schedule."
        )
    late = schedule.beginning_at(steps - drawn)

    def begin(noise: TorchNoise) -> np.ndarray:
        latent = latents.from_encoder(sampled(encode(normalised(pixels)), noise, latents=latents))
        unit = noise.normal(shape)
        return (latent * late.picture_scale[0] + unit * late.noise_scale[0]).astype(np.float32)

    return late, begin


def encoding(encoder: Session) -> Encode:
    """*encoder* as a function."""
    name = only(encoder.inputs, f"{encoder.name}, inputs")
    output = only(encoder.outputs, f"{encoder.name}, outputs")
    return lambda pixels: encoder.run({name: pixels})[output]


def normalised(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32, -1 to 1."""
    unit = picture.astype(np.float32) / np.float32(255)  # as diffusers' `VaeImageProcessor` rounds
    return (np.float32(2) * unit - np.float32(1)).transpose(2, 0, 1)[None]


def sampled(given: np.ndarray, noise: TorchNoise, *, latents: Latents) -> np.ndarray:
    """A latent of what a VAE encoder has *given*: (1, C, h, w) float32, not yet scaled.

    It gives C channels of means, then C of log-variances, and the sample takes the noise's next array; or, as an
    AutoencoderTiny's does, the latent itself.
    """
    if given.shape[1] == latents.channels:
        return given
    mean, log_variance = np.split(given, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, *LOG_VARIANCE))
    return mean + deviation * noise.normal(mean.shape)
