"""Segmind-Vega: distilled from Stable Diffusion XL, 745 million weights in its UNet, in one graph."""

from axbake.families import sdxl, ssd1b
from axbake.networks.component import Shapes


def fits(denoiser: Shapes) -> bool:
    """By the missing transformer in the middle, and by its depth."""
    distilled = sdxl.has_all_resnets(denoiser) and sdxl.MIDDLE_TRANSFORMER not in denoiser
    return distilled and ssd1b.DEEPER not in denoiser


FAMILY = sdxl.with_unet("vega", "Segmind-Vega", fits, (1, 1, 2, 2, 2, 2, 2, 1, 1, 1), ssd1b.MODULES)
