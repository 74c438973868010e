"""KOALA 700M: KOALA without the middle of the UNet, 783 million weights, in one graph."""

from axbake.families import koala, sdxl
from axbake.networks.component import Shapes

MIDDLE = "mid_block.resnets.0.conv1.weight"


def fits(denoiser: Shapes) -> bool:
    """By the resnets, and by the missing middle."""
    return koala.has_fewer_resnets(denoiser) and MIDDLE not in denoiser


FAMILY = sdxl.with_unet("koala_700m", "KOALA 700M", fits, (2, 5, 5, 5, 2, 2), koala.MODULES | {"mid_block_type": None})
