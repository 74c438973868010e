"""The picture that a model should draw: diffusers, in float32, on the host."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from axbake.checkpoints.refusals import check_canvas
from axbake.drawing.canvas import canvas_of
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.schedule import build_scheduler
from axbake.host import CPU
from axbake.runtime.progress import progress
from axbake.runtime.prompt import Embedded
from axbake.runtime.txt2img import save_png
from axbake.runtime.values import CANVAS, SAMPLERS, Conditioning, Picture
from axbake.weights import networks
from axbake.weights.files import read_description, read_sampling
from axbake.weights.networks import Build

SIZES = ("original_size", "crops_coords_top_left", "target_size")  # as diffusers' pipeline calls `Picture.sizes`
ENCODING = ("encoder", "quant_conv")  # modules of an autoencoder that make latents
Builds = Mapping[str, Build]  # by component


def load_pipeline(
    denoiser: Path,
    decoder: Path,
    *,
    builds: Builds,
    pipeline: Callable[..., Any],
    scheduler: str,
    device: str = CPU,
    encoder: Sequence[Path] = (),
) -> Any:
    """diffusers' pipeline of `weights/{component}.safetensors`, float32; it takes embedded prompts, and no images.

    Args:
        builds, pipeline: of the family.
        device: cpu or cuda: where its networks are.
        encoder: the VAE encoder's, in a list, for a pipeline that takes images.
    """

    def load(weights: Path) -> Any:
        return networks.load(weights, builds[read_description(weights).component], device=device)

    network, half, described = networks.channels_last(load(denoiser)), load(decoder), read_description(decoder)
    chosen = build_scheduler(scheduler, read_sampling(denoiser))
    others = [load(path) for path in encoder]
    given = dict(zip(["encoder"], others, strict=False))
    return pipeline(network, half, chosen, decoder_config=described.config, **given)


def draw_reference(
    *,
    text_encoders: Sequence[Path],
    denoiser: Path,
    decoder: Path,
    embeddings: Path,
    picture: Picture,
    builds: Builds,
    states: Mapping[str, Callable[..., Any]],
    pipeline: Callable[..., Any],
    conditioning: Conditioning,
    image: Path,
    trajectory: Path,
    settings: Path,
    activations: Path,
    device: str = CPU,
    canvas: Sequence[Path] = (),
    encoder: Sequence[Path] = (),
) -> None:
    """Draw the reference picture; the same settings give the same picture.

    Args:
        text_encoders, denoiser, decoder: `weights/{component}.safetensors`; text encoders as *conditioning* has them.
        embeddings: `embeddings.json`.
        picture: its seed is of torch's CPU generator, as people who use diffusers give it; the clip skip is what the text
            encoders were imported with.
        builds, states, pipeline, conditioning: of the family; states by text encoder.
        device: cpu or cuda: where denoiser and VAE run.
        image: PNG to write, with its settings in the form that web UIs read.
        trajectory: .npy to write: (N, 1, C, h, w) float32, the latent after each step.
        settings: JSON to write: how the picture was made.
        activations: JSON to write: the largest absolute value in the decoder (`peak`), and the module that gave it.
        canvas: picture and mask that a denoiser for inpainting draws on, the picture that one for instructions does; none of
            others.
        encoder: weights of the VAE encoder, in a list, with a canvas.
    """
    over = canvas_of(canvas, height=picture.height, width=picture.width)
    described = read_description(denoiser)
    check_canvas(described.component, described.config, given=CANVAS[: len(canvas)])
    read_sampling(denoiser).check(
        scheduler=picture.scheduler, steps=picture.steps, guidance_scale=picture.guidance_scale
    )
    encodes = [
        text_encoding(path, builds[name], states[name])
        for path, name in zip(text_encoders, conditioning.encoders, strict=True)
    ]
    tokenizer = load_tokenizer(embeddings)
    embed = prompt_embedding(encodes, tokenizer, chunks=picture.prompt_chunks, conditioning=conditioning)
    given: dict[str, Any] = _given(embed(picture.prompt), "")
    if picture.guidance_scale > 1:
        given |= _given(embed(picture.negative_prompt, negative=True), "negative_")
    if picture.cfg_trunc_ratio is not None:
        given["cfg_trunc_ratio"] = picture.cfg_trunc_ratio
    if picture.sizes:
        given |= dict(zip(SIZES, zip(picture.sizes[::2], picture.sizes[1::2], strict=True), strict=True))
    if over:
        given["image"] = Image.fromarray(over.pixels)
        if over.mask is None:
            given["image_guidance_scale"] = picture.image_guidance_scale
        else:
            given |= {"mask_image": Image.fromarray(over.mask.astype(np.uint8) * 255), "strength": 1.0}
    del encodes, embed  # the text encoders leave memory before the denoiser comes
    drawing = load_pipeline(
        denoiser,
        decoder,
        builds=builds,
        pipeline=pipeline,
        scheduler=picture.scheduler,
        device=device,
        encoder=encoder,
    )
    given = {name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in given.items()}
    largest = _watch(drawing.vae)
    latents: list[np.ndarray] = []
    tell = progress("reference: step")

    def keep(pipeline, step: int, timestep, tensors: dict) -> dict:
        latents.append(tensors["latents"].cpu().numpy().copy())
        tell(step + 1, picture.steps)
        return tensors

    drawn = drawing(
        **given,
        height=picture.height,
        width=picture.width,
        num_inference_steps=picture.steps,
        guidance_scale=picture.guidance_scale,
        generator=torch.Generator().manual_seed(picture.seed),
        callback_on_step_end=keep,
        output_type="np",
    ).images[0]
    save_png(image, (drawn * 255).round().astype(np.uint8), picture.parameters())
    np.save(trajectory, np.stack(latents))
    settings.write_text(json.dumps(said_of(picture), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    activations.write_text(json.dumps(largest, indent=1) + "\n", encoding="utf-8")


def _watch(network: torch.nn.Module) -> dict[str, Any]:
    """The largest absolute value that a module of the autoencoder *network* gives while it decodes, and the module's name.

    Both are kept up to date as it runs.
    """
    largest: dict[str, Any] = {"peak": 0.0, "module": ""}

    def look(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            peak = max(abs(float(value)) for value in torch.aminmax(output))  # no copy, as abs() would make
            if peak > largest["peak"]:
                largest.update(peak=peak, module=name)

    for name, module in network.named_modules():
        if name.startswith(ENCODING):
            continue
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
    return largest


def _given(embedded: Embedded, which: str) -> dict[str, torch.Tensor]:
    """What a pipeline is given of a prompt; *which*: what the names of a negative one begin with."""
    arrays = {f"{which}prompt_embeds": embedded.tokens, f"{which}pooled_prompt_embeds": embedded.pooled}
    # Of diffusers' own pipelines none takes these two; a family's own function does (`axbake.networks.pipelines`).
    arrays |= {f"{which}prompt_states": embedded.states, f"{which}prompt_mask": embedded.mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def said_of(picture: Picture) -> dict[str, Any]:
    """How *picture* was made, as the report shows it."""
    unsaid = ["prompt_chunks", *([] if picture.sizes else ["sizes"])]
    said = {name: value for name, value in asdict(picture).items() if name not in unsaid and value is not None}
    return {"sampler" if name == "scheduler" else name: value for name, value in said.items()} | {
        "sampler": SAMPLERS[picture.scheduler]
    }
