"""Image to image within a mask, with a denoiser that knows nothing of masks.

As in AUTOMATIC1111's web UI (`modules/sd_samplers_cfg_denoiser.py`, `apply_blend`): in each step, what the denoiser says of the
finished picture is replaced by the given picture's latent outside the mask. Here its output is replaced by the one that says so,
for which a sampler need not know of it. At the end the latent outside the mask is the given one's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .canvas import WHITE
from .errors import BundleError
from .img2img import beginning_late, encoding, normalised, sampled
from .model import Session
from .noise import TorchNoise
from .predictions import Predictions, predictions_of
from .prompt import chunks_of, prompt_warnings
from .sampler import LATENT, Schedule
from .tokenizer import ClipTokenizer
from .txt2img import Drawing, Models, decode_latent, draw_latent, embed_prompts, latent_shape, prompts_of
from .values import Conditioning, Latents, Picture

#: What the masked part begins with besides the first step's noise: its own latent, unit noise, or zeros
FILLS = ("original", "noise", "nothing")


@dataclass
class _Kept:
    """The latent that stays outside the mask; it is known once the noise that its sample takes is."""

    latent: np.ndarray | None = None  # (1, C, h, w) float32


class Masked(Session):
    """A denoiser whose output predicts the given picture outside a mask."""

    def __init__(self, denoiser: Session, mask: np.ndarray, kept: _Kept, predictions: Predictions) -> None:
        """
        Args:
            mask: (1, 1, h, w) float32, 1 where to paint, 0 where to keep.
        """
        super().__init__(
            denoiser.name, denoiser.inputs, denoiser.outputs, None, denoiser.provider, component=denoiser.component
        )
        self.seconds = denoiser.seconds
        self._denoiser, self._mask, self._kept, self._predictions = denoiser, mask, kept, predictions
        self._run = 0

    def run_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The outputs for each of *feeds*, which are the branches of guidance of one step."""
        made = self._denoiser.run_all(feeds)
        assert self._kept.latent is not None
        blended = []
        for feed, outputs in zip(feeds, made):
            wanted = self._predictions.output(feed[LATENT], self._kept.latent, self._run)
            blended.append({name: wanted + self._mask * (one - wanted) for name, one in outputs.items()})
        self._run += 1
        return blended


def latent_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """(H, W) uint8, 255 where to paint -> (1, 1, h, w) float32, 0 or 1: 1 where any pixel of the square is painted.

    AUTOMATIC1111's web UI rounds, and thin strokes vanish; what is painted too much here is not seen, since the pixels outside
    the mask are the given ones.
    """
    height, width = (side // factor for side in mask.shape)
    squares = mask[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return (squares.max(axis=(1, 3)) >= WHITE).astype(np.float32)[None, None]


def redraw_masked(
    pixels: np.ndarray,
    mask: np.ndarray,
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    picture: Picture,
    *,
    latents: Latents,
    prediction_type: str,
    conditioning: Conditioning | None = None,
    fill: str = "original",
) -> Drawing:
    """Draw *picture* over the part of *pixels* that *mask* has; outside it, the pixels are the given ones.

    Args:
        pixels: (height, width, 3) uint8 RGB.
        mask: (height, width) uint8: 255 where to paint, 0 where to keep; between them the two are mixed.
        models: with the VAE encoder.
        picture: with a strength, as in `axbake.runtime.img2img.redraw`.
        latents, conditioning: as in `axbake.runtime.txt2img.draw`.
        prediction_type: of the denoiser, as the manifest has it.
        fill: of `FILLS`.

    Raises:
        BundleError: models, schedule, picture, pixels and mask do not fit each other; no step is left; the mask has nothing to
            paint.
    """
    started = time.perf_counter()
    chunks = chunks_of(models.denoiser, tokenizer, conditioning)
    shape = latent_shape(models, schedule, picture, latents=latents, chunks=chunks)
    if models.encoder is None:
        raise BundleError("image to image without a VAE encoder; wanted one among the models.")
    if mask.shape != pixels.shape[:2]:
        raise BundleError(f"a mask of {mask.shape[::-1]} pixels; wanted {pixels.shape[1::-1]}, as the picture has.")
    painted = latent_mask(mask, latents.factor)
    if not painted.any():
        raise BundleError(f"the mask has no pixel whiter than {WHITE - 1} of 255; wanted white where to paint.")
    encode = encoding(models.encoder)
    late, _ = beginning_late(pixels, encode, schedule, picture, shape, latents=latents)
    kept = _Kept()

    def begin(noise: TorchNoise) -> np.ndarray:
        kept.latent = latents.from_encoder(sampled(encode(normalised(pixels)), noise, latents=latents))
        unit = noise.normal(shape)
        first = kept.latent
        if fill != "original":
            inside = noise.normal(shape) if fill == "noise" else np.zeros(shape, np.float32)
            first = first + painted * (inside - first)
        return (first * late.picture_scale[0] + unit * late.noise_scale[0]).astype(np.float32)

    network = Masked(models.denoiser, painted, kept, predictions_of(late, prediction_type))
    sessions = replace(models, denoiser=network).sessions
    before = [len(session.seconds) for session in sessions]
    prompts = prompts_of(picture, late)
    embeds = embed_prompts(
        models.text_encoders,
        tokenizer,
        prompts,
        chunks=chunks,
        conditioning=conditioning,
        remembered=models.remembered,
    )
    embedded = time.perf_counter()
    drawn = draw_latent(begin, network, late, picture, embeds, added=models.added)
    assert kept.latent is not None
    latent = kept.latent + painted * (drawn.latent - kept.latent)
    denoised = time.perf_counter()
    share = (mask.astype(np.float32) / np.float32(255))[:, :, None]
    image = pixels + share * (decode_latent(models.decoder, latent, latents=latents).astype(np.float32) - pixels)
    decoded = time.perf_counter()
    return Drawing(
        image=image.round().astype(np.uint8),
        latents=np.concatenate([drawn.latents[:-1], latent[None]]),
        seconds={session.component: tuple(session.seconds[first:]) for session, first in zip(sessions, before)},
        text_embedding_seconds=embedded - started,
        step_seconds=drawn.seconds,
        decode_seconds=decoded - denoised,
        total_seconds=decoded - started,
        warnings=tuple(said for text in prompts for said in prompt_warnings(text, tokenizer, chunks=chunks)),
    )
