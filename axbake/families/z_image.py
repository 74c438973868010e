"""Z-Image and Z-Image-Turbo: Qwen3-4B on the host, a transformer of 2 + 30 blocks in eight graphs, FLUX.1's VAE."""

from axbake.families.family import Family, Process
from axbake.networks import flux_vae, language, names, z_image, z_image_text
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
from axbake.networks.pipelines import Z_IMAGE
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import LanguageFormat
from axbake.runtime.values import Conditioning

STATES = (35,)  # of Qwen3's 36 layers, the last but one
TEXT_GRAPHS = 5
#: What decides the number of its weights
CONFIG = {"dim": 3840, "n_heads": 30, "n_layers": 30, "n_refiner_layers": 2, "in_channels": 16}
STRUCTURE = Structure(CONFIG, z_image.BLOCKS)
#: Qwen3's chat, one message, before its thoughts
TEMPLATE = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
FORMAT = LanguageFormat(
    TEMPLATE,
    tokens=z_image.CHUNK,
    pad="<|endoftext|>",
    side="left",
    multiple=z_image.MULTIPLE,
    masked=True,
    chunked=True,
)


def fits(denoiser: Shapes) -> bool:
    """By the token that fills up a prompt, which its kin from Lumina on do not have."""
    return "cap_pad_token" in denoiser and "siglip_pad_token" not in denoiser


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
    name="z_image",
    title="Z-Image",
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
            columns=("prompt_chunks",),
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
                z_image_text.NAMINGS,
                z_image_text.config,
                z_image.FOLDER,
                z_image.PREFIX,
                lora_names=names.own_name,
                lora_modules=z_image.lora_modules,
                lora_within=("transformer", ("cap_embedder_", "context_refiner_")),
            ),
            build=z_image_text.build,
            graphs=(Graph("text_conditioner", z_image_text.inputs, z_image_text.interface, z_image_text.cut),),
            columns=("prompt_chunks",),
            width=z_image_text.width,
            states=z_image_text.states,
            host=True,
            example=z_image_text.example,
        ),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                z_image.NAMINGS,
                z_image.config,
                z_image.FOLDER,
                z_image.PREFIX,
                lora_names=names.own_name,
                lora_modules=z_image.lora_modules,
            ),
            build=z_image.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=z_image.COLUMNS,
            width=z_image.width,
            with_rows=z_image.with_rows,
            rows=z_image.time_rows,
            example=z_image.example,
        ),
        flux_vae.ENCODER,
        flux_vae.DECODER,
    ),
    latents=flux_vae.LATENTS,
    conditioning=Conditioning(("text_encoder", "text_conditioner"), conditioner="text_conditioner"),
    process=Process(z_image.PREDICTION_TYPE, FLOW_SCHEDULERS[:1], z_image.sampling, Z_IMAGE, truncated=True),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "9", "guidance_scale": "1"},
    resources=("resources/sd1",),
)
