"""Schedules: all that a denoising loop needs of a diffusers scheduler, as arrays.

A scheduler of the tables below is linear: the latent after step i is a sum of the initial latent, the model's outputs so
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
| `draws_noise` | (N,) bool | whether step i draws its noise n_i from the generator; LCM's and TCD's do, but the last |
| `picture_scale`, `noise_scale` | (N,) float64 | image to image begins at step i with the first × picture + the second × noise |
| `late_coefficients` | (M,) float64 | those of a beginning at step k = 1 … N − 1, each (N − k, 1 + 2(N − k)), flat |

where x is the initial latent (`init_noise_sigma` included), m_i the model's output of step i (after classifier-free
guidance) and n_i the unit normal noise of step i. Coefficients of later steps and of noises not drawn are 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from axbake.drawing.coefficients import ScheduleError, beginnings, check_linear, coefficients_of, input_scale_of
from axbake.errors import AxbakeError
from axbake.networks.sampling import (
    FLOW_SCHEDULERS,
    Flow,
    RenormalisedFlow,
    Sampling,
    SpacedFlow,
    TerminalFlow,
    guided_steps,
)
from axbake.npz import npz_bytes
from axbake.weights.files import read_sampling

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"steps_offset": 1, "timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": False}
LINSPACE, TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
DPMPP_2M_KARRAS = DPMPP_2M | {"use_karras_sigmas": True}
DPMPP_SDE = DPMPP_2M | {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}

ETA = 0.3  # of TCD: its authors' own (https://github.com/jabir-zheng/TCD) and the default of diffusers' step


class StochasticTCDScheduler(TCDScheduler):
    """TCD with part of each step's noise new; diffusers' pipelines would ask its step for none (`eta=0`)."""

    def step(self, model_output, timestep, sample, *, generator=None, return_dict=True):
        """`TCDScheduler.step` with `ETA`."""
        return super().step(model_output, timestep, sample, eta=ETA, generator=generator, return_dict=return_dict)


class FlowEulerScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler of rectified flow, with what diffusers' other schedulers have and this one is called without."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample, timestep=None):
        """*sample* as it is."""
        return sample

    def add_noise(self, original_samples, noise, timesteps):
        """What image to image begins with: `scale_noise`."""
        return self.scale_noise(original_samples, timesteps, noise)


class SpacedEulerScheduler(FlowEulerScheduler):
    """The same with the noise levels that pipelines from FLUX.1 on give it, where none are given."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        """`FlowMatchEulerDiscreteScheduler.set_timesteps` from 1 to 1 / N."""
        if sigmas is None:
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        super().set_timesteps(sigmas=sigmas, device=device, mu=mu)


#: Name in the table's `scheduler` column -> class and its configuration, which is what diffusers makes of SD 1.5's published
#: scheduler_config.json. That says no timestep_spacing, so it is the class's own, and UniPC and Euler begin at 999, as in
#: AUTOMATIC1111's web UI. Its DPM++ 2M Karras is `dpmpp_2m_karras_zero`; `dpmpp_2m_karras` is that of github
#: yuyun2000/sd15-to-ax8850-deploy, which ends at the smallest noise level. `euler_trailing` is what SDXL-Lightning's page asks
#: for, and `euler_a_trailing` the scheduler_config.json of SDXL-Turbo. DPM++ SDE is the one that diffusers' overview
#: of schedulers names: the model runs once a step, where k-diffusion's, in web UIs, runs it twice.
SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, DPMPP_2M_KARRAS | {"final_sigmas_type": "sigma_min"}),
    "dpmpp_2m_karras_zero": (DPMSolverMultistepScheduler, DPMPP_2M_KARRAS),
    "unipc": (UniPCMultistepScheduler, LINSPACE),
    "euler": (EulerDiscreteScheduler, LINSPACE),
    "ddim": (DDIMScheduler, LEADING),
    "lcm": (LCMScheduler, {**LEADING, "original_inference_steps": 50}),
    "tcd": (StochasticTCDScheduler, {**LEADING, "original_inference_steps": 50}),
    "euler_a": (EulerAncestralDiscreteScheduler, LINSPACE),
    "euler_trailing": (EulerDiscreteScheduler, TRAILING),
    "euler_a_trailing": (EulerAncestralDiscreteScheduler, TRAILING),
    "dpmpp_2m": (DPMSolverMultistepScheduler, DPMPP_2M),
    "dpmpp_2m_sde_karras": (DPMSolverMultistepScheduler, DPMPP_2M_KARRAS | {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": (DPMSolverSinglestepScheduler, DPMPP_SDE),
    "dpmpp_sde_karras": (DPMSolverSinglestepScheduler, DPMPP_SDE | {"use_karras_sigmas": True}),
}

#: The same of rectified flow: its class, how it is configured, and what it calls the shift of the noise levels
FLOWS: dict[str, tuple[type[SchedulerMixin], dict[str, Any], str]] = {
    "euler": (FlowEulerScheduler, {}, "shift"),
    "dpmpp_2m": (DPMSolverMultistepScheduler, DPMPP_2M | {"use_flow_sigmas": True}, "flow_shift"),
    "unipc": (UniPCMultistepScheduler, {"use_flow_sigmas": True}, "flow_shift"),
}
assert tuple(FLOWS) == FLOW_SCHEDULERS

#: What diffusers' pipeline computes the shift with that grows with a picture, where it is not FLUX.1's
TOKENS_OF_SHIFT = {"qwen_image": {"max_image_seq_len": 8192, "max_shift": 0.9}}

PREDICTION_TYPES = ("epsilon", "v_prediction")  # what the model gives: the noise, or Salimans and Ho's velocity


class UnknownSchedulerError(AxbakeError):
    """The name of a scheduler is not in `SCHEDULERS`."""


def build_scheduler(name: str, sampling: Sampling | None = None) -> SchedulerMixin:
    """The diffusers scheduler called *name* in the table, configured for Stable Diffusion or rectified flow.

    Args:
        sampling: how the denoiser is run: a `Flow`, or its prediction type one of `PREDICTION_TYPES`; None: as that of Stable
            Diffusion 1.5.
    """
    sampling = sampling or Sampling()
    if isinstance(sampling, Flow):
        return _build_flow(name, sampling)
    prediction_type = sampling.prediction_type
    if name not in SCHEDULERS:
        raise UnknownSchedulerError(f"scheduler {name!r} is unknown; known: {', '.join(sorted(SCHEDULERS))}.")
    if prediction_type not in PREDICTION_TYPES:
        raise ScheduleError(f"prediction type {prediction_type!r} is unknown; known: {', '.join(PREDICTION_TYPES)}.")
    scheduler, settings = SCHEDULERS[name]
    # Lin et al. 2023: a schedule that ends in pure noise is walked from its very end on.
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if sampling.zero_terminal_snr else {}
    if zero.keys() - inspect.signature(scheduler.__init__).parameters.keys():
        raise ScheduleError(
            f"column scheduler: {name} has no schedule that ends in pure noise, which this UNet was trained with. Choose another "
            "`scheduler`, such as dpmpp_2m_sde_karras."
        )
    return scheduler(**BETAS | settings | zero, prediction_type=prediction_type)


def _build_flow(name: str, sampling: Flow) -> SchedulerMixin:
    """The same for a transformer of rectified flow."""
    if name not in FLOWS:
        raise UnknownSchedulerError(
            f"scheduler {name!r} cannot draw with rectified flow; known for it: {', '.join(FLOWS)}."
        )
    scheduler, settings, shift = FLOWS[name]
    kind: dict[str, Any] = {"prediction_type": sampling.prediction_type}
    if scheduler is FlowEulerScheduler:
        scheduler, kind = SpacedEulerScheduler if isinstance(sampling, SpacedFlow) else scheduler, {}
    if isinstance(sampling, TerminalFlow):
        kind["shift_terminal"] = sampling.terminal
    if isinstance(sampling, SpacedFlow) and sampling.dynamic:  # the pipeline computes the shift
        return scheduler(**settings, **kind, **TOKENS_OF_SHIFT.get(sampling.dynamic, {}), use_dynamic_shifting=True)
    return scheduler(**settings, **kind, **{shift: sampling.shift})


def derive_schedule(
    *,
    scheduler: str,
    steps: int,
    guidance_scale: float,
    rows: Callable[..., np.ndarray],
    denoiser: Path,
    schedule: Path,
    height: int = 0,
    width: int = 0,
    cfg_trunc_ratio: float = 1.0,
) -> None:
    """Write the arrays that run *scheduler* for *steps* steps into the file *schedule* (see this module's docstring).

    Args:
        height, width: of the picture in pixels, for a flow whose shift depends on them; others do not take them.
        guidance_scale: what a UNet distilled for LCM takes in its time embedding; others do not take it.
        cfg_trunc_ratio: share of the steps, from the first on, that guidance is for.
        rows: the denoiser's: (weights, timesteps, guidance_scale=) -> (N, C) float32.
        denoiser: its `weights/{component}.safetensors`.

    Raises:
        ScheduleError: diffusers refuses the number of steps, or the scheduler is not linear.
        SamplingError: the denoiser was not made for such a way of drawing. And the errors of *rows*.
    """
    sampling = read_sampling(denoiser)
    sampling.check(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)
    if isinstance(sampling, SpacedFlow):
        sampling = sampling.for_picture(height=height, width=width, steps=steps)
    arrays = scheduler_arrays(scheduler, steps, sampling)
    arrays["time_embedding"] = rows(denoiser, arrays["timesteps"], guidance_scale=guidance_scale)
    if cfg_trunc_ratio < 1:
        arrays["guided"] = np.arange(steps) < guided_steps(steps, cfg_trunc_ratio)
    schedule.write_bytes(npz_bytes(arrays))


def scheduler_arrays(name: str, steps: int, sampling: Sampling | None = None) -> dict[str, np.ndarray]:
    """All arrays of a schedule that do not depend on the model's weights."""

    def start() -> SchedulerMixin:
        return _start(name, steps, sampling)

    coefficients, draws_noise = coefficients_of(start)
    late = [coefficients_of(start, first=first)[0] for first in range(1, steps)]
    picture_scale, noise_scale = beginnings(start)
    scheduler = start()
    arrays = {
        "scheduler": np.array(name),
        "timesteps": scheduler.timesteps.numpy().astype(np.float32),
        "input_scale": input_scale_of(start),
        "init_noise_sigma": np.array(float(scheduler.init_noise_sigma), dtype=np.float64),
        "coefficients": coefficients,
        "draws_noise": draws_noise,
        "picture_scale": picture_scale,
        "noise_scale": noise_scale,
        "late_coefficients": np.concatenate([np.empty(0), *(rows.ravel() for rows in late)]),
        "guidance_embedded": np.array(sampling is not None and sampling.guidance_embedded),
    }
    # Sizes far above 1 too: clipping and thresholding act there only.
    for size in (1.0, 1000.0):
        check_linear(name, start, coefficients, draws_noise, size=size)
        for first in {1, steps // 2, steps - 1} - {0, steps}:
            check_linear(name, start, late[first - 1], draws_noise[first:], size=size, first=first)
    if isinstance(sampling, SpacedFlow) and sampling.sign < 0:
        for rows in (coefficients, *late):
            rows[:, 1 : 1 + len(rows)] *= sampling.sign
        arrays["late_coefficients"] = np.concatenate([np.empty(0), *(rows.ravel() for rows in late)])
    if isinstance(sampling, RenormalisedFlow):
        arrays["renormalised"] = np.array(sampling.renormalised)
    return arrays


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
            f"{name} cannot do {steps} steps with a schedule that ends in pure noise: its first two steps would be at "
            "the same timestep, which diffusers cannot distinguish. Set a lower `steps` in the table, or another "
            "`scheduler`."
        )
    return scheduler
