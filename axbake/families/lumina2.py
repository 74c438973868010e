"""Lumina-Image 2, Neta Lumina and NetaYume: Gemma 2 on the host, a transformer of 2 + 26 blocks in three graphs, FLUX.1's VAE."""

from axbake.families.family import Family, Process
from axbake.networks import flux_vae, language, lumina, lumina_text, names
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
from axbake.networks.pipelines import LUMINA_2
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import PLACE, LanguageFormat
from axbake.runtime.values import Conditioning

STATES = (25,)  # of Gemma 2's 26 layers, the last but one
TEXT_GRAPHS = 3
#: What decides the number of its weights
CONFIG = {
    "hidden_size": 2304,
    "num_attention_heads": 24,
    "num_kv_heads": 8,
    "num_layers": 26,
    "num_refiner_layers": 2,
    "in_channels": 16,
}
STRUCTURE = Structure(CONFIG, lumina.BLOCKS)
MARK = "<Prompt Start>"
#: As diffusers' `Lumina2Pipeline` has it, which gives negative prompts none
SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual"
    " prompts or user prompts."
)
FORMAT = LanguageFormat(
    f"{SYSTEM} {MARK} {PLACE}", tokens=lumina.TOKENS, pad="<pad>", side="left", masked=True, negative=PLACE, mark=MARK
)


def fits(denoiser: Shapes) -> bool:
    """By the layers that make a block's modulation, which Z-Image has under another name."""
    return "layers.0.norm1.linear.weight" in denoiser and f"{lumina.TIME}caption_embedder.1.weight" in denoiser


def text_renamer(shapes: Shapes) -> Rename:
    """Names of the layers up to the last whose states are taken."""
    return language.layers_renamer(shapes, layers=STATES[-1])


def text_states(network: Module, ids: object, mask: object) -> tuple:
    """The states that are taken."""
    return language.states_of(network, ids, mask, states=STATES)


def text_example(network: Module, face: Interface, config: dict, generator: object) -> tuple:
    """Random token ids, and those states."""
    return language.example_of(network, face, config, generator, states=STATES)


FAMILY = Family(
    name="lumina2",
    title="Lumina-Image 2",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (Naming("layers.0.post_feedforward_layernorm.weight", text_renamer),),
                language.gemma2_config,
                "text_encoder",
                "text_encoder.",
            ),
            build=language.build_gemma2,
            graphs=language.slices("text_encoder", TEXT_GRAPHS, form=FORMAT, states=STATES),
            columns=(),
            width=language.width,
            states=text_states,
            language=FORMAT,
            host=True,
            example=text_example,
        ),
        Component(
            name="text_conditioner",
            role=TEXT,
            files=Files(
                lumina_text.NAMINGS,
                lumina_text.config,
                lumina.FOLDER,
                lumina.PREFIX,
                lora_names=lumina_text.lora_names,
                lora_modules=lumina_text.lora_modules,
                lora_within=("transformer", ("cap_embedder_", "time_caption_embed_caption_", "context_refiner_")),
            ),
            build=lumina_text.build,
            graphs=(Graph("text_conditioner", lumina_text.inputs, lumina_text.interface, lumina_text.cut),),
            columns=(),
            width=lumina_text.width,
            states=lumina_text.states,
            host=True,
            example=lumina_text.example,
        ),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                lumina.NAMINGS,
                lumina.config,
                lumina.FOLDER,
                lumina.PREFIX,
                lora_names=names.own_name,
                lora_modules=lumina.lora_modules,
            ),
            build=lumina.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=lumina.COLUMNS,
            width=lumina.width,
            with_rows=lumina.with_rows,
            rows=lumina.time_rows,
            example=lumina.example,
        ),
        flux_vae.ENCODER,
        flux_vae.DECODER,
    ),
    latents=flux_vae.LATENTS,
    conditioning=Conditioning(("text_encoder", "text_conditioner"), conditioner="text_conditioner"),
    process=Process(lumina.PREDICTION_TYPE, FLOW_SCHEDULERS[:1], lumina.sampling, LUMINA_2, truncated=True),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "30", "guidance_scale": "4"},
    resources=("resources/sd1",),
)
