"""How many calibration samples a denoiser's drawings give."""

from axbake.errors import AxbakeError


class CalibrationError(AxbakeError):
    """There are fewer samples than requested."""


def count_branches(guidance_scale: float, image_guidance_scale: float | None) -> int:
    """How often a step runs a denoiser: with the prompt; with guidance, with the negative prompt; and without the picture."""
    return 1 if guidance_scale <= 1 else 2 if image_guidance_scale is None else 3


def check_count(count: int, *, prompts: int, steps: int, branches: int, empty: int = 0) -> None:
    """Raise CalibrationError unless there are *count* samples.

    Args:
        steps: those that run the denoiser.
        branches: of guidance, as `count_branches` gives them.
        empty: samples of the empty prompt that there are besides.
    """
    if count > prompts * steps * branches + empty:
        more = f", the empty prompt {empty}" if empty else ""
        raise CalibrationError(
            f"calibration/samples: {count}, but {prompts} prompts × {steps} steps that run the model × {branches} branches give"
            f" {prompts * steps * branches}{more}. Give more calibration prompts, or a lower number."
        )
