"""What a model's networks see when it draws its calibration prompts, recorded with torch."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axbake.calibration.denoiser_samples import EMPTY, SAMPLE, TEXT, TakenInputs, samples_in
from axbake.calibration.masks import draw_mask
from axbake.calibration.modules import ModuleRanges
from axbake.checkpoints.refusals import check_canvas
from axbake.drawing.canvas import torch_encoding
from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
from axbake.drawing.simulation import latents_of
from axbake.host import freed_memory_kept
from axbake.npz import npz_bytes
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.canvas import Canvas, beside_latent
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import count_tokens
from axbake.runtime.sampler import MASK, Denoiser, Schedule, Time, initial_latent, joined, load_schedule, sample
from axbake.runtime.txt2img import added_rows, masks_of
from axbake.runtime.values import CANVAS, Conditioning, Latents, web_ui_sizes
from axbake.weights import networks
from axbake.weights.files import read_description
from axbake.weights.networks import Build

logger = logging.getLogger(__name__)
ROW = "time"


def record_trajectories(
    *,
    text_encoders: Sequence[Path],
    denoiser: Path,
    schedule: Path,
    embeddings: Path,
    builds: Mapping[str, Build],
    states: Mapping[str, Callable[..., Any]],
    with_rows: Callable[[Any], Any],
    conditioning: Conditioning,
    latents: Latents,
    prompts: list[str],
    negative_prompt: str,
    guidance_scale: float,
    height: int,
    width: int,
    seed: int,
    precision: str,
    device: str,
    prompt_chunks: int,
    trajectories: Path,
    added: Callable[[Path], AddedEmbedding] | None = None,
    sizes: Sequence[int] = (),
    image_guidance_scale: float | None = None,
    pictures: Sequence[Path] = (),
    encoder: Sequence[Path] = (),
) -> None:
    """Draw every calibration prompt's latent in torch, with guidance as at run time, and keep what the denoiser saw.

    Args:
        text_encoders, denoiser: `weights/{component}.safetensors`; the text encoders in the order of *conditioning*.
        builds, states, added, with_rows, conditioning, latents: of the family; builds and states by component.
        schedule: `schedule.npz`; N steps.
        embeddings: `embeddings.json`.
        height, width: image pixels.
        sizes: that the denoiser takes, as `axbake.runtime.values.Picture` has them.
        seed: of the first prompt's noise; the n-th prompt has seed + n.
        precision: float32 or bfloat16: of the UNet's weights and activations; the sampler's sums are as ever.
        device: cpu or cuda: where the denoiser runs.
        prompt_chunks: chunks of 77 tokens in the UNet's context; T tokens in all.
        trajectories: `.npz` to write, for P prompts: `prompt_embeds` (P, 1, T, W), `negative_embeds` and `empty_embeds`,
            of the empty prompt, (1, T, W), `latents` (P, N + 1, 1, C, h, w): before the first step, and after each; all
            float32. Where prompts add to the time embedding, `prompt_added` (P, 1, C), `negative_added` and `empty_added`
            (1, C) are what they add. Where the denoiser takes a mask of the prompt's tokens, `prompt_mask` (P, 1, T),
            `negative_mask` and `empty_mask` (1, T) are it. `prompts` (P,) and `negative_prompt` () are the texts; `tokens` (P,)
            int64 how long the prompts are. `module_names` (M,), `module_low` and `module_high` (S, M): the range of what each of
            the denoiser's modules gives, for the S samples of `DenoiserSamples.recorded`. Of a denoiser that draws on a picture,
            `beside` (P, 1 or B, K, h, w) float32 is what it takes beside each prompt's latents
            (`axbake.runtime.canvas.beside_latent`).
        image_guidance_scale: of a denoiser for instructions; None: of others.
        pictures: of a denoiser that draws on a picture, in a list: `calibration/pictures.npy`; the n-th prompt is drawn on the
            n-th of them, for inpainting with the n-th mask (`axbake.calibration.masks`).
        encoder: likewise: weights of the VAE encoder.
    """
    described = read_description(denoiser)
    masked = image_guidance_scale is None
    check_canvas(described.component, described.config, given=CANVAS[: 1 + masked] if pictures else ())
    steps = load_schedule(schedule)
    tokenizer = load_tokenizer(embeddings)
    encodes = [
        text_encoding(path, builds[name], states[name])
        for path, name in zip(text_encoders, conditioning.encoders, strict=True)
    ]
    embed = prompt_embedding(encodes, tokenizer, chunks=prompt_chunks, conditioning=conditioning)
    negative, empty = (embed(prompt, negative=True) for prompt in (negative_prompt, ""))
    embeds = [embed(prompt) for prompt in prompts]
    del encodes, embed  # the text encoders leave memory before the denoiser comes
    add = added(denoiser) if added else None
    sizes = sizes or web_ui_sizes(height, width)
    denoising, ranges = watched_denoiser(
        denoiser, builds[described.component], with_rows, precision=precision, device=device
    )
    drawn_latents = []
    beside: list[np.ndarray] = []
    drawing_on = _beside(*pictures, *encoder, builds=builds, latents=latents, masked=masked) if pictures else None
    with freed_memory_kept():
        for number, (prompt, embedded) in enumerate(zip(prompts, embeds, strict=True)):
            logger.debug("prompt %d: %s", number + 1, prompt)
            pair = [embedded, negative][: 2 if steps.is_guided(guidance_scale) else 1]
            noise = TorchNoise(seed + number)
            start = initial_latent(steps, noise, latents.shape(height, width))
            if drawing_on:
                beside.append(drawing_on(number, noise))
            denoise = denoising(masks_of(pair))
            drawn = sample(
                joined(denoise, beside[-1]) if drawing_on else denoise,
                steps,
                noise,
                start,
                prompt_embeds=embedded.tokens,
                negative_embeds=negative.tokens,
                added=added_rows(add, pair, sizes),
                guidance_scale=guidance_scale,
                image_guidance_scale=image_guidance_scale,
                what=f"recording: prompt {number + 1} of {len(prompts)}, step",
            )
            drawn_latents.append(np.concatenate([start[None], drawn.latents]))
    arrays = {
        "prompts": np.array(prompts),
        "tokens": np.array([count_tokens(prompt, tokenizer) for prompt in prompts]),
        "negative_prompt": np.array(negative_prompt),
        "prompt_embeds": np.stack([one.tokens for one in embeds]),
        "negative_embeds": negative.tokens,
        "empty_embeds": empty.tokens,
        "latents": np.stack(drawn_latents),
    }
    arrays |= {"beside": np.stack(beside)} if drawing_on else {}
    rows = added_rows(add, [*embeds, negative, empty], sizes)
    if rows is not None:
        *of_prompts, of_negative, of_empty = rows[:, None]
        arrays |= {"prompt_added": np.stack(of_prompts), "negative_added": of_negative, "empty_added": of_empty}
    masks = [one.mask for one in [*embeds, negative, empty] if one.mask is not None]
    if masks:
        *of_prompts, of_negative, of_empty = masks
        arrays |= {"prompt_mask": np.stack(of_prompts), "negative_mask": of_negative, "empty_mask": of_empty}
    # The empty prompt has not been drawn with, but is put to what was.
    recorded = samples_in(arrays, steps, taken_rows(steps))
    for which in recorded.recorded(guidance_scale):
        if which[2] == EMPTY:
            run_samples(denoising, [recorded.inputs(which)])
    trajectories.write_bytes(npz_bytes(arrays | ranges.arrays()))


def _beside(
    pictures: Path, encoder: Path, *, builds: Mapping[str, Build], latents: Latents, masked: bool
) -> Callable[[int, TorchNoise], np.ndarray]:
    """A function that gives what the denoiser takes beside the latents of a prompt, by its number, of the noise that is next."""
    drawn, scaled = np.load(pictures), latents_of(latents, encoder)
    encode = torch_encoding(encoder, builds[read_description(encoder).component])
    height, width = drawn.shape[1:3]

    def beside(number: int, noise: TorchNoise) -> np.ndarray:
        mask = draw_mask(number, height=height, width=width) if masked else None
        return beside_latent(Canvas(drawn[number % len(drawn)], mask), encode, noise, latents=scaled)

    return beside


def taken_rows(schedule: Schedule) -> TakenInputs:
    """What a denoiser in torch takes, whatever its graphs do: the time as a row."""
    return TakenInputs(ROW, (1, schedule.time_embedding.shape[1]))


def run_samples(
    denoising: Callable[[np.ndarray | None], Denoiser], samples: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Run samples with what `taken_rows` says, as one batch; *denoising*: of `watched_denoiser`."""
    given = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    denoising(given.get(MASK))(given[SAMPLE], Time(0, given[ROW]), given[TEXT])


