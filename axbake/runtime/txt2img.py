"""Text to image: text encoder, denoising loop, VAE decoder, PNG."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .added import AddedEmbedding
from .errors import BundleError
from .model import Postponed, Session, only
from .noise import TorchNoise
from .prompt import Embedded, chunks_of, embed_prompt, encoder, prompt_warnings
from .remembered import Remembered
from .sampler import Sampled, Schedule, denoiser, initial_latent, joined, latent_of, sample
from .tiles import decode_tiles
from .tokenizer import ClipTokenizer
from .values import SAMPLERS as SAMPLERS  # imported from here too
from .values import Conditioning, Latents, Picture

#: What a picture says of itself that emulated models drew
EMULATED = "EMULATED: drawn on a host by models of axbake's emulator; no board drew it."
#: The latent that a drawing begins with, of a noise
Begin = Callable[[TorchNoise], np.ndarray]
#: What the denoiser takes beside the latent, (1 or B, K, h, w), of the noise that follows the latent's
Beside = Callable[[TorchNoise], np.ndarray]


@dataclass(frozen=True)
class Models:
    """Loaded models of one checkpoint and one picture size, by their roles; each is one graph or a chain of several."""

    text_encoders: tuple[Session, ...]  # in the conditioning's order
    denoiser: Session
    decoder: Session
    encoder: Session | None = None  # image to image alone needs it
    added: AddedEmbedding | None = None  # of a denoiser whose time embedding prompts add to
    remembered: Remembered | None = None  # prompts that the text encoders have read already

    def __post_init__(self) -> None:
        names = [session.component for session in self.sessions]
        if len(set(names)) < len(names):
            raise BundleError(f"components {', '.join(names)}; wanted names that differ.")

    @property
    def sessions(self) -> list[Session]:
        """All models that are there."""
        return [*self.text_encoders, self.denoiser, self.decoder, *([self.encoder] if self.encoder else [])]


@dataclass(frozen=True)
class Drawing:
    """A picture and how it came about."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    latents: np.ndarray  # (N, 1, C, h, w) float32: after each step
    seconds: dict[str, tuple[float, ...]]  # by component: of each of its runs, in order
    text_embedding_seconds: float  # prompt and negative prompt
    step_seconds: tuple[float, ...]  # of each step that ran the denoiser
    decode_seconds: float
    total_seconds: float
    warnings: tuple[str, ...]  # what of the prompts does not count, or is not what it looks like (`prompt_warnings`)


def draw(
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    picture: Picture,
    *,
    latents: Latents,
    conditioning: Conditioning | None = None,
) -> Drawing:
    """Draw *picture*, its prompts written as in AUTOMATIC1111's web UI (`axbake.runtime.prompt`).

    Args:
        schedule: the picture's scheduler, set to its steps.
        latents: their format in the models.
        conditioning: of several text encoders; one needs none.

    Raises:
        BundleError: models, schedule and picture do not fit each other.
    """
    chunks = chunks_of(models.denoiser, tokenizer, conditioning)
    shape = latent_shape(models, schedule, picture, latents=latents, chunks=chunks)
    return draw_from(
        lambda noise: initial_latent(schedule, noise, shape),
        models,
        tokenizer,
        schedule,
        picture,
        latents=latents,
        conditioning=conditioning,
    )


def draw_from(
    begin: Begin,
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    picture: Picture,
    *,
    latents: Latents,
    conditioning: Conditioning | None,
    beside: Beside | None = None,
) -> Drawing:
    """Draw *picture* from the latent on that *begin* gives, with all steps of *schedule*."""
    start = time.perf_counter()
    chunks = chunks_of(models.denoiser, tokenizer, conditioning)
    runs_before = [len(session.seconds) for session in models.sessions]
    prompts = prompts_of(picture, schedule)
    embeds = embed_prompts(
        models.text_encoders,
        tokenizer,
        prompts,
        chunks=chunks,
        conditioning=conditioning,
        remembered=models.remembered,
    )
    text_embedded = time.perf_counter()
    drawn = draw_latent(begin, models.denoiser, schedule, picture, embeds, added=models.added, beside=beside)
    denoised = time.perf_counter()
    image = decode_latent(models.decoder, drawn.latent, latents=latents)
    decoded = time.perf_counter()
    return Drawing(
        image=image,
        latents=drawn.latents,
        seconds={
            session.component: tuple(session.seconds[before:]) for session, before in zip(models.sessions, runs_before)
        },
        text_embedding_seconds=text_embedded - start,
        step_seconds=drawn.seconds,
        decode_seconds=decoded - denoised,
        total_seconds=decoded - start,
        warnings=tuple(said for text in prompts for said in prompt_warnings(text, tokenizer, chunks=chunks)),
    )


