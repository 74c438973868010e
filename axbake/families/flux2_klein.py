"""FLUX.2 [klein] 4B: Qwen3-4B on the host, a transformer of 5 + 20 blocks in five graphs, latents of 128 channels."""

from dataclasses import replace

from axbake.families.family import Family, Process
from axbake.networks import flux2, flux2_vae, language, names
from axbake.networks.autoencoder import VAE_DECODER, VAE_ENCODER
from axbake.networks.card_layers import CardLayers, qwen3_folder_config
from axbake.networks.component import (
    DENOISER,
    GRAPH_WEIGHTS,
    TEXT,
    Component,
    Files,
    Graph,
    Interface,
    Module,
    Naming,
    Rename,
    Shapes,
)
from axbake.networks.pipelines import FLUX_2_KLEIN
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import LanguageFormat
from axbake.runtime.values import Conditioning

WIDTH, TOKEN_CHANNELS = 3072, 7680
STATES = (9, 18, 27)  # of Qwen3, that a token is made of
TEXT_GRAPHS = 4
#: What decides the number of its weights
CONFIG = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": WIDTH // flux2.HEAD_WIDTH,
    "attention_head_dim": flux2.HEAD_WIDTH,
    "joint_attention_dim": TOKEN_CHANNELS,
    "in_channels": flux2_vae.LATENTS.channels,
}
STRUCTURE = Structure(CONFIG, flux2.BLOCKS)
#: Qwen3's chat, one message, its thoughts left out
TEMPLATE = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
FORMAT = LanguageFormat(TEMPLATE, tokens=flux2.TOKENS, pad="<|endoftext|>")


def fits(denoiser: Shapes) -> bool:
    """By the number of its blocks; the distilled one and the base have the same."""
    return (
        "double_stream_modulation_img.linear.weight" in denoiser
        and "transformer_blocks.5.attn.to_q.weight" not in denoiser
        and "time_guidance_embed.guidance_embedder.linear_1.weight" not in denoiser
    )


def text_renamer(shapes: Shapes) -> Rename:
    """Names of the layers up to the last whose states are taken."""
    return language.layers_renamer(shapes, layers=STATES[-1])


def text_width(config: dict) -> int:
    """Channels of a token: those of all states that are taken."""
    return len(STATES) * language.width(config)


def text_states(network: Module, ids: object, mask: object) -> tuple:
    """The states that are taken, side by side."""
    return language.states_of(network, ids, mask, states=STATES)


def text_example(network: Module, face: Interface, config: dict, generator: object) -> tuple:
    """Random token ids, and those states."""
    return language.example_of(network, face, config, generator, states=STATES)


FAMILY = Family(
    name="flux2_klein",
    title="FLUX.2 [klein] 4B",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (Naming("layers.0.self_attn.q_norm.weight", text_renamer),),
                language.qwen3_config,
                "text_encoder",
                "text_encoder.model.",
            ),
            build=language.build_qwen3,
            graphs=language.slices("text_encoder", TEXT_GRAPHS, form=FORMAT, states=STATES),
            columns=(),
            width=text_width,
            states=text_states,
            language=FORMAT,
            host=True,
            card=CardLayers(qwen3_folder_config, STATES),
            example=text_example,
        ),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                flux2.NAMINGS,
                flux2.config,
                flux2.FOLDER,
                flux2.PREFIX,
                lora_names=names.own_name,
                lora_modules=flux2.lora_modules,
            ),
            build=flux2.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=flux2.COLUMNS,
            width=flux2.width,
            with_rows=flux2.with_rows,
            rows=flux2.time_rows,
            example=flux2.example,
        ),
        replace(VAE_ENCODER, files=flux2_vae.FILES["encoder"], build=flux2_vae.build_encoder),
        replace(
            VAE_DECODER,
            files=flux2_vae.FILES["decoder"],
            build=flux2_vae.build_decoder,
            graphs=(
                Graph(
                    "vae_decoder", VAE_DECODER.graphs[0].inputs, flux2_vae.decoder_interface, VAE_DECODER.graphs[0].cut
                ),
            ),
        ),
    ),
    latents=flux2_vae.LATENTS,
    conditioning=Conditioning(("text_encoder",)),
    process=Process(flux2.PREDICTION_TYPE, FLOW_SCHEDULERS, flux2.sampling, FLUX_2_KLEIN, sized=True),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "4", "guidance_scale": "1"},
    resources=("resources/sd1",),
)
