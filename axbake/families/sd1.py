"""Stable Diffusion 1.x: CLIP ViT-L/14 text encoder, UNet with cross-attention."""

import functools

from axbake.families import architecture, names
from axbake.families.family import Component, Family, Layout, Shapes

CONTEXT = 768  # channels of ViT-L's tokens
OTHER_CONTEXT = 1024  # of Stable Diffusion 2.x
HEADS = 8  # of attention, at every level of the UNet
END = 49407  # <|endoftext|>, with which CLIP was trained to fill up


def fits(unet: Shapes) -> bool:
    """By the width of the context; where it is neither family's (narrow models), by how its transformers begin."""
    width = architecture.context_width(unet)
    return width == CONTEXT or (width != OTHER_CONTEXT and not architecture.has_linear_projections(unet))


UNET_LAYOUTS = (
    Layout("input_blocks.0.0.weight", names.unet_renamer),
    Layout("time_embedding.linear_1.weight", names.unet_renamer),
)
CLIP = Layout("embeddings.token_embedding.weight", names.clip_renamer)

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    fits=fits,
    components={
        "text_encoder": Component(
            (CLIP,),
            functools.partial(architecture.text_architecture, hidden_act="quick_gelu", pad_token_id=END),
            "text_encoder",
        ),
        "unet": Component(
            UNET_LAYOUTS, functools.partial(architecture.unet_architecture, heads=lambda channels: HEADS), "unet"
        ),
    },
    clip_skip=True,
    prediction_type="epsilon",
)
