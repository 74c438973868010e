"""The picture that a model should draw: diffusers, in float32, on the host."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from axbake.checkpoints import components
from axbake.checkpoints.weights import read_description, read_sampling
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import build_scheduler
from axbake.runtime.progress import progress
from axbake.runtime.txt2img import SAMPLERS, png_parameters, save_png


def load_pipeline(unet: Path, vae_decoder: Path, *, scheduler: str) -> StableDiffusionPipeline:
    """diffusers' pipeline of two `weights/{component}.safetensors`, float32; it takes embedded prompts, and no images."""
    pipeline = StableDiffusionPipeline(
        vae=_decoding_vae(vae_decoder),
        text_encoder=None,
        tokenizer=None,
        unet=components.channels_last(components.load(unet)),
        scheduler=build_scheduler(scheduler, read_sampling(unet)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _decoding_vae(weights: Path) -> Any:
    """diffusers' autoencoder whose encoder half is not there."""
    with torch.device("meta"):
        vae = components.autoencoder(read_description(weights).config)
    half = components.load(weights)
    for name in dict(vae.named_children()):
        setattr(vae, name, getattr(half, name, None))
    return vae.eval()


def draw_reference(
    *,
    text_encoder: Path,
    unet: Path,
    vae_decoder: Path,
    embeddings: Path,
    model: str,
    prompt: str,
    negative_prompt: str,
    height: int,
    width: int,
    scheduler: str,
    steps: int,
    guidance_scale: float,
    seed: int,
    prompt_chunks: int,
    clip_skip: int,
    image: Path,
    trajectory: Path,
    settings: Path,
) -> None:
    """Draw the reference picture; the same settings give the same picture.

    Args:
        text_encoder, unet, vae_decoder: `weights/{component}.safetensors`.
        embeddings: `embeddings.json`.
        seed: of torch's CPU generator, as people who use diffusers give it.
        prompt_chunks: chunks of 77 tokens in the UNet's context.
        clip_skip: that the text encoder was imported with; told beside the picture.
        image: PNG to write, with its settings in the form that web UIs read.
        trajectory: .npy to write: (N, 1, 4, H/8, W/8) float32, the latent after each step.
        settings: JSON to write: how the picture was made.
    """
    read_sampling(unet).check(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)
    embed = prompt_embedding(text_encoding(text_encoder), load_tokenizer(embeddings), chunks=prompt_chunks)
    pipeline = load_pipeline(unet, vae_decoder, scheduler=scheduler)
    latents: list[np.ndarray] = []
    tell = progress("reference: step")

    def keep(pipeline, step: int, timestep, tensors: dict) -> dict:
        latents.append(tensors["latents"].numpy().copy())
        tell(step + 1, steps)
        return tensors

    drawn = pipeline(
        prompt_embeds=torch.from_numpy(embed(prompt)),
        negative_prompt_embeds=torch.from_numpy(embed(negative_prompt)) if guidance_scale > 1 else None,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=keep,
        output_type="np",
    ).images[0]
    parameters: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "steps": steps,
        "sampler": SAMPLERS[scheduler],
        "guidance_scale": guidance_scale,
        "seed": seed,
        "height": height,
        "width": width,
        "model": model,
        "clip_skip": clip_skip,
    }
    save_png(image, (drawn * 255).round().astype(np.uint8), png_parameters(**parameters))
    np.save(trajectory, np.stack(latents))
    settings.write_text(json.dumps(parameters, indent=1, ensure_ascii=False) + "\n")
