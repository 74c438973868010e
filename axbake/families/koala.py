"""KOALA 1B: distilled from Stable Diffusion XL, one resnet a level down, 1.16 billion weights in its UNet, in two graphs."""

from axbake.families import sdxl
from axbake.networks import architecture
from axbake.networks.component import Shapes

MODULES = {"layers_per_block": 1}


def fits(denoiser: Shapes) -> bool:
    """By the resnets, and by the transformer in the middle."""
    return has_fewer_resnets(denoiser) and sdxl.MIDDLE_TRANSFORMER in denoiser


def has_fewer_resnets(denoiser: Shapes) -> bool:
    """Whether it is a UNet of the kind of Stable Diffusion XL's with KOALA's resnets."""
    return architecture.is_conditioned_by_prompt_and_sizes(denoiser) and sdxl.LAST_RESNET not in denoiser


FAMILY = sdxl.with_unet("koala", "KOALA 1B", fits, (2, 6, 6, 6, 6, 2, 2), MODULES)
