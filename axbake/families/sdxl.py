"""Stable Diffusion XL: two text encoders, a UNet whose transformers are up to ten blocks deep, in three graphs.

The UNet has 2.57 billion weights. One graph is known to compile with 0.86 billion (Stable Diffusion 1.5's), and one of 1.4
billion failed at protobuf's 2 GB inside Pulsar2 (github AXERA-TECH/Magnetar, issue 013), so it is cut where the three are as
equal as its modules allow. How many weights a graph has at most is a setting (`graph_weights`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from axbake.families.family import Family, Process
from axbake.families.sd1 import SCHEDULERS
from axbake.networks import architecture, clip, clip_xl, names, unet, xl_unet
from axbake.networks.autoencoder import LATENTS, VAE_DECODER, VAE_ENCODER
from axbake.networks.component import DENOISER, GRAPH_WEIGHTS, TEXT, Component, Files, Graph, Shapes
from axbake.networks.pipelines import STABLE_DIFFUSION_XL
from axbake.networks.unet_slices import Structure
from axbake.runtime.values import Conditioning

SCALE = 0.13025  # of the VAE's latents
LDM_CLIP, LDM_OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
#: Which modules its UNet has
MODULES = {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "out_channels": 4,
}
TOKEN_CHANNELS = 2048
STRUCTURE = Structure(MODULES, (2, 2, 10, 10, 10, 10, 10, 10, 2, 2, 2), TOKEN_CHANNELS, LATENTS)
MIDDLE_TRANSFORMER = "mid_block.attentions.0.norm.weight"  # most were distilled without it
LAST_RESNET = "up_blocks.2.resnets.2.conv1.weight"  # the last of three, where KOALA has two


def fits(denoiser: Shapes) -> bool:
    """By the embedding that prompts are added through, and by the transformer in the middle."""
    return has_all_resnets(denoiser) and MIDDLE_TRANSFORMER in denoiser


def has_all_resnets(denoiser: Shapes) -> bool:
    """Whether prompts and sizes are added to a UNet, and it has three resnets a level up."""
    return architecture.is_conditioned_by_prompt_and_sizes(denoiser) and LAST_RESNET in denoiser


def vae_encoder_config(shapes: Shapes) -> dict:
    """Config of the VAE whose encoder half this is."""
    return _scaled(architecture.vae_encoder_architecture(shapes))


def vae_decoder_config(shapes: Shapes) -> dict:
    """The same of the decoder half."""
    return _scaled(architecture.vae_decoder_architecture(shapes))


def _scaled(config: dict) -> dict:
    return config if config.get("_class_name") == "AutoencoderTiny" else config | {"scaling_factor": SCALE}


def ldm_text_name(config: Mapping) -> Callable[[str], str]:
    """LDM's names of the first text encoder."""
    return lambda name: LDM_CLIP + name


def ldm_text_name_2(config: Mapping) -> Callable[[str], str]:
    """LDM's names of the second one: open_clip's."""
    return lambda name: LDM_OPEN_CLIP + names.open_clip_name(name)


FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (clip.NAMING,),
                clip_xl.config,
                clip.FOLDER,
                clip.PREFIX,
                clip.TOLD,
                ldm_name=ldm_text_name,
                lora_names=names.clip_lora_names,
                meant=clip_xl.is_narrowest,
                embedding="clip_l",
            ),
            build=clip.build,
            graphs=(Graph("text_encoder", clip.inputs, clip_xl.interface, clip_xl.cut),),
            columns=(),
            width=clip.width,
            states=clip_xl.states,
            example=clip_xl.example,
        ),
        Component(
            name="text_encoder_2",
            role=TEXT,
            files=Files(
                clip_xl.NAMINGS,
                clip_xl.projected_config,
                clip_xl.FOLDER,
                clip_xl.PREFIX,
                clip.TOLD,
                ldm_name=ldm_text_name_2,
                beside=clip_xl.BESIDE,
                lora_names=names.clip_lora_names,
                meant=clip_xl.is_widest,
                embedding="clip_g",
            ),
            build=clip_xl.build_projected,
            graphs=(Graph("text_encoder_2", clip.inputs, clip_xl.projected_interface, clip_xl.cut),),
            columns=(),
            width=clip.width,
            pooled=clip_xl.pooled_width,
            states=clip_xl.states,
            example=clip_xl.example,
        ),
        Component(
            name="unet",
            role=DENOISER,
            files=Files(
                unet.NAMINGS,
                xl_unet.config,
                unet.FOLDER,
                unet.PREFIX,
                unet.TOLD,
                xl_unet.WITHOUT,
                ldm_name=xl_unet.ldm_name,
                averaged=True,
                lora_names=xl_unet.lora_names,
                merge_block=names.unet_block,
            ),
            build=unet.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=xl_unet.COLUMNS,
            width=unet.width,
            pooled=xl_unet.pooled_width,
            variant=architecture.xl_unet_variant,
            with_rows=unet.with_rows,
            rows=xl_unet.time_rows,
            added=xl_unet.added_embedding,
            example=xl_unet.example,
        ),
        replace(VAE_ENCODER, files=replace(VAE_ENCODER.files, architecture=vae_encoder_config)),
        replace(VAE_DECODER, files=replace(VAE_DECODER.files, architecture=vae_decoder_config)),
    ),
    latents=LATENTS,
    conditioning=Conditioning(("text_encoder", "text_encoder_2"), pooled="text_encoder_2"),
    process=Process("epsilon", SCHEDULERS, xl_unet.sampling, STABLE_DIFFUSION_XL),
    clip_skip=False,  # AUTOMATIC1111's `modules/sd_hijack_clip.py` passes it by unless an option is set (`sdxl_clip_l_skip`)
    structure=STRUCTURE,
    pixels=1024,
    resources=("resources/sd1",),
    specification={"epsilon": "stable-diffusion-xl-v1-base", "v_prediction": "stable-diffusion-xl-v1-base"},
)


def with_unet(
    name: str, title: str, family_fits: Callable[[Shapes], bool], depths: tuple[int, ...], modules: Mapping
) -> Family:
    """The family of UNets that were distilled from it.

    Args:
        depths: blocks of each transformer, in order.
        modules: entries of the config in which it differs.
    """
    structure = replace(STRUCTURE, config={**MODULES, **modules}, depths=depths)
    denoiser = replace(FAMILY.denoiser, graphs=structure.slices(GRAPH_WEIGHTS))
    components = tuple(denoiser if one.role == DENOISER else one for one in FAMILY.components)
    return replace(FAMILY, name=name, title=title, fits=family_fits, components=components, structure=structure)
