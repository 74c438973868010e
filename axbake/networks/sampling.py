"""How a denoiser is run, which its shapes do not tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from axbake.errors import AxbakeError

FLOW = "flow_prediction"  # of rectified flow: the noise less the picture
#: Schedulers that end at the smallest noise level, where their last step of several changes nothing and runs no denoiser
ENDS_AT_NOISE = ("dpmpp_2m_karras",)


class SamplingError(AxbakeError):
    """The row asks a UNet to draw in a way that it was not made for."""


@dataclass(frozen=True)
class Sampling:
    """How a UNet is run."""

    prediction_type: str = (
        "epsilon"  # diffusers' name of what it predicts: epsilon (the noise), v_prediction; `Flow` has its own
    )
    zero_terminal_snr: bool = False  # trained with a schedule whose last step is pure noise (Lin et al. 2023)
    steps: int | None = None  # the only number of steps it draws in; None: any
    guided: bool = True  # whether a guidance scale above 1 means anything to it
    guidance_embedded: bool = (
        False  # whether it takes the guidance scale as an input and runs once a step (LCM, FLUX dev)
    )

    def check(self, *, scheduler: str, steps: int, guidance_scale: float) -> None:
        """Raise SamplingError unless the UNet can draw with *scheduler* in so many steps with such a guidance."""
        faults = [f"column steps: {steps}, wanted {self.steps}"] if self.steps not in (None, steps) else []
        faults += (
            [f"column guidance_scale: {guidance_scale:g}, wanted 1"] if guidance_scale > 1 and not self.guided else []
        )
        faults += (
            [f"column scheduler: {scheduler}, wanted lcm"]
            if self.guidance_embedded and self.prediction_type != FLOW and scheduler != "lcm"
            else []
        )
        if faults:
            raise SamplingError(f"{'; '.join(faults)}. This UNet was distilled to draw only in this way.")


def steps_run(scheduler: str, steps: int) -> int:
    """How many of *steps* of *scheduler* run the denoiser (`axbake.runtime.sampler.Schedule.runs_model` tells which)."""
    return steps - 1 if scheduler in ENDS_AT_NOISE and steps > 1 else steps


def guided_steps(steps: int, ratio: float | None) -> int:
    """How many of *steps* guidance is for, from the first on, as diffusers' `Lumina2Pipeline` counts by `cfg_trunc_ratio`.

    Args:
        ratio: 0 to 1; None: 1.
    """
    return sum((step + 1) / steps <= (1.0 if ratio is None else ratio) for step in range(steps))


FLOW_SCHEDULERS = ("euler", "dpmpp_2m", "unipc")  # that diffusers has for rectified flow


@dataclass(frozen=True)
class Flow(Sampling):
    """How the transformer of a rectified flow is run (Esser et al. 2024): it predicts the noise less the picture."""

    prediction_type: str = FLOW
    shift: float = 1.0  # of the noise levels: s becomes shift × s / (1 + (shift − 1) × s)

    def check(self, *, scheduler: str, steps: int, guidance_scale: float) -> None:
        """Raise SamplingError likewise."""
        if scheduler not in FLOW_SCHEDULERS:
            raise SamplingError(
                f"column scheduler: {scheduler}, wanted {', '.join(FLOW_SCHEDULERS[:-1])} or {FLOW_SCHEDULERS[-1]}: this"
                " transformer was trained for rectified flow, which only these can draw with."
            )
        super().check(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)


def empirical_mu(tokens: int, steps: int) -> float:
    """Of FLUX.2, by its authors' measurements (github black-forest-labs/flux2, `sampling.py`, `compute_empirical_mu`)."""
    many, few = 0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333  # of 200 steps, and of 10
    if tokens > 4300:
        return many
    slope = (many - few) / 190
    return slope * steps + many - 200 * slope


def linear_mu(tokens: int, steps: int) -> float:
    """Of FLUX.1 dev: 0.5 for 256 tokens, 1.15 for 4096 (github black-forest-labs/flux, `sampling.py`, `get_schedule`)."""
    return 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def slower_mu(tokens: int, steps: int) -> float:
    """Of Qwen-Image: 0.5 for 256 tokens, 0.9 for 8192 (its published scheduler_config.json)."""
    return 0.5 + (tokens - 256) * (0.9 - 0.5) / (8192 - 256)


#: How the shift grows with a picture's tokens -> logarithm of the shift, of tokens and steps
DYNAMIC: dict[str, Callable[[int, int], float]] = {
    "flux2": empirical_mu,
    "flux1": linear_mu,
    "qwen_image": slower_mu,
}


@dataclass(frozen=True)
class SpacedFlow(Flow):
    """The same of a flow whose noise levels are 1, (N − 1)/N … 1/N before the shift, as pipelines from FLUX.1 on give them."""

    dynamic: str = ""  # of `DYNAMIC`; empty: the shift is `shift`, whatever the picture's size
    factor: int = 16  # image pixels a side for one token
    sign: int = 1  # −1: it predicts the picture less the noise

    def for_picture(self, *, height: int, width: int, steps: int) -> SpacedFlow:
        """This with the shift that a picture of so many pixels has, drawn in so many steps."""
        if not self.dynamic:
            return self
        tokens = (height // self.factor) * (width // self.factor)
        return replace(self, shift=math.exp(DYNAMIC[self.dynamic](tokens, steps)), dynamic="")


@dataclass(frozen=True)
class RenormalisedFlow(SpacedFlow):
    """The same where what guidance gives gets back the norm of the prompt's own output: of each line of pixels, or each token."""

    renormalised: str = "lines"  # of `axbake.runtime.sampler.NORMS`


@dataclass(frozen=True)
class TerminalFlow(RenormalisedFlow):
    """The same where the noise levels, shifted, are stretched so that the last is *terminal*."""

    renormalised: str = "patches"
    terminal: float = 0.02


def sampling_of(said: Mapping[str, Any]) -> Sampling:
    """The sampling whose fields are *said*."""
    kinds = {"terminal": TerminalFlow, "renormalised": RenormalisedFlow, "dynamic": SpacedFlow, "shift": Flow}
    return next((kind for mark, kind in kinds.items() if mark in said), Sampling)(**said)
