"""The denoising loop of every scheduler: a sum with the coefficients of a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import BundleError
from .progress import progress
from .session import Session, only

#: (latent (1, 4, h, w), time row (1, C), prompts (B, T, W)), all float32 -> the UNet's output for each prompt, (B, 4, h, w)
Denoiser = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Noise(Protocol):
    """A stream of unit normal noise, such as `TorchNoise`."""

    def normal(self, shape: Sequence[int]) -> np.ndarray: ...


@dataclass(frozen=True)
class Schedule:
    """A scheduler set to N steps. The model's outputs m and the noises n of all steps are its terms."""

    scheduler: str  # its name, such as dpmpp_2m_karras
    timesteps: np.ndarray  # (N,) float32: noise levels, 0 to 999
    input_scale: np.ndarray  # (N,) float64: of the latent, before it goes into the model
    time_embedding: np.ndarray  # (N, C) float32: silu(time_embedding(time_proj(timestep)))
    init_noise_sigma: np.ndarray  # () float64: initial latent = this × unit normal noise
    coefficients: np.ndarray  # (N, 1 + 2N) float64: latent after step i = row i · [initial latent, m_0 …, n_0 …]
    draws_noise: np.ndarray  # (N,) bool: whether the step draws n_i from the generator
    guidance_embedded: bool  # whether the time embedding tells the model the guidance scale already (LCM)

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether the model runs for the negative prompt too, as classifier-free guidance by *guidance_scale* wants it."""
        return guidance_scale > 1 and not self.guidance_embedded

    def runs_model(self, step: int) -> bool:
        """Whether the model's output of *step* enters any latent; that of a last step from sigma_min to itself does not."""
        return bool(self.coefficients[:, 1 + step].any())


def load_schedule(path: Path) -> Schedule:
    """The schedule in an `.npz` file, as `axbake.schedule` writes it."""
    fields = Schedule.__dataclass_fields__
    with np.load(path, allow_pickle=False) as arrays:
        missing = sorted(set(fields) - set(arrays.files))
        if missing:
            raise BundleError(
                f"{path}: no array {', '.join(missing)}; wanted a schedule.npz of this version of axbake."
            )
        loaded = {name: arrays[name] for name in fields}
    steps = len(loaded["timesteps"])
    if loaded["coefficients"].shape != (steps, 1 + 2 * steps):
        found = loaded["coefficients"].shape
        raise BundleError(f"{path}: {steps} steps, but coefficients of shape {found}; wanted {(steps, 1 + 2 * steps)}.")
    plain = {"scheduler": str(loaded["scheduler"]), "guidance_embedded": bool(loaded["guidance_embedded"])}
    return Schedule(**{**loaded, **plain})


def denoiser(unet: Session) -> Denoiser:
    """*unet* as a function.

    Its inputs are `sample`, `encoder_hidden_states`, and one more: the time row, which published models call
    `/down_blocks.0/resnets.0/act_1/Mul_output_0`.
    """
    rest = {name: value for name, value in unet.inputs.items() if name not in ("sample", "encoder_hidden_states")}
    if len(rest) != len(unet.inputs) - 2:
        raise BundleError(f"{unet.name}: inputs {', '.join(unet.inputs)}; wanted sample and encoder_hidden_states.")
    time = only(rest, f"{unet.name}, input for the time row")
    output = only(unet.outputs, f"{unet.name}, outputs")

    def denoise(latent: np.ndarray, time_row: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        runs = [unet.run({"sample": latent, time: time_row, "encoder_hidden_states": text[None]}) for text in prompts]
        return np.concatenate([run[output] for run in runs])

    return denoise


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    noise: Noise,
    *,
    shape: tuple[int, ...],
    prompt_embeds: np.ndarray,
    negative_embeds: np.ndarray | None,
    guidance_scale: float,
    what: str = "denoising: step",
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a latent.

    The model is not run in a step whose output no latent has a part of: the last one of `dpmpp_2m_karras`, which goes
    from the smallest noise level to that same level (`final_sigmas_type="sigma_min"`).

    Args:
        noise: the initial latent is its first array, the steps' own noises the next ones, as in diffusers' pipelines.
        shape: of the latent, (1, 4, h, w).
        prompt_embeds: (1, T, W) what the text encoder makes of the prompt (`prompt.embed_prompt`); T is 77 a chunk.
        negative_embeds: the same of the negative prompt; not used, and None will do, without guidance.
        guidance_scale: of classifier-free guidance. At 1 or less, and where the schedule has embedded it, the model runs once a
            step, without the negative prompt, as in diffusers.
        what: the lines of progress begin with it.

    Returns:
        (1, 4, h, w) float32 final latent, and (N, 1, 4, h, w) float32 latents after each step.
    """
    guided = schedule.is_guided(guidance_scale)
    if guided and negative_embeds is None:
        raise BundleError(f"guidance scale {guidance_scale:g} without a negative prompt; an empty one will do.")
    prompts = (
        np.concatenate([prompt_embeds, negative_embeds]) if guided and negative_embeds is not None else prompt_embeds
    )
    tell = progress(what)
    steps = len(schedule.timesteps)
    terms = np.zeros((1 + 2 * steps, *shape), dtype=np.float32)  # initial latent, outputs of the model, noises
    terms[0] = noise.normal(shape) * np.float32(schedule.init_noise_sigma)
    latents = np.empty((steps, *shape), dtype=np.float32)
    latent = terms[0]
    for i in range(steps):
        if schedule.runs_model(i):
            scaled = (latent * schedule.input_scale[i]).astype(np.float32)
            time_row = schedule.time_embedding[i : i + 1]
            output = denoise(scaled, time_row, prompts)
            if guided:
                output = output[1:] + np.float32(guidance_scale) * (output[:1] - output[1:])
            terms[1 + i] = output
        if schedule.draws_noise[i]:
            terms[1 + steps + i] = noise.normal(shape)
        latent = latents[i] = _weighted_sum(schedule.coefficients[i], terms)
        tell(i + 1, steps)
    return latents[-1], latents


def _weighted_sum(weights: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Σ weights × terms: (K,) float64 and (K, …) float32 -> (…) float32.

    In float64 and one term after the other: terms many times as large as their sum cancel, and the sum is the same on
    every CPU.
    """
    total = np.zeros(terms.shape[1:], dtype=np.float64)
    for weight, term in zip(weights, terms):  # noqa: B905 - `strict` is Python 3.10
        if weight:
            total += weight * term
    return total.astype(np.float32)
