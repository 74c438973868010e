"""How a denoiser is run, which its shapes do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axbake.errors import AxbakeError


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
    guidance_embedded: bool = False  # whether it takes the guidance scale as an input and runs once a step (LCM)

    def check(self, *, scheduler: str, steps: int, guidance_scale: float) -> None:
        """Raise SamplingError unless the UNet can draw with *scheduler* in so many steps with such a guidance."""
        faults = [f"column steps: {steps}, wanted {self.steps}"] if self.steps not in (None, steps) else []
        faults += (
            [f"column guidance_scale: {guidance_scale:g}, wanted 1"] if guidance_scale > 1 and not self.guided else []
        )
        faults += (
            [f"column scheduler: {scheduler}, wanted lcm"] if self.guidance_embedded and scheduler != "lcm" else []
        )
        if faults:
            raise SamplingError(f"{'; '.join(faults)}. This UNet was distilled to draw only in this way.")


FLOW_SCHEDULERS = ("euler", "dpmpp_2m", "unipc")  # that diffusers has for rectified flow


@dataclass(frozen=True)
class Flow(Sampling):
    """How the transformer of a rectified flow is run (Esser et al. 2024): it predicts the noise less the picture."""

    prediction_type: str = "flow_prediction"
    shift: float = 1.0  # of the noise levels: s becomes shift × s / (1 + (shift − 1) × s)

    def check(self, *, scheduler: str, steps: int, guidance_scale: float) -> None:
        """Raise SamplingError likewise."""
        if scheduler not in FLOW_SCHEDULERS:
            raise SamplingError(
                f"column scheduler: {scheduler}, wanted {', '.join(FLOW_SCHEDULERS[:-1])} or {FLOW_SCHEDULERS[-1]}: this"
                " transformer was trained for rectified flow, which only these can draw with."
            )
        super().check(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale)


def sampling_of(said: Mapping[str, Any]) -> Sampling:
    """The sampling whose fields are *said*."""
    return Flow(**said) if "shift" in said else Sampling(**said)
