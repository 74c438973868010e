"""Stable Diffusion 3 medium: two CLIPs, without T5, and a transformer of 24 blocks, in three graphs."""

from dataclasses import replace

from axbake.families.family import Family, Process
from axbake.families.sdxl import FAMILY as SDXL
from axbake.networks import architecture, clip, clip_xl, mmdit, names
from axbake.networks.autoencoder import VAE_DECODER, VAE_ENCODER, WITHOUT
from axbake.networks.component import DENOISER, GRAPH_WEIGHTS, TEXT, Component, Files, Graph, Shapes
from axbake.networks.pipelines import STABLE_DIFFUSION_3
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.values import Conditioning, Latents

SCALE, SHIFT = 1.5305, 0.0609  # of the VAE's latents
LATENTS = Latents(channels=16, factor=8, shift=SHIFT)
TOKEN_CHANNELS = 4096  # those of T5, up to which CLIP's are filled with zeros
#: What decides the number of its weights
CONFIG = {
    "caption_projection_dim": 1536,
    "joint_attention_dim": TOKEN_CHANNELS,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "dual_attention_layers": (),
    "qk_norm": None,
}
STRUCTURE = Structure(CONFIG, mmdit.BLOCKS)
NORM, DUAL = "transformer_blocks.0.attn.norm_q.weight", "transformer_blocks.0.attn2.to_q.weight"
VAE = {"scaling_factor": SCALE, "shift_factor": SHIFT}


def fits(denoiser: Shapes) -> bool:
    """By the queries, which have no norm."""
    return "pos_embed.pos_embed" in denoiser and NORM not in denoiser


def text_config(shapes: Shapes) -> dict:
    """Config of the first text encoder, which has a projection here."""
    return architecture.projected_text_architecture(shapes, hidden_act="quick_gelu", pad_token_id=clip_xl.END)


def is_second_text_encoder(network: Shapes, every: list[Shapes]) -> bool:
    """Whether a text encoder is the second, of *every* one in a file: both have projections, so one alone is the first."""
    return not clip_xl.is_narrowest(network, every) and clip_xl.is_widest(network, every)


def vae_encoder_config(shapes: Shapes) -> dict:
    """Config of the VAE whose encoder half this is."""
    return architecture.without_quant_conv(architecture.vae_encoder_architecture, shapes) | VAE


def vae_decoder_config(shapes: Shapes) -> dict:
    """The same of the decoder half."""
    return architecture.without_quant_conv(architecture.vae_decoder_architecture, shapes) | VAE


SECOND = SDXL.component("text_encoder_2")
VAE_TOLD = ("norm_num_groups", "act_fn")
VAE_WITHOUT = WITHOUT | {"shift_factor": (SHIFT,), "scaling_factor": (SCALE,)}
FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3 medium",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                clip_xl.NAMINGS[:1],
                text_config,
                clip.FOLDER,
                clip.PREFIX,
                clip.TOLD,
                lora_names=names.clip_lora_names,
                meant=clip_xl.is_narrowest,
                embedding="clip_l",
            ),
            build=clip_xl.build_projected,
            graphs=(Graph("text_encoder", clip.inputs, clip_xl.projected_interface, clip_xl.cut),),
            columns=(),
            width=clip.width,
            pooled=clip_xl.pooled_width,
            states=clip_xl.states,
            example=clip_xl.example,
        ),
        replace(SECOND, files=replace(SECOND.files, meant=is_second_text_encoder)),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                mmdit.NAMINGS,
                mmdit.config,
                mmdit.FOLDER,
                mmdit.PREFIX,
                lora_names=names.own_name,
                lora_modules=mmdit.lora_modules,
            ),
            build=mmdit.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=mmdit.COLUMNS,
            width=mmdit.width,
            pooled=mmdit.pooled_width,
            with_rows=mmdit.with_rows,
            rows=mmdit.time_rows,
            added=mmdit.added_embedding,
            example=mmdit.example,
        ),
        replace(
            VAE_ENCODER,
            files=replace(
                VAE_ENCODER.files,
                architecture=vae_encoder_config,
                told=VAE_TOLD,
                without=VAE_WITHOUT,
            ),
        ),
        replace(
            VAE_DECODER,
            files=replace(
                VAE_DECODER.files,
                architecture=vae_decoder_config,
                told=VAE_TOLD,
                without=VAE_WITHOUT,
            ),
        ),
    ),
    latents=LATENTS,
    conditioning=Conditioning(
        ("text_encoder", "text_encoder_2"), pooled="text_encoder text_encoder_2", width=TOKEN_CHANNELS
    ),
    process=Process(mmdit.PREDICTION_TYPE, FLOW_SCHEDULERS, mmdit.sampling, STABLE_DIFFUSION_3),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "28", "guidance_scale": "5"},
    resources=("resources/sd1",),
)
