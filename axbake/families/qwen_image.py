"""Qwen-Image: Qwen2.5-VL 7B on the host, a transformer of 60 blocks in thirty graphs, a VAE that makes films."""

from axbake.families.family import Family, Process
from axbake.networks import language, names, qwen_image, qwen_image_vae
from axbake.networks.component import (
    DENOISER,
    GRAPH_WEIGHTS,
    TEXT,
    Component,
    Files,
    Interface,
    Module,
    Naming,
    Rename,
    Shapes,
)
from axbake.networks.pipelines import QWEN_IMAGE
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import LanguageFormat
from axbake.runtime.values import Conditioning

STATES = (28,)  # of Qwen2.5-VL's 28 layers, the last, behind the last norm
TEXT_GRAPHS = 9
#: What decides the number of its weights
CONFIG = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "in_channels": 64,
}
STRUCTURE = Structure(CONFIG, qwen_image.BLOCKS)
#: Of diffusers' pipeline, which takes no states of the tokens before the prompt
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships"
    " of the objects and background:<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 34
FORMAT = LanguageFormat(
    TEMPLATE,
    tokens=DROPPED + qwen_image.CHUNK,
    pad="<|endoftext|>",
    drop=DROPPED,
    masked=True,
    chunked=True,
)


def fits(denoiser: Shapes) -> bool:
    """By its blocks' modulation; its kin for layers of a picture take a further condition."""
    return qwen_image.MARK in denoiser and "time_text_embed.addition_t_embedding.weight" not in denoiser


def text_renamer(shapes: Shapes) -> Rename:
    """Names of all layers and of the last norm."""
    return language.layers_renamer(shapes, layers=STATES[-1], norm=True)


def text_states(network: Module, ids: object, mask: object) -> tuple:
    """The states that are taken."""
    return language.states_of(network, ids, mask, states=STATES, drop=DROPPED)


def text_example(network: Module, face: Interface, config: dict, generator: object) -> tuple:
    """Random token ids, and those states."""
    return language.example_of(network, face, config, generator, states=STATES, drop=DROPPED)


FAMILY = Family(
    name="qwen_image",
    title="Qwen-Image",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (Naming("layers.0.self_attn.q_proj.bias", text_renamer),),
                language.qwen2_config,
                "text_encoder",
                "text_encoder.model.language_model.",
            ),
            build=language.build_qwen2,
            graphs=language.slices("text_encoder", TEXT_GRAPHS, form=FORMAT, states=STATES),
            columns=("prompt_chunks",),
            width=language.width,
            states=text_states,
            language=FORMAT,
            host=True,
            example=text_example,
        ),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                qwen_image.NAMINGS,
                qwen_image.config,
                qwen_image.FOLDER,
                qwen_image.PREFIX,
                lora_names=names.own_name,
                lora_modules=qwen_image.lora_modules,
            ),
            build=qwen_image.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=qwen_image.COLUMNS,
            width=qwen_image.width,
            with_rows=qwen_image.with_rows,
            rows=qwen_image.time_rows,
            example=qwen_image.example,
        ),
        qwen_image_vae.ENCODER,
        qwen_image_vae.DECODER,
    ),
    latents=qwen_image_vae.LATENTS,
    conditioning=Conditioning(("text_encoder",)),
    process=Process(qwen_image.PREDICTION_TYPE, FLOW_SCHEDULERS[:1], qwen_image.sampling, QWEN_IMAGE, sized=True),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "50", "guidance_scale": "4"},
    resources=("resources/sd1",),
)
