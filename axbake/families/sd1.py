"""Stable Diffusion 1.x: CLIP ViT-L/14 text encoder, UNet with cross-attention."""

from collections.abc import Callable, Mapping

from axbake.families.family import Family, Process
from axbake.networks import architecture, clip, names, unet
from axbake.networks.autoencoder import LATENTS, VAE_DECODER, VAE_ENCODER
from axbake.networks.component import DENOISER, TEXT, Component, Files, Graph, Interface, Shapes
from axbake.networks.pipelines import STABLE_DIFFUSION
from axbake.runtime.values import Conditioning

CONTEXT = 768  # channels of ViT-L's tokens
OTHER_CONTEXT = 1024  # of Stable Diffusion 2.x
HEADS = 8  # of attention, at every level of the UNet
END = 49407  # <|endoftext|>, with which CLIP was trained to fill up
LDM_CLIP, LDM_UNET = "cond_stage_model.transformer.text_model.", "model.diffusion_model."
SCHEDULERS = (
    *("dpmpp_2m_karras", "dpmpp_2m_karras_zero", "unipc", "euler", "ddim", "lcm", "tcd"),
    *("euler_a", "euler_trailing", "euler_a_trailing", "dpmpp_2m", "dpmpp_2m_sde_karras"),
    *("dpmpp_sde", "dpmpp_sde_karras"),
)


def fits(denoiser: Shapes) -> bool:
    """By the width of the context; where it is neither family's (narrow models), by how its transformers begin."""
    if architecture.is_conditioned_by_prompt_and_sizes(denoiser):
        return False
    width = architecture.context_width(denoiser)
    return width == CONTEXT or (width != OTHER_CONTEXT and not architecture.has_linear_projections(denoiser))


def text_config(shapes: Shapes) -> dict:
    """Config of its text encoder."""
    return architecture.text_architecture(shapes, hidden_act="quick_gelu", pad_token_id=END)


def unet_config(shapes: Shapes) -> dict:
    """Config of its UNet."""
    return architecture.unet_architecture(shapes, heads=lambda channels: HEADS)


def unet_interface(config: Mapping, *, height: int, width: int, prompt_chunks: int, program: str) -> Interface:
    """What its UNet takes and gives."""
    size = {"height": height, "width": width, "prompt_chunks": prompt_chunks}
    return unet.unet_interface(config, LATENTS, **size, program=program)


def ldm_text_name(config: Mapping) -> Callable[[str], str]:
    """LDM's names of the text encoder."""
    return lambda name: LDM_CLIP + name


def ldm_unet_name(config: Mapping) -> Callable[[str], str]:
    """LDM's names of the UNet."""
    return lambda name: LDM_UNET + names.ldm_unet_name(name)


FAMILY = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (clip.NAMING,),
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
                ldm_name=ldm_unet_name,
                averaged=True,
                lora_names=names.unet_lora_names,
                merge_block=names.unet_block,
            ),
            build=unet.build,
            graphs=(Graph("unet", unet.inputs, unet_interface, unet.cut),),
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
    process=Process("epsilon", SCHEDULERS, unet.sampling, STABLE_DIFFUSION),
    clip_skip=True,
    resources=("resources/sd1",),
    specification={"epsilon": "stable-diffusion-v1", "v_prediction": "stable-diffusion-v1"},
)
