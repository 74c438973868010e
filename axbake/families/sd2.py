"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 text encoder without its last layer, UNet with wider context."""

import functools

from axbake.families import architecture, names
from axbake.families.family import Component, Family, Layout, Shapes
from axbake.families.sd1 import CLIP, CONTEXT, OTHER_CONTEXT, UNET_LAYOUTS

HEAD_WIDTH = 64  # channels of one attention head of the UNet: 5, 10, 20 and 20 heads
PAD = 0  # "!", with which open_clip fills up


def fits(unet: Shapes) -> bool:
    """By the width of the context; where it is neither family's (narrow models), by how its transformers begin."""
    width = architecture.context_width(unet)
    return width == OTHER_CONTEXT or (width != CONTEXT and architecture.has_linear_projections(unet))


SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    fits=fits,
    components={
        "text_encoder": Component(
            (CLIP, Layout("transformer.resblocks.0.ln_1.weight", names.open_clip_renamer)),
            functools.partial(architecture.text_architecture, hidden_act="gelu", pad_token_id=PAD),
            "text_encoder",
        ),
        "unet": Component(
            UNET_LAYOUTS,
            functools.partial(architecture.unet_architecture, heads=lambda channels: max(1, channels // HEAD_WIDTH)),
            "unet",
        ),
    },
    clip_skip=False,  # AUTOMATIC1111's `modules/sd_hijack_open_clip.py` passes it by
    prediction_type=None,  # 2.x base predicts the noise, 2.x at 768 pixels the velocity, and their shapes are the same
)
