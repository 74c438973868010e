"""The denoising loop of every scheduler: a sum with the coefficients of a schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .added import silu
from .errors import BundleError
from .model import Session, only
from .progress import progress
from .reading import read_arrays, shown


class Time(NamedTuple):
    """A step's noise level, in both forms that denoisers take it in."""

    timestep: float  # 0 to 999
    row: np.ndarray  # (1, C) float32, or (B, C) with one for each prompt: the time embedding after SiLU

    def value(self, shape: tuple[int, ...]) -> np.ndarray:
        """What an input of *shape* takes: the timestep as int32, if it is (1,), else the row.

        Euler's timesteps lie between whole ones. They are cut, as github Mojo24x7/SD1.5_AXM1-AX8850_Euler cuts them.
        """
        return self.row if shape != (1,) else np.array([self.timestep], dtype=np.float64).astype(np.int32)

    def rows(self, prompts: int) -> np.ndarray:
        """(prompts, 1, C) float32: the row of each prompt."""
        return np.repeat(self.row, prompts // len(self.row), axis=0)[:, None]


#: (latent (1, C, h, w), or one for each prompt, time, prompts (B, T, W)), arrays float32 -> the network's outputs, (B, C, h, w)
Denoiser = Callable[[np.ndarray, Time, np.ndarray], np.ndarray]


class Noise(Protocol):
    """A stream of unit normal noise, such as `TorchNoise`."""

    def normal(self, shape: Sequence[int]) -> np.ndarray: ...


@dataclass(frozen=True)
class Schedule:
    """A scheduler set to N steps. The model's outputs m and the noises n of all steps are its terms."""

    scheduler: str  # its name, such as dpmpp_2m_karras
    timesteps: np.ndarray  # (N,) float32: noise levels, 0 to 999
    input_scale: np.ndarray  # (N,) float64: of the latent, before it goes into the model
    #: (N, C) float32: silu(time_embedding(time_proj(timestep))); without silu where prompts add to it
    time_embedding: np.ndarray
    init_noise_sigma: np.ndarray  # () float64: initial latent = this × unit normal noise
    coefficients: np.ndarray  # (N, 1 + 2N) float64: latent after step i = row i · [initial latent, m_0 …, n_0 …]
    draws_noise: np.ndarray  # (N,) bool: whether the step draws n_i from the generator
    guidance_embedded: bool  # whether the time embedding tells the model the guidance scale already (LCM)
    picture_scale: np.ndarray  # (N,) float64: image to image begins at step i with picture_scale × the picture's latent
    noise_scale: np.ndarray  # (N,) float64: + this × unit normal noise
    late_coefficients: np.ndarray  # float64: those of schedules that begin at step 1, 2, … N - 1, flat, in a row
    renormalised: str = (
        ""  # of what guidance gives, the parts that get back the norm they have in the prompt's output: `NORMS`
    )
    guided: np.ndarray | None = None  # (N,) bool: the steps that guidance is for, where it is not for all of them

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether the model runs for the negative prompt too, as classifier-free guidance by *guidance_scale* wants it."""
        return guidance_scale > 1 and not self.guidance_embedded

    def branches(self, step: int, count: int) -> int:
        """How many of the *count* branches of guidance run at *step*: all, or the prompt's alone."""
        return count if self.guided is None or self.guided[step] else 1

    def runs_model(self, step: int) -> bool:
        """Whether the model's output of *step* enters any latent; that of a last step from sigma_min to itself does not."""
        return bool(self.coefficients[:, 1 + step].any())

    def time(self, step: int, added: np.ndarray | None = None) -> Time:
        """Noise level of *step*.

        Args:
            added: (B, C) float32: what each prompt adds to the time embedding (`axbake.runtime.added`); None: nothing.
        """
        row = self.time_embedding[step : step + 1]
        if added is not None:
            row = silu(row.astype(np.float64) + added).astype(np.float32)
        return Time(float(self.timesteps[step]), row)

    def beginning_at(self, step: int) -> Schedule:
        """The last N - *step* steps, as the scheduler does them if it begins there: it knows of no outputs before."""
        if step == 0:
            return self
        sizes = [_coefficients_shape(len(self.timesteps) - first) for first in range(1, step + 1)]
        end = sum(rows * columns for rows, columns in sizes)
        rows, columns = sizes[-1]
        return replace(
            self,
            **{name: getattr(self, name)[step:] for name in EACH_STEP},
            guided=None if self.guided is None else self.guided[step:],
            coefficients=self.late_coefficients[end - rows * columns : end].reshape(rows, columns),
            late_coefficients=np.empty(0),
        )


def _coefficients_shape(steps: int) -> tuple[int, int]:
    return steps, 1 + 2 * steps


EACH_STEP = ("timesteps", "input_scale", "time_embedding", "draws_noise", "picture_scale", "noise_scale")
ARRAYS = dict.fromkeys(Schedule.__dataclass_fields__, ("f", 1))
ARRAYS |= {"scheduler": ("U", 0), "guidance_embedded": ("b", 0), "init_noise_sigma": ("f", 0)}
ARRAYS |= {"renormalised": ("U", 0), "guided": ("b", 1)}
OPTIONAL = ("renormalised", "guided")
ARRAYS |= {"draws_noise": ("b", 1), "time_embedding": ("f", 2), "coefficients": ("f", 2)}


def load_schedule(path: Path) -> Schedule:
    """The schedule in an `.npz` file, as `axbake.drawing.schedule` writes it.

    Raises:
        BundleError: not there, damaged, or it lacks arrays.
    """
    loaded: dict[str, Any] = read_arrays(path, ARRAYS, OPTIONAL)
    steps = len(loaded["timesteps"])
    each = [*EACH_STEP, *({"guided"} & loaded.keys())]
    if short := [name for name in each if len(loaded[name]) != steps]:
        raise BundleError(f"{path}: {steps} steps, but {', '.join(short)} of another number. Copy the bundle again.")
    found, wanted = loaded["coefficients"].shape, _coefficients_shape(steps)
    if found != wanted:
        raise BundleError(f"{path}: {steps} steps, but coefficients of shape {found}; wanted {wanted}.")
    late = sum(rows * columns for rows, columns in map(_coefficients_shape, range(1, steps)))
    if loaded["late_coefficients"].shape != (late,):
        found = loaded["late_coefficients"].shape
        raise BundleError(f"{path}: {steps} steps, but late_coefficients of shape {found}; wanted {(late,)}.")
    plain = {"scheduler": str(loaded["scheduler"]), "guidance_embedded": bool(loaded["guidance_embedded"])}
    plain["renormalised"] = str(loaded.get("renormalised", ""))
    if plain["renormalised"] and plain["renormalised"] not in NORMS:
        raise BundleError(f"{path}: renormalised {shown(plain['renormalised'])}; wanted {' or '.join(NORMS)}.")
    return Schedule(**{**loaded, **plain})


LATENT, CONTEXT = "sample", "encoder_hidden_states"  # inputs of every denoiser
MASK = "encoder_attention_mask"  # of those that mask the prompt's tokens, (1, T) float32


def latent_of(network: Session) -> tuple[int, ...]:
    """Shape of the latent that a denoiser takes, (1, C, h, w)."""
    if LATENT not in network.inputs:
        raise BundleError(f"{network.name}: inputs {', '.join(network.inputs)}; wanted {LATENT} among them.")
    shape, _ = network.inputs[LATENT]
    return shape


def denoiser(network: Session, masks: np.ndarray | None = None) -> Denoiser:
    """*network* as a function.

    Args:
        masks: (B, T) float32: which tokens of each branch's prompt count, for a network that takes a mask.

    Its inputs are `sample`, `encoder_hidden_states`, and one more: the time row, which published models call
    `/down_blocks.0/resnets.0/act_1/Mul_output_0`, or the timestep, `t` in published ones, of shape (1,).
    """
    rest = {name: value for name, value in network.inputs.items() if name not in (LATENT, CONTEXT, MASK)}
    if not {LATENT, CONTEXT} <= network.inputs.keys():
        raise BundleError(f"{network.name}: inputs {', '.join(network.inputs)}; wanted {LATENT} and {CONTEXT}.")
    if (masks is None) == (MASK in network.inputs):
        raise BundleError(
            f"{network.name}: takes {'a' if masks is None else 'no'} {MASK}, but the text encoders give"
            f" {'none' if masks is None else 'one'}. Use all files of one model."
        )
    time_input = only(rest, f"{network.name}, input for the time")
    time_shape, _ = rest[time_input]
    output = only(network.outputs, f"{network.name}, outputs")

    def denoise(latent: np.ndarray, time: Time, prompts: np.ndarray) -> np.ndarray:
        rows = [time._replace(row=row) for row in time.rows(len(prompts))]
        taken = np.repeat(latent, len(prompts) // len(latent), axis=0)
        feeds = [
            {LATENT: sample[None], time_input: one.value(time_shape), CONTEXT: text[None]}
            for sample, text, one in zip(taken, prompts, rows)
        ]
        for feed, mask in zip(feeds, () if masks is None else masks):
            feed[MASK] = mask[None]
        return np.concatenate([made[output] for made in network.run_all(feeds)])

    return denoise


def joined(denoise: Denoiser, beside: np.ndarray) -> Denoiser:
    """*denoise*, which takes *beside* as further channels of the latent, where none is scaled.

    Args:
        beside: (1, K, h, w) float32, or one for each branch of guidance; without guidance the first counts.
    """

    def denoise_joined(latent: np.ndarray, time: Time, prompts: np.ndarray) -> np.ndarray:
        given = beside[: len(prompts)]
        return denoise(np.concatenate([np.repeat(latent, len(given), axis=0), given], axis=1), time, prompts)

    return denoise_joined


class Sampled(NamedTuple):
    """A latent that was drawn, and how."""

    latent: np.ndarray  # (1, C, h, w) float32: the last one
    latents: np.ndarray  # (N, 1, C, h, w) float32: after each step
    seconds: tuple[float, ...]  # of each step that ran the model


def initial_latent(schedule: Schedule, noise: Noise, shape: Sequence[int]) -> np.ndarray:
    """What text to image begins with: (1, C, h, w) float32, the noise's next array at the schedule's first noise level."""
    return noise.normal(shape) * np.float32(schedule.init_noise_sigma)


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    noise: Noise,
    initial: np.ndarray,
    *,
    prompt_embeds: np.ndarray,
    negative_embeds: np.ndarray | None,
    guidance_scale: float,
    image_guidance_scale: float | None = None,
    added: np.ndarray | None = None,
    what: str = "denoising: step",
) -> Sampled:
    """Draw a latent.

    The model is not run in a step whose output no latent has a part of: the last one of `dpmpp_2m_karras`, which goes
    from the smallest noise level to that same level (`final_sigmas_type="sigma_min"`).

    Args:
        noise: the steps' own noises are its next arrays, as in diffusers' pipelines.
        initial: (1, C, h, w) float32: latent before the first step (`initial_latent`).
        prompt_embeds: (1, T, W) what the text encoders make of the prompt (`prompt.embed_prompt`).
        negative_embeds: the same of the negative prompt; not used, and None will do, without guidance.
        guidance_scale: of classifier-free guidance. At 1 or less, and where the schedule has embedded it, the model runs once a
            step, without the negative prompt, as in diffusers.
        image_guidance_scale: how far the picture that it draws on guides too (InstructPix2Pix). With guidance the model runs a
            third time then, with the negative prompt and without the picture. None: there is no such branch.
        added: what prompt and, with guidance, negative prompt add to the time embedding, (B, C) float32; None: nothing.
        what: the lines of progress begin with it.
    """
    guided = schedule.is_guided(guidance_scale)
    if guided and negative_embeds is None:
        raise BundleError(f"guidance scale {guidance_scale:g} without a negative prompt; an empty one will do.")
    prompts = (
        np.concatenate([prompt_embeds, negative_embeds]) if guided and negative_embeds is not None else prompt_embeds
    )
    if guided and image_guidance_scale is not None:
        prompts = np.concatenate([prompts, prompts[1:]])
        added = None if added is None else np.concatenate([added, added[1:]])
    tell = progress(what)
    steps = len(schedule.timesteps)
    terms = np.zeros((1 + 2 * steps, *initial.shape), dtype=np.float32)  # initial latent, outputs of the model, noises
    latents = np.empty((steps, *initial.shape), dtype=np.float32)
    latent = terms[0] = initial
    seconds = []
    for i in range(steps):
        start = time.perf_counter()
        if schedule.runs_model(i):
            scaled = (latent * schedule.input_scale[i]).astype(np.float32)
            count = schedule.branches(i, len(prompts)) if guided else 1
            texts, of_texts = (
                (prompts[:count], added if added is None else added[:count]) if guided else (prompts, added)
            )
            output = denoise(scaled, schedule.time(i, of_texts), texts)
            made = _guided(output, guidance_scale, image_guidance_scale) if count > 1 else output
            if count > 1 and schedule.renormalised:
                made = _renormalised(made, output[:1], NORMS[schedule.renormalised])
            terms[1 + i] = made
        if schedule.draws_noise[i]:
            terms[1 + steps + i] = noise.normal(initial.shape)
        latent = latents[i] = _weighted_sum(schedule.coefficients[i], terms)
        if schedule.runs_model(i):
            seconds.append(time.perf_counter() - start)
        tell(i + 1, steps)
    return Sampled(latents[-1], latents, tuple(seconds))


def _guided(outputs: np.ndarray, scale: float, image_scale: float | None) -> np.ndarray:
    """Classifier-free guidance (Ho and Salimans 2022), with an *image_scale* that of InstructPix2Pix (Brooks et al. 2023).

    Args:
        outputs: (2, C, h, w) with prompt and with negative prompt; or (3, C, h, w), the last without the picture too.
    """
    if image_scale is None:
        return outputs[1:] + np.float32(scale) * (outputs[:1] - outputs[1:])
    prompt, negative, plain = np.split(outputs, 3)
    return plain + np.float32(scale) * (prompt - negative) + np.float32(image_scale) * (negative - plain)


def _renormalised(made: np.ndarray, wanted: np.ndarray, norm: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """*made* with the norms of *wanted*, both (1, C, h, w)."""
    return made * (norm(wanted) / norm(made))


def _norms_of_lines(output: np.ndarray) -> np.ndarray:
    """(1, C, h, w) -> (1, C, h, 1), as diffusers' `Lumina2Pipeline` has them."""
    return np.linalg.norm(output, axis=-1, keepdims=True)


def _norms_of_patches(output: np.ndarray) -> np.ndarray:
    """(1, C, h, w) -> (1, 1, h, w), of 2 × 2 pixels through all channels, as diffusers' `QwenImagePipeline` has them."""
    _, channels, height, width = output.shape
    parts = output.reshape(channels, height // 2, 2, width // 2, 2)
    norms = np.sqrt(np.square(parts).sum(axis=(0, 2, 4)))
    return norms.repeat(2, axis=0).repeat(2, axis=1)[None, None]


NORMS = {"lines": _norms_of_lines, "patches": _norms_of_patches}


def _weighted_sum(weights: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Σ weights × terms: (K,) float64 and (K, …) float32 -> (…) float32.

    In float64 and one term after the other: terms many times as large as their sum cancel, and the sum is the same on
    every CPU.
    """
    total = np.zeros(terms.shape[1:], dtype=np.float64)
    for weight, term in zip(weights, terms):
        if weight:
            total += weight * term
    return total.astype(np.float32)
