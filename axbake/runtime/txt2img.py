"""Text to image: text encoder, denoising loop, VAE decoder, PNG."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import BundleError
from .noise import TorchNoise
from .prompt import chunks_of, embed_prompt, encoder, prompt_warnings
from .sampler import Schedule, denoiser, initial_latent, sample
from .session import Session, only
from .tokenizer import ClipTokenizer

#: Name of a schedule's scheduler -> name that web UIs know it by
SAMPLERS = {
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "euler": "Euler",
    "ddim": "DDIM",
    "lcm": "LCM",
}


#: The latent that a drawing begins with, of a noise
Begin = Callable[[TorchNoise], np.ndarray]


@dataclass(frozen=True)
class Models:
    """Loaded models of one checkpoint and one picture size."""

    text_encoder: Session
    unet: Session
    vae_decoder: Session
    vae_encoder: Session | None = None  # image to image alone needs it


@dataclass(frozen=True)
class Drawing:
    """A picture and how it came about."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    latents: np.ndarray  # (N, 1, 4, h, w) float32: after each step
    seconds: dict[str, tuple[float, ...]]  # by model: of each of its runs, in order
    text_embedding_seconds: float  # prompt and negative prompt
    step_seconds: tuple[float, ...]  # of each step that ran the UNet
    decode_seconds: float
    total_seconds: float
    warnings: tuple[str, ...]  # what of the prompts does not count, or is not what it looks like (`prompt_warnings`)


def draw(
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    *,
    prompt: str,
    negative_prompt: str,
    guidance_scale: float,
    seed: int,
    scaling_factor: float,
    height: int,
    width: int,
) -> Drawing:
    """Draw *prompt*, written as in AUTOMATIC1111's web UI (`axbake.runtime.prompt`).

    Args:
        guidance_scale: see `sampler.sample`.
        scaling_factor: of the VAE: latents are divided by it before they are decoded; 0.18215 in SD 1.x.
        height: of the picture, in pixels: what the models were compiled for, checked here.
        width: the same.

    Raises:
        BundleError: the models, or the size, do not fit each other.
    """
    shape = latent_shape(models, height=height, width=width)
    return draw_from(
        lambda noise: initial_latent(schedule, noise, shape),
        models,
        tokenizer,
        schedule,
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        seed=seed,
        scaling_factor=scaling_factor,
    )


def draw_from(
    begin: Begin,
    models: Models,
    tokenizer: ClipTokenizer,
    schedule: Schedule,
    *,
    prompt: str,
    negative_prompt: str,
    guidance_scale: float,
    seed: int,
    scaling_factor: float,
) -> Drawing:
    """Draw *prompt* from the latent on that *begin* gives."""
    start = time.perf_counter()
    chunks = chunks_of(models.unet)
    prompts = [prompt, negative_prompt] if schedule.is_guided(guidance_scale) else [prompt]
    sessions = {name: session for name, session in vars(models).items() if session}
    runs_before = {name: len(session.seconds) for name, session in sessions.items()}
    prompt_embeds, *negative_embeds = [
        embed_prompt(encoder(models.text_encoder), tokenizer, text, chunks=chunks) for text in prompts
    ]
    text_embedded = time.perf_counter()
    noise = TorchNoise(seed)
    initial = begin(noise)
    drawn = sample(
        denoiser(models.unet),
        schedule,
        noise,
        initial,
        prompt_embeds=prompt_embeds,
        negative_embeds=negative_embeds[0] if negative_embeds else None,
        guidance_scale=guidance_scale,
    )
    denoised = time.perf_counter()
    image = decode_latent(models.vae_decoder, drawn.latent, scaling_factor=scaling_factor)
    decoded = time.perf_counter()
    return Drawing(
        image=image,
        latents=drawn.latents,
        seconds={name: tuple(session.seconds[runs_before[name] :]) for name, session in sessions.items()},
        text_embedding_seconds=text_embedded - start,
        step_seconds=drawn.seconds,
        decode_seconds=decoded - denoised,
        total_seconds=decoded - start,
        warnings=tuple(said for text in prompts for said in prompt_warnings(text, tokenizer, chunks=chunks)),
    )


def decode_latent(vae_decoder: Session, latent: np.ndarray, *, scaling_factor: float) -> np.ndarray:
    """(1, 4, h, w) latent -> (8h, 8w, 3) uint8 RGB, rounded as diffusers' `VaeImageProcessor` does."""
    name = only(vae_decoder.inputs, f"{vae_decoder.name}, inputs")
    output = only(vae_decoder.outputs, f"{vae_decoder.name}, outputs")
    pixels = vae_decoder.run({name: latent / np.float32(scaling_factor)})[output]  # (1, 3, 8h, 8w), -1 to 1
    unit = np.clip(pixels * np.float32(0.5) + np.float32(0.5), 0, 1)
    return (unit[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def png_parameters(
    *,
    prompt: str,
    negative_prompt: str,
    steps: int,
    sampler: str,
    guidance_scale: float,
    seed: int,
    height: int,
    width: int,
    model: str,
    clip_skip: int,
    strength: float | None = None,
) -> str:
    """How a picture was made, as AUTOMATIC1111's web UI and those after it read it back.

    Args:
        sampler: one of the values of `SAMPLERS`.
        clip_skip: of the model's text encoder; 1 is not told.
        strength: of image to image.
    """
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    # A value with one of these marks is quoted, else it would end where the mark is (`infotext_utils.quote` there).
    name = json.dumps(model, ensure_ascii=False) if set(model) & set(",:\n") else model
    lines.append(
        f"Steps: {steps}, Sampler: {sampler}, CFG scale: {guidance_scale:g}, Seed: {seed}, "
        f"Size: {width}x{height}, Model: {name}"
        + (f", Denoising strength: {strength:g}" if strength is not None else "")
        + (f", Clip skip: {clip_skip}" if clip_skip > 1 else "")
    )
    return "\n".join(lines)


def save_png(path: Path, image: np.ndarray, parameters: str) -> None:
    """Write *image*, (height, width, 3) uint8, with *parameters* as its text. The file holds no time."""
    text = PngInfo()
    text.add_text("parameters", parameters)
    Image.fromarray(image).save(path, format="PNG", pnginfo=text)


def latent_shape(models: Models, *, height: int, width: int) -> tuple[int, ...]:
    """Shape of the latent, after checking that UNet, decoder and picture agree on it."""
    unet, vae_decoder = models.unet, models.vae_decoder
    if "sample" not in unet.inputs:
        raise BundleError(f"{unet.name}: inputs {', '.join(unet.inputs)}; wanted sample among them.")
    latent, _ = unet.inputs["sample"]
    decoded, _ = vae_decoder.inputs[only(vae_decoder.inputs, f"{vae_decoder.name}, inputs")]
    picture, _ = vae_decoder.outputs[only(vae_decoder.outputs, f"{vae_decoder.name}, outputs")]
    if decoded != latent:
        raise BundleError(
            f"{vae_decoder.name} takes latents of shape {decoded}, but {unet.name} makes {latent}. Compile both for "
            f"one picture size."
        )
    if picture[2:] != (height, width):
        raise BundleError(
            f"picture of {width}x{height} pixels; {vae_decoder.name} was compiled for {picture[3]}x{picture[2]}. Ask "
            f"for that size, or compile the models for the other."
        )
    return latent
