"""Coefficients of a diffusers scheduler, read off from a run on basis vectors (see `axbake.drawing.schedule`)."""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch.overrides import TorchFunctionMode

from axbake.errors import AxbakeError

MAX_DEVIATION = 1e-5  # of the latent's largest value; float32 rounding gives 1e-6, clipping and other noise above 1e-2

#: Gives a fresh scheduler, set to its number of steps
Start = Callable[[], SchedulerMixin]


class ScheduleError(AxbakeError):
    """A scheduler cannot be written as a schedule with this number of steps."""


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


def _begin(scheduler: SchedulerMixin, first: int) -> torch.Tensor:
    """Let *scheduler* begin at step *first*, as `StableDiffusionImg2ImgPipeline.get_timesteps` does; the timesteps left."""
    if first and hasattr(scheduler, "set_begin_index"):  # DDIM's steps know no others
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def beginnings(start: Start) -> tuple[np.ndarray, np.ndarray]:
    """By what the scheduler multiplies a picture's latent and the noise where it begins at each step; (N,) float64 each."""
    one, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    scales = []
    for first in range(len(start().timesteps)):
        scheduler = start()
        timestep = _begin(scheduler, first)[:1]
        scales.append([float(scheduler.add_noise(*pair, timestep)) for pair in ((one, nothing), (nothing, one))])
    picture, noise = np.array(scales, dtype=np.float64).T
    return picture, noise


def coefficients_of(start: Start, *, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Run the scheduler on basis vectors: its coefficients, and which steps draw noise.

    N counts the steps from *first* on, and i from there.

    The sample is a vector in the basis x, m_0 … m_{N-1}, n_0 … n_{N-1}; the model's output of step i is m_i and the
    noise of step i is n_i. What a scheduler does to every element alike, it does to the coordinates.

    Returns:
        (N, 1 + 2N) float64 coefficients and (N,) bool.
    """
    scheduler = start()
    timesteps = _begin(scheduler, first)
    steps = len(timesteps)
    # A latent's axes (batch, channels, height, width), of which one holds the coordinates; UniPC sums over named axes.
    basis = torch.eye(1 + 2 * steps, dtype=torch.float64)[:, None, :, None, None]
    sample = basis[0]
    rows, draws_noise = [], []
    for i, timestep in enumerate(timesteps):
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


def input_scale_of(start: Start) -> np.ndarray:
    """(N,) float64: what `scale_model_input` multiplies with at each step."""
    scheduler = start()
    one = torch.ones(1, 1, 1, 1)
    scales = []
    for timestep in scheduler.timesteps:
        scales.append(float(scheduler.scale_model_input(one, timestep)))
        scheduler.step(one, timestep, one, return_dict=False)  # steps are counted
    return np.array(scales, dtype=np.float64)


def check_linear(
    name: str,
    start: Start,
    coefficients: np.ndarray,
    draws_noise: np.ndarray,
    *,
    size: float,
    first: int = 0,
) -> None:
    """Raise unless the scheduler itself, on random tensors of *size*, agrees with *coefficients* at every step from *first* on.

    It also draws from a real generator here, so noise that does not come from `torch.randn` shows as a difference.
    """
    scheduler = start()
    timesteps = _begin(scheduler, first)
    steps = len(timesteps)
    vectors = torch.randn((1 + 2 * steps, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    vectors[: 1 + steps] *= size
    generator = torch.Generator().manual_seed(1)
    takes_generator = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    noises = torch.Generator().manual_seed(1)
    sample = vectors[0]
    for i, timestep in enumerate(timesteps):
        scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(vectors[1 + i], timestep, sample, return_dict=False, **takes_generator)[0]
        if draws_noise[i]:
            vectors[1 + steps + i] = torch.randn(sample.shape, generator=noises)
        expected = np.tensordot(coefficients[i], vectors.double().numpy(), axes=1)
        deviation = np.abs(sample.numpy() - expected).max() / np.abs(expected).max()
        if not deviation < MAX_DEVIATION:
            raise ScheduleError(
                f"{name}, step {first + i + 1} of {first + steps}: differs from a linear scheduler by {deviation:.1e} "
                f"of the latent's largest value; wanted {MAX_DEVIATION:.0e} at most. It clips, or draws noise in a "
                "different way, so it cannot be a schedule."
            )
