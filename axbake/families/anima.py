"""Anima: Qwen3-0.6B and a conditioner on the host, Cosmos-Predict2's transformer in three graphs, Qwen-Image's VAE."""

from axbake.families.family import Family, Process
from axbake.networks import anima_text, cosmos, language, names, qwen_image_vae
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
from axbake.networks.pipelines import ANIMA
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import PLACE, LanguageFormat
from axbake.runtime.values import Conditioning

STATES = (28,)  # of Qwen3's 28 layers, the last, behind the last norm
#: What decides the number of its weights
CONFIG = {
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "in_channels": 16,
}
STRUCTURE = Structure(CONFIG, cosmos.BLOCKS)
FORMAT = LanguageFormat(PLACE, tokens=cosmos.TOKENS, pad="<|endoftext|>")
T5_FORMAT = LanguageFormat(PLACE, tokens=cosmos.TOKENS, pad="<pad>", folder="t5_tokenizer")


def fits(denoiser: Shapes) -> bool:
    """By its patches of 17 channels; its kin from Cosmos have the same, but no conditioner (`axbake.families.others`)."""
    channels = qwen_image_vae.LATENTS.channels + 1
    return denoiser.get("patch_embed.proj.weight", ())[1:] == (channels * cosmos.PATCH**2,)


def text_renamer(shapes: Shapes) -> Rename:
    """Names of all layers and of the last norm."""
    return language.layers_renamer(shapes, layers=STATES[-1], norm=True)


def text_states(network: Module, ids: object, mask: object) -> tuple:
    """The states that are taken."""
    return language.states_of(network, ids, mask, states=STATES)


def text_example(network: Module, face: Interface, config: dict, generator: object) -> tuple:
    """Random token ids, and those states."""
    return language.example_of(network, face, config, generator, states=STATES)


FAMILY = Family(
    name="anima",
    title="Anima",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (Naming("layers.0.self_attn.q_norm.weight", text_renamer),),
                language.qwen3_config,
                "text_encoder",
                "text_encoder.",
            ),
            build=language.build_qwen3,
            graphs=language.slices("text_encoder", 1, form=FORMAT, states=STATES),
            columns=(),
            width=language.width,
            states=text_states,
            language=FORMAT,
            host=True,
            card=CardLayers(qwen3_folder_config, STATES),
            example=text_example,
        ),
        Component(
            name="text_conditioner",
            role=TEXT,
            files=Files(
                anima_text.NAMINGS,
                anima_text.config,
                anima_text.FOLDER,
                anima_text.PREFIX,
                lora_names=anima_text.lora_names,
                lora_within=("transformer", ("llm_adapter_",)),
            ),
            build=anima_text.build,
            graphs=(Graph("text_conditioner", anima_text.inputs, anima_text.interface, anima_text.cut),),
            columns=(),
            width=anima_text.width,
            states=anima_text.states,
            language=T5_FORMAT,
            host=True,
            example=anima_text.example,
        ),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                cosmos.NAMINGS,
                cosmos.config,
                cosmos.FOLDER,
                cosmos.PREFIX,
                lora_names=names.own_name,
                lora_modules=cosmos.lora_modules,
                lora_apart=("llm_adapter_",),
            ),
            build=cosmos.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=cosmos.COLUMNS,
            width=cosmos.width,
            with_rows=cosmos.with_rows,
            rows=cosmos.time_rows,
            example=cosmos.example,
        ),
        qwen_image_vae.ENCODER,
        qwen_image_vae.DECODER,
    ),
    latents=qwen_image_vae.LATENTS,
    conditioning=Conditioning(("text_encoder", "text_conditioner"), conditioner="text_conditioner"),
    process=Process(cosmos.PREDICTION_TYPE, FLOW_SCHEDULERS, cosmos.sampling, ANIMA),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "30", "guidance_scale": "4"},
    resources=("resources/sd1",),
)
