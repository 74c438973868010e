"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 text encoder without its last layer, UNet with wider context."""

from collections.abc import Callable, Mapping

from axbake.families import sd1
from axbake.families.family import Family, Process
from axbake.networks import architecture, clip, names, unet
from axbake.networks.autoencoder import LATENTS, VAE_DECODER, VAE_ENCODER
from axbake.networks.component import DENOISER, TEXT, Component, Files, Graph, Naming, Shapes
from axbake.networks.pipelines import STABLE_DIFFUSION
from axbake.runtime.values import Conditioning

HEAD_WIDTH = 64  # channels of one attention head of the UNet: 5, 10, 20 and 20 heads
PAD = 0  # "!", with which open_clip fills up
LDM_OPEN_CLIP = "cond_stage_model.model."


def fits(denoiser: Shapes) -> bool:
    """By the width of the context; where it is neither family's (narrow models), by how its transformers begin."""
    if architecture.is_conditioned_by_prompt_and_sizes(denoiser):
        return False
    width = architecture.context_width(denoiser)
    return width == sd1.OTHER_CONTEXT or (width != sd1.CONTEXT and architecture.has_linear_projections(denoiser))


def text_config(shapes: Shapes) -> dict:
    """Config of its text encoder."""
    return architecture.text_architecture(shapes, hidden_act="gelu", pad_token_id=PAD)


def unet_config(shapes: Shapes) -> dict:
    """Config of its UNet."""
    return architecture.unet_architecture(shapes, heads=lambda channels: max(1, channels // HEAD_WIDTH))


def ldm_text_name(config: Mapping) -> Callable[[str], str]:
    """LDM's names of the text encoder: open_clip's, since LDM reads it so."""
    return lambda name: LDM_OPEN_CLIP + names.open_clip_name(name)


FAMILY = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (clip.NAMING, Naming("transformer.resblocks.0.ln_1.weight", names.open_clip_renamer)),
                text_config,
                clip.FOLDER,
                clip.PREFIX,
                clip.TOLD,
                ldm_name=ldm_text_name,
                lora_names=names.clip_lora_names,
            ),
            build=clip.build,
            graphs=(Graph("text_encoder", clip.inputs, clip.interface, clip.cut),),
            columns=(),
            width=clip.width,
            states=clip.states,
            example=clip.example,
        ),
        Component(
            name="unet",
            role=DENOISER,
            files=Files(
                unet.NAMINGS,
                unet_config,
                unet.FOLDER,
                unet.PREFIX,
                unet.TOLD,
                unet.WITHOUT,
                ldm_name=sd1.ldm_unet_name,
                averaged=True,
                lora_names=names.unet_lora_names,
                merge_block=names.unet_block,
            ),
            build=unet.build,
            graphs=(Graph("unet", unet.inputs, sd1.unet_interface, unet.cut),),
            columns=unet.COLUMNS,
            width=unet.width,
            variant=architecture.unet_variant,
            with_rows=unet.with_rows,
            rows=unet.time_rows,
            example=unet.example,
        ),
        VAE_ENCODER,
        VAE_DECODER,
    ),
    latents=LATENTS,
    conditioning=Conditioning(("text_encoder",)),
    process=Process(
        None,  # 2.x base predicts the noise, 2.x at 768 pixels the velocity, and their shapes are the same
        sd1.SCHEDULERS,
        unet.sampling,
        STABLE_DIFFUSION,
    ),
    clip_skip=False,  # AUTOMATIC1111's `modules/sd_hijack_open_clip.py` passes it by
    resources=("resources/sd1",),
    specification={"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
)
