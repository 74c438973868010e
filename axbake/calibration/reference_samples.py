"""What the denoiser is given while the reference picture is drawn: samples that are held out of the calibration."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from axbake.calibration.denoiser_samples import GUIDANCE, TEXTS, TakenInputs, beside_of
from axbake.drawing.canvas import canvas_of, torch_encoding
from axbake.drawing.parts import Drawn, added_of
from axbake.drawing.prompts import load_tokenizer, prompt_embedding
from axbake.drawing.simulation import latents_of
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.canvas import beside_latent
from axbake.runtime.noise import TorchNoise
from axbake.runtime.prompt import encoder
from axbake.runtime.sampler import Schedule
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import added_rows, prompts_of
from axbake.runtime.values import Latents, Picture
from axbake.weights.networks import Build

Feeds = dict[tuple[int, int], dict[str, np.ndarray]]  # by step and branch of guidance


def reference_samples(
    *,
    graphs: Sequence[Path],
    schedule: Schedule,
    embeddings: Path,
    trajectory: Path,
    picture: Picture,
    drawn: Drawn,
    taken: TakenInputs,
    steps: Iterable[int],
    added_weights: Sequence[Path] = (),
    added: Callable[[Path], AddedEmbedding] | None = None,
    canvas: Sequence[Path] = (),
    encoder_weights: Sequence[Path] = (),
    encoder_build: Build | None = None,
    latents: Latents | None = None,
) -> Feeds:
    """Inputs of the denoiser at *steps* of the reference's drawing, for each branch of its guidance.

    Args:
        graphs: float graphs of the components in *drawn*, which are text encoders and denoiser.
        embeddings: `embeddings.json`.
        trajectory: `reference/trajectory.npy`.
        taken: what the denoiser's graphs take.
        added_weights, added: as `axbake.drawing.simulation.simulate` has them.
        canvas: picture and mask, as `axbake.drawing.reference.draw_reference` has them.
        encoder_weights, encoder_build, latents: with a canvas: of the VAE encoder, in a list, what builds it, and the family's.
    """
    drawn_latents = np.load(trajectory)
    noise = TorchNoise(picture.seed)
    before = [noise.normal(drawn_latents.shape[1:]) * np.float32(schedule.init_noise_sigma), *drawn_latents]
    beside = None
    if over := canvas_of(canvas, height=picture.height, width=picture.width):
        (weights,) = encoder_weights
        assert encoder_build and latents
        encode = torch_encoding(weights, encoder_build)
        beside = beside_latent(over, encode, noise, latents=latents_of(latents, weights))
    files = drawn.files(graphs)
    encodes = [encoder(open_models(files[name])) for name in drawn.conditioning.encoders]
    tokenizer = load_tokenizer(embeddings)
    embed = prompt_embedding(encodes, tokenizer, chunks=picture.prompt_chunks, conditioning=drawn.conditioning)
    embeds = [embed(text, negative=number > 0) for number, text in enumerate(prompts_of(picture, schedule))]
    del encodes, embed  # the text encoders leave memory before the denoiser comes
    # With guidance by the picture too, the negative prompt comes twice.
    branches = GUIDANCE[: len(embeds) + (len(embeds) > 1 and picture.image_guidance_scale is not None)]
    rows = added_rows(added_of(added, added_weights), embeds, picture.size_conditioning)
    feeds: Feeds = {}
    for step in steps:
        latent = (before[step] * schedule.input_scale[step]).astype(np.float32)
        for branch in branches[: schedule.branches(step, len(branches))]:
            text = TEXTS[branch]
            given = latent if beside is None else np.concatenate([latent, beside_of(beside, branch)], axis=1)
            time = schedule.time(step, None if rows is None else rows[text : text + 1])
            feeds[step, branch] = taken.feed(given, embeds[text].tokens, time, embeds[text].mask)
    return feeds
