"""SSD-1B: distilled from Stable Diffusion XL, 1.33 billion weights in its UNet, in two graphs."""

from axbake.families import sdxl
from axbake.networks.component import Shapes

#: The second level up has a transformer of two blocks, Segmind-Vega's of one (`supported_models.py` of ComfyUI)
DEEPER = "up_blocks.1.attentions.0.transformer_blocks.1.norm1.weight"
MODULES = {"mid_block_type": "UNetMidBlock2D"}
DEPTHS = (2, 2, 4, 4, 4, 4, 10, 2, 1, 1)


def fits(denoiser: Shapes) -> bool:
    """By the missing transformer in the middle, and by its depth."""
    return sdxl.has_all_resnets(denoiser) and sdxl.MIDDLE_TRANSFORMER not in denoiser and DEEPER in denoiser


FAMILY = sdxl.with_unet("ssd1b", "SSD-1B", fits, DEPTHS, MODULES)
