"""How many calibration samples a denoiser's drawings give."""

from dataclasses import dataclass

from axbake.errors import AxbakeError


class CalibrationError(AxbakeError):
    """There are fewer samples than requested."""


def count_branches(guidance_scale: float, image_guidance_scale: float | None) -> int:
    """How often a step runs a denoiser: with the prompt; with guidance, with the negative prompt; and without the picture."""
    return 1 if guidance_scale <= 1 else 2 if image_guidance_scale is None else 3


@dataclass(frozen=True)
class Recorded:
    """What calibration drawings give samples of."""

    prompts: int
    steps: int  # those that run the denoiser
    branches: int  # of guidance, as `count_branches` gives them
    alone: int = 0  # of the steps, those that the first branch alone runs in

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.prompts * ((self.steps - self.alone) * self.branches + self.alone)

    def check(self, entry: str, count: int, *, empty: int = 0) -> None:
        """Raise CalibrationError unless there are *count* samples, as the entry calibration/*entry* asks.

        Args:
            empty: samples of the empty prompt that there are besides.
        """
        if count > self.samples + empty:
            alone = f" (without guidance in {self.alone} of these steps)" if self.alone else ""
            more = f", the empty prompt {empty}" if empty else ""
            raise CalibrationError(
                f"calibration/{entry}: {count}, but {self.prompts} prompts × {self.steps} steps that run the model"
                f" × {self.branches} branches{alone} give {self.samples}{more}. Give more calibration prompts, or a lower number."
            )