def watched_denoiser(
    weights: Path, build: Build, with_rows: Callable[[Any], Any], *, precision: str, device: str
) -> tuple[Callable[[np.ndarray | None], Denoiser], ModuleRanges]:
    """A function that gives the denoiser of *weights* as the sampler calls it, for masks of the branches' tokens; its ranges.

    Rows come from outside as in the exported graphs.

    Args:
        build, with_rows: of the family.
        precision, device: as `record_trajectories` has them.
    """
    dtype = networks.PRECISIONS[precision]
    loaded = networks.load(weights, build, dtype=dtype, device=device)
    network = with_rows(networks.packed(networks.channels_last(loaded)))
    ranges = ModuleRanges(network)

    def denoising(masks: np.ndarray | None) -> Denoiser:
        def denoise(latent: np.ndarray, time: Time, prompts: np.ndarray) -> np.ndarray:
            branches = len(prompts)
            arrays = [np.repeat(latent, branches // len(latent), axis=0), prompts, time.rows(branches)[:, 0]]
            arrays += [] if masks is None else [masks[:branches]]
            with torch.inference_mode():
                made = network(*(torch.from_numpy(array).to(device, dtype) for array in arrays))
            ranges.end_of_run()
            return made.float().cpu().contiguous().numpy()

        return denoise

    return denoising, ranges
