"""How a denoiser is run, which its shapes do not tell."""

from dataclasses import dataclass

from axbake.errors import AxbakeError


class SamplingError(AxbakeError):
    """The row asks a UNet to draw in a way that it was not made for."""


@dataclass(frozen=True)
class Sampling:
    """How a UNet is run."""

    prediction_type: str = "epsilon"  # diffusers' name of what it predicts: epsilon (the noise) or v_prediction
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
