"""FLUX.2 [dev]: Mistral Small 3 on the host, a transformer of 8 + 48 blocks in 32 graphs that takes the guidance scale."""

from dataclasses import replace

from axbake.families import flux2_klein
from axbake.families.family import Process
from axbake.networks import flux2, language
from axbake.networks.component import Interface, Module, Naming, Rename, Shapes
from axbake.networks.pipelines import FLUX_2_DEV
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import LanguageFormat

WIDTH, TOKEN_CHANNELS = 6144, 15360
STATES = (10, 20, 30)  # of Mistral Small 3, that a token is made of
TEXT_GRAPHS = 15
#: Of one graph, at most: the first block, with what embeds, has 1.08 billion
MOST_WEIGHTS = 1_100_000_000
#: What decides the number of its weights
CONFIG = flux2_klein.CONFIG | {
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": WIDTH // flux2.HEAD_WIDTH,
    "joint_attention_dim": TOKEN_CHANNELS,
}
STRUCTURE = Structure(CONFIG, flux2.BLOCKS, least=MOST_WEIGHTS)
#: Of github black-forest-labs/flux2, `system_messages.py`, in Mistral's chat
TEMPLATE = (
    "<s>[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on object"
    " relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]{prompt}[/INST]"
)
FORMAT = LanguageFormat(TEMPLATE, tokens=flux2.TOKENS, pad="<pad>", side="left", own=False)
TEXT, DENOISER, *AUTOENCODER = flux2_klein.FAMILY.components


def fits(denoiser: Shapes) -> bool:
    """By what embeds the guidance scale."""
    return (
        "double_stream_modulation_img.linear.weight" in denoiser
        and "time_guidance_embed.guidance_embedder.linear_1.weight" in denoiser
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
    return language.example_of(network, face, config, generator, states=STATES, side=FORMAT.side)


FAMILY = replace(
    flux2_klein.FAMILY,
    name="flux2_dev",
    title="FLUX.2 [dev]",
    fits=fits,
    components=(
        replace(
            TEXT,
            files=replace(
                TEXT.files,
                namings=(Naming("layers.0.self_attn.q_proj.weight", text_renamer),),
                architecture=language.mistral_config,
                prefix="text_encoder.model.language_model.",
            ),
            build=language.build_mistral,
            graphs=language.slices("text_encoder", TEXT_GRAPHS, form=FORMAT, states=STATES),
            width=text_width,
            states=text_states,
            language=FORMAT,
            card=None,  # Pulsar2's list of language models has no Mistral
            example=text_example,
        ),
        replace(DENOISER, graphs=STRUCTURE.slices(MOST_WEIGHTS)),
        *AUTOENCODER,
    ),
    process=Process(flux2.PREDICTION_TYPE, FLOW_SCHEDULERS, flux2.sampling, FLUX_2_DEV, sized=True),
    structure=STRUCTURE,
    cells={"scheduler": "euler", "steps": "28", "guidance_scale": "4"},
)
