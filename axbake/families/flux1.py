"""FLUX.1 dev and schnell: CLIP's pooled prompt, T5 on the host, a transformer of 19 + 38 blocks in sixteen graphs."""

from axbake.families.family import Family, Process
from axbake.networks import architecture, clip, clip_xl, flux1, flux_vae, names, t5
from axbake.networks.component import (
    DENOISER,
    GRAPH_WEIGHTS,
    TEXT,
    Component,
    Files,
    Graph,
    Module,
    Naming,
    Shapes,
)
from axbake.networks.pipelines import FLUX_1
from axbake.networks.sampling import FLOW_SCHEDULERS
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import PLACE, LanguageFormat
from axbake.runtime.values import Conditioning

TEXT_GRAPHS = 6
CHANNELS = 64  # of a token of the picture; of those for inpainting and the like more
#: What decides the number of its weights
CONFIG = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": flux1.HEAD_WIDTH,
    "joint_attention_dim": 4096,
    "in_channels": CHANNELS,
}
STRUCTURE = Structure(CONFIG, flux1.BLOCKS)


def fits(denoiser: Shapes) -> bool:
    """By a layer of its joint blocks, and what it takes of a picture."""
    return (
        "single_transformer_blocks.0.proj_mlp.weight" in denoiser
        and denoiser.get("x_embedder.weight", ())[1:] == (CHANNELS,)
        and "time_text_embed.timestep_embedder.linear_1.weight" in denoiser
    )


def text_config(shapes: Shapes) -> dict:
    """Config of the CLIP."""
    return architecture.text_architecture(shapes, hidden_act="quick_gelu", pad_token_id=clip_xl.END)


def build_text(config: dict) -> Module:
    """transformers' `CLIPTextModel`, whose pooled prompt is its last state itself."""
    import torch

    network = clip.build(config)
    network.text_projection = torch.nn.Identity()
    return network


FAMILY = Family(
    name="flux1",
    title="FLUX.1",
    fits=fits,
    components=(
        Component(
            name="text_encoder",
            role=TEXT,
            files=Files(
                (Naming("embeddings.token_embedding.weight", names.clip_renamer),),
                text_config,
                clip.FOLDER,
                clip.PREFIX,
                clip.TOLD,
                lora_names=names.clip_lora_names,
            ),
            build=build_text,
            graphs=(Graph("text_encoder", clip.inputs, clip_xl.projected_interface, clip_xl.cut),),
            columns=(),
            width=clip.width,
            pooled=clip.width,
            states=clip_xl.states,
            example=clip_xl.example,
        ),
        Component(
            name="text_encoder_2",
            role=TEXT,
            files=Files(t5.NAMINGS, t5.config, "text_encoder_2", "text_encoder_2."),
            build=t5.build,
            graphs=t5.slices(TEXT_GRAPHS, tokens=flux1.TOKENS),
            columns=(),
            width=t5.width,
            states=t5.states,
            language=LanguageFormat(PLACE, tokens=flux1.TOKENS, pad="<pad>", folder="tokenizer_2"),
            host=True,
            example=t5.example,
        ),
        Component(
            name="transformer",
            role=DENOISER,
            files=Files(
                flux1.NAMINGS,
                flux1.config,
                flux1.FOLDER,
                flux1.PREFIX,
                lora_names=names.own_name,
                lora_modules=flux1.lora_modules,
            ),
            build=flux1.build,
            graphs=STRUCTURE.slices(GRAPH_WEIGHTS),
            columns=flux1.COLUMNS,
            width=flux1.width,
            pooled=flux1.pooled_width,
            with_rows=flux1.with_rows,
            rows=flux1.time_rows,
            added=flux1.added_embedding,
            example=flux1.example,
        ),
        flux_vae.ENCODER,
        flux_vae.DECODER,
    ),
    latents=flux_vae.LATENTS,
    conditioning=Conditioning(("text_encoder", "text_encoder_2"), joined="language", pooled="text_encoder"),
    process=Process(flux1.PREDICTION_TYPE, FLOW_SCHEDULERS, flux1.sampling, FLUX_1, sized=True),
    structure=STRUCTURE,
    pixels=1024,
    cells={"scheduler": "euler", "steps": "20", "guidance_scale": "3.5"},
    resources=("resources/sd1",),
)
