"""What a denoiser's output says of the finished picture's latent, step by step, and which output a given latent would have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import BundleError
from .sampler import Schedule

FLOW = "flow_prediction"  # the noise less the picture, or, of some transformers, its negative
KINDS = ("epsilon", "v_prediction", FLOW)  # names of diffusers' that a manifest has


@dataclass(frozen=True)
class Predictions:
    """How latent, output and finished latent belong together at each step of a schedule.

    At step i the latent is picture_scale[i] × finished + noise_scale[i] × unit noise. What the denoiser gives is linear in
    both: picture_part[i] × finished + noise_part[i] × noise.
    """

    picture_scale: np.ndarray  # (N,) float64
    noise_scale: np.ndarray  # (N,) float64
    picture_part: np.ndarray  # (N,) float64
    noise_part: np.ndarray  # (N,) float64
    input_scale: np.ndarray  # (N,) float64: of the latent, before it goes into the model
    steps: tuple[int, ...]  # that run the model, in order

    def finished(self, taken: np.ndarray, output: np.ndarray, run: int) -> np.ndarray:
        """The finished latent that *output* predicts.

        Args:
            taken: (1, C, h, w): what the model took.
            output: (1, C, h, w), after guidance.
            run: number of the model's run, from 0; a step without one is not counted.
        """
        i = self.steps[run]
        latent = taken / self.input_scale[i]
        share = self.noise_part[i] * self.picture_scale[i] - self.noise_scale[i] * self.picture_part[i]
        return ((self.noise_part[i] * latent - self.noise_scale[i] * output) / share).astype(np.float32)

    def output(self, taken: np.ndarray, finished: np.ndarray, run: int) -> np.ndarray:
        """The output that would predict *finished*; arguments as in `finished`."""
        i = self.steps[run]
        noise = (taken / self.input_scale[i] - self.picture_scale[i] * finished) / self.noise_scale[i]
        return (self.picture_part[i] * finished + self.noise_part[i] * noise).astype(np.float32)


def predictions_of(schedule: Schedule, kind: str) -> Predictions:
    """How the model of *schedule* predicts.

    Args:
        kind: the manifest's `prediction_type`.

    Raises:
        BundleError: *kind* is unknown.
    """
    picture, noise = schedule.picture_scale.astype(np.float64), schedule.noise_scale.astype(np.float64)
    length = np.hypot(picture, noise)
    if kind == "epsilon":
        parts = np.zeros_like(picture), np.ones_like(noise)
    elif kind == "v_prediction":  # Salimans and Ho 2022, of the latent that has the variance 1
        parts = -noise / length, picture / length
    elif kind == FLOW:
        sign = _sign(schedule)
        parts = np.full_like(picture, -sign), np.full_like(noise, sign)
    else:
        raise BundleError(f"prediction_type {kind!r}; wanted one of {', '.join(KINDS)}. Make the bundle again.")
    runs = tuple(step for step in range(len(picture)) if schedule.runs_model(step))
    return Predictions(picture, noise, *parts, schedule.input_scale, runs)


def _sign(schedule: Schedule) -> float:
    """1 where the model gives noise less picture, -1 where it gives picture less noise (Lumina-Image 2, Z-Image).

    The first step is of first order whatever the scheduler, and goes towards the picture.
    """
    return 1.0 if schedule.coefficients[0, 1] < 0 else -1.0