def prompts_of(picture: Picture, schedule: Schedule) -> list[str]:
    """The prompt of *picture* and, where the denoiser runs for it too, its negative prompt."""
    return [picture.prompt, picture.negative_prompt][: 2 if schedule.is_guided(picture.guidance_scale) else 1]


def embed_prompts(
    text_encoders: Sequence[Session],
    tokenizer: ClipTokenizer,
    prompts: Sequence[str],
    *,
    chunks: int,
    conditioning: Conditioning | None,
    remembered: Remembered | None = None,
) -> list[Embedded]:
    """What the denoiser takes of each of *prompts*; all but the first are negative ones.

    What is *remembered* already is not made again. Text encoders that are loaded when they are needed leave memory again.
    """
    made = []
    for number, text in enumerate(prompts):
        negative = number > 0
        known = remembered.get(text, negative=negative, chunks=chunks) if remembered else None
        if known is None:
            encoders = [encoder(session) for session in text_encoders]
            known = embed_prompt(encoders, tokenizer, text, chunks=chunks, conditioning=conditioning, negative=negative)
            if remembered:
                remembered.keep(known, text, negative=negative, chunks=chunks)
        made.append(known)
    for session in text_encoders:
        if isinstance(session, Postponed):
            session.release()
    return made


def draw_latent(
    begin: Begin,
    network: Session,
    schedule: Schedule,
    picture: Picture,
    embeds: Sequence[Embedded],
    *,
    added: AddedEmbedding | None,
    beside: Beside | None = None,
) -> Sampled:
    """The latents that the denoiser *network* draws, from the one on that *begin* gives."""
    noise = TorchNoise(picture.seed)
    start, denoise = begin(noise), denoiser(network, masks_of(embeds))
    return sample(
        joined(denoise, beside(noise)) if beside else denoise,
        schedule,
        noise,
        start,
        prompt_embeds=embeds[0].tokens,
        negative_embeds=embeds[1].tokens if len(embeds) > 1 else None,
        guidance_scale=picture.guidance_scale,
        image_guidance_scale=picture.image_guidance_scale,
        added=added_rows(added, embeds, picture.size_conditioning),
    )


def masks_of(embeds: Sequence[Embedded]) -> np.ndarray | None:
    """(B, T) float32: which tokens of each of *embeds* count; None where the denoiser is not told."""
    masks = [one.mask for one in embeds if one.mask is not None]
    return np.concatenate(masks) if masks else None


def added_rows(added: AddedEmbedding | None, embeds: Sequence[Embedded], sizes: Sequence[float]) -> np.ndarray | None:
    """What each of *embeds* adds to the time embedding, (B, C) float32; None where prompts add nothing.

    Raises:
        BundleError: only one of the text encoders and the denoiser is made for that.
    """
    pooled = [one.pooled for one in embeds if one.pooled is not None]
    if (added is None) != (not pooled):
        raise BundleError(
            "a pooled prompt without weights that take it, or weights without a pooled prompt; wanted both or none. "
            "Use all files of one model."
        )
    return np.concatenate([added.row(one, sizes) for one in pooled]) if added else None


