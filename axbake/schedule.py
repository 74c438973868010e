"""Schedules: all that a denoising loop needs of a diffusers scheduler, as arrays.

A scheduler of the table below is linear: the latent after step i is a sum of the initial latent, the model's outputs so
far and the noises so far, with coefficients that depend on the step alone. So the real scheduler is run once on basis
vectors, and what comes out is its coefficients. One NumPy expression then runs every scheduler
(`axbake.runtime.sampler`), on machines without torch too.

`schedule.npz` holds, N being the number of steps and C the width of the time embedding (1280 in SD 1.5):

| array | shape, type | meaning |
|---|---|---|
| `scheduler` | () str | name in the table, such as `dpmpp_2m_karras` |
| `timesteps` | (N,) float32 | noise level of each step, 0 to 999, falling; Karras' spacing may repeat some |
| `input_scale` | (N,) float64 | the latent is multiplied by it before it goes into the model; 1 but for Euler |
| `time_embedding` | (N, C) float32 | silu(time_embedding(time_proj(timestep))), as residual blocks take it |
| `init_noise_sigma` | () float64 | initial latent = this × unit normal noise; 1 but for Euler |
| `coefficients` | (N, 1 + 2N) float64 | latent after step i = row i · [x, m_0 … m_{N-1}, n_0 … n_{N-1}] |
| `draws_noise` | (N,) bool | whether step i draws its noise n_i from the generator; LCM's do, but the last |

where x is the initial latent (`init_noise_sigma` included), m_i the model's output of step i (after classifier-free
guidance) and n_i the unit normal noise of step i. Coefficients of later steps and of noises not drawn are 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

from axbake.errors import AxbakeError
from axbake.npz import npz_bytes
from axbake.weights import Sampling, read_sampling

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACING = {"steps_offset": 1, "timestep_spacing": "leading"}

#: Name in the table's `scheduler` column -> class and its configuration. `dpmpp_2m_karras` is configured as in github
#: yuyun2000/sd15-to-ax8850-deploy; the others with the values of SD 1.5's published scheduler_config.json.
SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "dpmpp_2m_karras": (
        DPMSolverMultistepScheduler,
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "use_karras_sigmas": True,
            "final_sigmas_type": "sigma_min",
        },
    ),
    "unipc": (UniPCMultistepScheduler, SPACING),
    "euler": (EulerDiscreteScheduler, SPACING),
    "ddim": (DDIMScheduler, {**SPACING, "clip_sample": False, "set_alpha_to_one": False}),
    "lcm": (
        LCMScheduler,
        {**SPACING, "clip_sample": False, "set_alpha_to_one": False, "original_inference_steps": 50},
    ),
}

PREDICTION_TYPES = ("epsilon", "v_prediction")  # what the model gives: the noise, or Salimans and Ho's velocity
MAX_DEVIATION = 1e-5  # of the latent's largest value; float32 rounding gives 1e-6, clipping and other noise above 1e-2


class UnknownSchedulerError(AxbakeError):
    """The name of a scheduler is not in `SCHEDULERS`."""


class ScheduleError(AxbakeError):
    """A scheduler cannot be written as a schedule of so many steps, or the model has no time embedding as expected."""


def build_scheduler(name: str, sampling: Sampling | None = None) -> SchedulerMixin:
    """The diffusers scheduler called *name* in the table, configured for Stable Diffusion.

    Args:
        sampling: how the UNet is run, its prediction type one of `PREDICTION_TYPES`; None: as that of Stable Diffusion 1.5.
    """
    sampling = sampling or Sampling()
    prediction_type = sampling.prediction_type
    if name not in SCHEDULERS:
        raise UnknownSchedulerError(f"scheduler {name!r} is unknown; known: {', '.join(sorted(SCHEDULERS))}.")
    if prediction_type not in PREDICTION_TYPES:
        raise ScheduleError(f"prediction type {prediction_type!r} is unknown; known: {', '.join(PREDICTION_TYPES)}.")
    scheduler, settings = SCHEDULERS[name]
    # Lin et al. 2023: a schedule that ends in pure noise is walked from its very end on.
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if sampling.zero_terminal_snr else {}
    return scheduler(**BETAS | settings | zero, prediction_type=prediction_type)


def derive_schedule(*, scheduler: str, steps: int, guidance_scale: float, unet: Path, schedule: Path) -> None:
    """Write the arrays that run *scheduler* for *steps* steps into the file *schedule* (see this module's docstring).

    Args:
        guidance_scale: what a UNet distilled for LCM is told in its time embedding; to others it says nothing here.
        unet: `weights/unet.safetensors`; only the tensors of its time embedding are read.

    Raises:
        ScheduleError: diffusers refuses the number of steps, the scheduler is not linear, or tensors are missing.
        SamplingError: the UNet was not made for such a way of drawing.
    """
    sampling = read_sampling(unet)
    sampling.check(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)
    arrays = scheduler_arrays(scheduler, steps, sampling)
    arrays["time_embedding"] = time_embedding(unet, arrays["timesteps"], guidance_scale=guidance_scale)
    schedule.write_bytes(npz_bytes(arrays))


def scheduler_arrays(name: str, steps: int, sampling: Sampling | None = None) -> dict[str, np.ndarray]:
    """All arrays of a schedule that do not depend on the model's weights."""

    def start() -> SchedulerMixin:
        return _start(name, steps, sampling)

    coefficients, draws_noise = _coefficients(start)
    scheduler = start()
    arrays = {
        "scheduler": np.array(name),
        "timesteps": scheduler.timesteps.numpy().astype(np.float32),
        "input_scale": _input_scale(start),
        "init_noise_sigma": np.array(float(scheduler.init_noise_sigma), dtype=np.float64),
        "coefficients": coefficients,
        "draws_noise": draws_noise,
        "guidance_embedded": np.array(sampling is not None and sampling.guidance_embedded),
    }
    # Sizes far above 1 too: clipping and thresholding act there only.
    for size in (1.0, 1000.0):
        _check_linear(name, start, coefficients, draws_noise, size=size)
    return arrays


def time_embedding(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows that the UNet's residual blocks take for *timesteps*, SiLU applied.

    The sinusoids are float32 as the model was trained with (in float64 they would differ by 6e-5 at timestep 999), the
    two linear layers float64, so that the order in which a CPU sums does not show in the result.

    Args:
        timesteps: (N,) noise levels, 0 to 999.
        guidance_scale: embedded in the rows of a UNet that takes it so (`cond_proj`); not used by others.

    Returns:
        (N, C) float32.
    """
    tensors = _time_tensors(weights)
    channels, model_channels = tensors["linear_1.weight"].shape
    project = Timesteps(model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
    condition_channels = tensors["cond_proj.weight"].shape[1] if "cond_proj.weight" in tensors else None
    embed = TimestepEmbedding(model_channels, channels, cond_proj_dim=condition_channels).double()
    embed.load_state_dict(tensors)
    condition = guidance_embedding(guidance_scale, condition_channels).double() if condition_channels else None
    with torch.no_grad():
        rows = torch.nn.functional.silu(embed(project(torch.from_numpy(timesteps)).double(), condition))
    return rows.float().numpy()


def guidance_embedding(guidance_scale: float, channels: int) -> torch.Tensor:
    """What a UNet distilled for LCM takes of the guidance scale (Luo et al. 2023; diffusers' `get_guidance_scale_embedding`).

    Args:
        channels: of the embedding; even.

    Returns:
        (1, channels) float32: sines, then cosines, of 1000 × (guidance scale − 1), as diffusers' pipelines give it.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor([[1000 * (guidance_scale - 1)]], dtype=torch.float32) * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def _time_tensors(weights: Path) -> dict[str, torch.Tensor]:
    """The tensors of `TimestepEmbedding`, under its own names."""
    wanted = {f"linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    with safe_open(weights, "pt") as file:
        names = [name.removeprefix("time_embedding.") for name in file.keys() if name.startswith("time_embedding.")]  # noqa: SIM118
        if set(names) - {"cond_proj.weight"} != wanted:
            raise ScheduleError(
                f"{weights}: time_embedding has {', '.join(sorted(names)) or 'no tensors'}; wanted "
                f"{', '.join(sorted(wanted))}, and at most cond_proj.weight."
            )
        return {name: file.get_tensor(f"time_embedding.{name}") for name in names}


def _start(name: str, steps: int, sampling: Sampling | None) -> SchedulerMixin:
    """A fresh scheduler, set to *steps* steps."""
    if steps < 1:
        raise ScheduleError(f"{steps} steps; wanted 1 or more. Set `steps` in the table.")
    scheduler = build_scheduler(name, sampling)
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise ScheduleError(f"{name} cannot do {steps} steps: {error} Set `steps` in the table.") from error
    times = scheduler.timesteps
    if steps > 1 and times[0] == times[1]:
        # diffusers finds its place by the timestep, takes the second of two, and has no step left for the last.
        raise ScheduleError(
            f"{name} cannot do {steps} steps with a schedule that ends in pure noise: its first two would be at the same"
            " timestep, which diffusers cannot tell apart. Set `steps` in the table lower, or another `scheduler`."
        )
    return scheduler


class _Probing(TorchFunctionMode):
    """While active, a scheduler's step draws *noise*, and keeps float64 vectors as they are.

    diffusers' schedulers draw with `torch.randn` and nothing else (`randn_tensor`). Some cast the latent to float32.
    Their scalars stay float32 here, so the coefficients are the ones that they use, without the rounding of vectors.
    """

    def __init__(self, noise: torch.Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.drawn = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.randn:
            self.drawn += 1
            return self.noise
        if function is torch.Tensor.to and args[0].dtype == torch.float64 and torch.float32 in args[1:]:
            return args[0]
        return function(*args, **(kwargs or {}))


def _coefficients(start: Callable[[], SchedulerMixin]) -> tuple[np.ndarray, np.ndarray]:
    """Run the scheduler on basis vectors: its coefficients, and which steps draw noise.

    The sample is a vector in the basis x, m_0 … m_{N-1}, n_0 … n_{N-1}; the model's output of step i is m_i and the
    noise of step i is n_i. What a scheduler does to every element alike, it does to the coordinates.

    Returns:
        (N, 1 + 2N) float64 coefficients and (N,) bool.
    """
    scheduler = start()
    steps = len(scheduler.timesteps)
    # A latent's axes (batch, channels, height, width), of which one holds the coordinates; UniPC sums over named axes.
    basis = torch.eye(1 + 2 * steps, dtype=torch.float64)[:, None, :, None, None]
    sample = basis[0]
    rows, draws_noise = [], []
    for i, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(sample, timestep)  # Euler counts on the call
        with _Probing(basis[1 + steps + i]) as probing:
            sample = scheduler.step(basis[1 + i], timestep, sample, return_dict=False)[0]
        if probing.drawn > 1:
            raise ScheduleError(
                f"{type(scheduler).__name__} draws {probing.drawn} noises in step {i}; wanted 1 at most."
            )
        rows.append(sample.flatten().numpy())
        draws_noise.append(probing.drawn == 1)
    return np.stack(rows), np.array(draws_noise)


def _input_scale(start: Callable[[], SchedulerMixin]) -> np.ndarray:
    """(N,) float64: what `scale_model_input` multiplies with at each step."""
    scheduler = start()
    one = torch.ones(1, 1, 1, 1)
    scales = []
    for timestep in scheduler.timesteps:
        scales.append(float(scheduler.scale_model_input(one, timestep)))
        scheduler.step(one, timestep, one, return_dict=False)  # steps are counted
    return np.array(scales, dtype=np.float64)


def _check_linear(
    name: str, start: Callable[[], SchedulerMixin], coefficients: np.ndarray, draws_noise: np.ndarray, *, size: float
) -> None:
    """Raise unless the scheduler itself, on random tensors of *size*, agrees with *coefficients* at every step.

    It also draws from a real generator here, so noise that does not come from `torch.randn` shows as a difference.
    """
    scheduler = start()
    steps = len(scheduler.timesteps)
    vectors = torch.randn((1 + 2 * steps, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    vectors[: 1 + steps] *= size
    generator = torch.Generator().manual_seed(1)
    takes_generator = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    noises = torch.Generator().manual_seed(1)
    sample = vectors[0]
    for i, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(vectors[1 + i], timestep, sample, return_dict=False, **takes_generator)[0]
        if draws_noise[i]:
            vectors[1 + steps + i] = torch.randn(sample.shape, generator=noises)
        expected = np.tensordot(coefficients[i], vectors.double().numpy(), axes=1)
        deviation = np.abs(sample.numpy() - expected).max() / np.abs(expected).max()
        if not deviation < MAX_DEVIATION:
            raise ScheduleError(
                f"{name}, step {i + 1} of {steps}: differs from a linear scheduler by {deviation:.1e} of the latent's "
                f"largest value; wanted {MAX_DEVIATION:.0e} at most. It clips, or draws noise in another way, so it "
                f"cannot be a schedule."
            )