def decode_latent(decoder: Session, latent: np.ndarray, *, latents: Latents) -> np.ndarray:
    """(1, C, h, w) latent -> (H, W, 3) uint8 RGB, rounded as diffusers' `VaeImageProcessor` does.

    A decoder that takes smaller latents decodes tiles (`axbake.runtime.tiles`).
    """
    name = only(decoder.inputs, f"{decoder.name}, inputs")
    output = only(decoder.outputs, f"{decoder.name}, outputs")
    given = latents.for_decoder(latent)
    if tile := tile_of(decoder, latent.shape):
        pixels = decode_tiles(lambda part: decoder.run({name: part})[output], given, tile, factor=latents.factor)
    else:
        pixels = decoder.run({name: given})[output]  # (1, 3, H, W), -1 to 1
    unit = np.clip(pixels * np.float32(0.5) + np.float32(0.5), 0, 1)
    return (unit[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def tile_of(decoder: Session, latent: tuple[int, ...]) -> int | None:
    """Side of the tiles that *decoder* decodes of a latent of that shape, in latent pixels; None: it takes no such tiles."""
    shape, _ = decoder.inputs[only(decoder.inputs, f"{decoder.name}, inputs")]
    *_, side = (0, *shape)
    sides = range(2, min(latent[2:]) + 1)  # one pixel has no quarter to overlap
    return side if shape != latent and shape == (*latent[:2], side, side) and side in sides else None


def save_png(file: Path | BinaryIO, image: np.ndarray, parameters: str, *, emulated: bool = False) -> None:
    """Write *image*, (height, width, 3) uint8, with *parameters* as its text. The file holds no time.

    Args:
        emulated: whether emulated models drew it, which the file says too.
    """
    text = PngInfo()
    text.add_text("parameters", parameters)
    if emulated:
        text.add_text("axbake", EMULATED)
    Image.fromarray(image).save(file, format="PNG", pnginfo=text)


def latent_shape(
    models: Models, schedule: Schedule, picture: Picture, *, latents: Latents, chunks: int, beside: int = 0
) -> tuple[int, ...]:
    """Shape of the latent, after checking that models, schedule and picture agree.

    Args:
        chunks: of a prompt that the denoiser takes (`chunks_of`).
        beside: channels that the denoiser takes besides the latent's.

    Raises:
        BundleError: they do not.
    """
    denoiser, decoder = models.denoiser, models.decoder
    images, channels, *sides = latent_of(denoiser)
    latent = (images, channels - beside, *sides)
    decoded, _ = decoder.inputs[only(decoder.inputs, f"{decoder.name}, inputs")]
    pixels, _ = decoder.outputs[only(decoder.outputs, f"{decoder.name}, outputs")]
    height, width = picture.height, picture.width
    tile = tile_of(decoder, latent)
    if tile and pixels[2:] != (tile * latents.factor,) * 2:
        raise BundleError(
            f"{decoder.name} makes {pixels[3]}x{pixels[2]} pixels of a tile of {tile}x{tile} latent pixels; wanted "
            f"{latents.factor} times as many a side. Use denoiser and VAE of one model."
        )
    if decoded != latent and not tile:
        raise BundleError(
            f"{decoder.name} takes latents of shape {decoded}, but {denoiser.name} makes {latent}. Compile both for one"
            f" picture size."
        )
    if pixels[2:] != (height, width) and not tile:
        raise BundleError(
            f"picture of {width}x{height} pixels; {decoder.name} was compiled for {pixels[3]}x{pixels[2]}. Use that "
            "size, or compile the models for the other."
        )
    if latent != latents.shape(height, width):
        raise BundleError(
            f"{denoiser.name} makes latents of shape {latent}; wanted {latents.shape(height, width)}, "
            f"{latents.channels} channels and 1/{latents.factor} of the picture's size. Use denoiser and VAE of one "
            "model."
        )
    wrong = [
        f"{name}: the picture has {wanted}, {where} {found}"
        for name, wanted, where, found in (
            ("scheduler", picture.scheduler, "the schedule", schedule.scheduler),
            ("steps", picture.steps, "the schedule", len(schedule.timesteps)),
            ("prompt_chunks", picture.prompt_chunks, denoiser.name, chunks),
        )
        if wanted != found
    ]
    if wrong:
        raise BundleError(f"{'; '.join(wrong)}. Use the values that they were made for, or make them again.")
    return latent
