"""Stable Diffusion 1.x: CLIP ViT-L/14 text encoder, UNet with cross-attention, AutoencoderKL.

LDM names as in CompVis' `ldm` (`openaimodel.py`, `model.py` of the autoencoder), diffusers names as in its
`UNet2DConditionModel` and `AutoencoderKL`; transformers' `CLIPTextModel` (version 5) for the text encoder.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from axbake.families.family import Component, Family, Shapes

CONFIGS = Path(__file__).parents[2] / "resources" / "sd1"
TEXT_HEAD_WIDTH = 64  # channels of one attention head in every CLIP text encoder: 12 heads at 768

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _renamed_start(name: str, table: dict[str, str]) -> str | None:
    """*name* with its start replaced as in *table*; None if no entry is its start."""
    for old, new in table.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def unet_renamer(shapes: Shapes) -> Callable[[str], str | None]:
    """LDM names of the UNet to diffusers names.

    A level of L resnets takes L + 1 of LDM's `input_blocks` (the last one downsamples) and L + 1 of its `output_blocks`.
    L is where the first downsampler stands.
    """
    downsamplers = [int(m[1]) for name in shapes if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name))]
    resnets = min(downsamplers, default=3) - 1

    def block(side: str, number: int, part: str, rest: str) -> str | None:
        level, index = divmod(number - 1, resnets + 1) if side == "input" else divmod(number, resnets + 1)
        place = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
        if rest.startswith("op."):
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
        if part == "0":
            known = _renamed_start(rest, RESNET)
            return known and f"{place}.resnets.{index}.{known}"
        return f"{place}.attentions.{index}.{rest}"

    def rename(name: str) -> str | None:
        if end := _renamed_start(name, UNET_ENDS):
            return end
        if m := re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name):
            return block(m[1], int(m[2]), m[3], m[4])
        if m := re.fullmatch(r"middle_block\.([02])\.(.+)", name):
            known = _renamed_start(m[2], RESNET)
            return known and f"mid_block.resnets.{int(m[1]) // 2}.{known}"
        if name.startswith("middle_block.1."):
            return "mid_block.attentions.0." + name.removeprefix("middle_block.1.")
        return None

    return rename


def _vae_renamer(shapes: Shapes, half: str, convolution: str) -> Callable[[str], str | None]:
    levels = 1 + max(
        (int(m[1]) for name in shapes if (m := re.match(rf"{half}\.(?:down|up)\.(\d+)\.", name))), default=0
    )

    def rename(name: str) -> str | None:
        if name.startswith(convolution + "."):
            return name
        if not name.startswith(half + "."):
            return None
        name = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", name)
        name = re.sub(r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
        # LDM counts the decoder's levels from the fine one, diffusers from the coarse one.
        name = re.sub(r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets.", name)
        name = re.sub(r"\.up\.(\d+)\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", name)
        name = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
        name = re.sub(
            r"\.mid\.attn_1\.(\w+)\.", lambda m: f".mid_block.attentions.0.{VAE_ATTENTION.get(m[1], m[1])}.", name
        )
        return name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")

    return rename


def vae_encoder_renamer(shapes: Shapes) -> Callable[[str], str | None]:
    """LDM names of the autoencoder's encoder half to diffusers names."""
    return _vae_renamer(shapes, "encoder", "quant_conv")


def vae_decoder_renamer(shapes: Shapes) -> Callable[[str], str | None]:
    """LDM names of the autoencoder's decoder half to diffusers names."""
    return _vae_renamer(shapes, "decoder", "post_quant_conv")


def text_encoder_renamer(shapes: Shapes) -> Callable[[str], str | None]:
    """Names of CLIP's text encoder: as transformers 5 has them, without `position_ids`, which is a constant."""
    return lambda name: None if name == "embeddings.position_ids" else name


def _base(component: str) -> dict:
    return json.loads((CONFIGS / component / "config.json").read_text())


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand at the group of *pattern* at the start of the names."""
    return len({m[1] for name in shapes if (m := re.match(pattern, name))})


def unet_architecture(shapes: Shapes) -> dict:
    """Config of a `UNet2DConditionModel`; the number of heads (8 at every level) is the family's."""
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    crossed = [f"down_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(levels)]
    context = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    return _base("unet") | {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)],
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossed],
        "up_block_types": ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crossed)],
        "cross_attention_dim": context[0],
    }


def _vae_architecture(levels: int, channels: list[int], layers: int, latent_channels: int) -> dict:
    return _base("vae") | {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "latent_channels": latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def vae_encoder_architecture(shapes: Shapes) -> dict:
    """Config of the `AutoencoderKL` whose encoder half this is."""
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    channels = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    layers = _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    return _vae_architecture(levels, channels, layers, shapes["quant_conv.weight"][0] // 2)


def vae_decoder_architecture(shapes: Shapes) -> dict:
    """Config of the `AutoencoderKL` whose decoder half this is."""
    levels = _count(shapes, r"decoder\.up_blocks\.(\d+)\.")
    coarse_first = [shapes[f"decoder.up_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    layers = _count(shapes, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1  # diffusers adds one in the decoder
    return _vae_architecture(levels, coarse_first[::-1], layers, shapes["post_quant_conv.weight"][0])


def text_encoder_architecture(shapes: Shapes) -> dict:
    """Config of a `CLIPTextModel`."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return _base("text_encoder") | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // TEXT_HEAD_WIDTH),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
    }


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    marks=(
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "first_stage_model.decoder.conv_in.weight",
    ),
    components={
        "text_encoder": Component(
            "cond_stage_model.transformer.text_model.", text_encoder_renamer, text_encoder_architecture
        ),
        "unet": Component("model.diffusion_model.", unet_renamer, unet_architecture),
        "vae_encoder": Component("first_stage_model.", vae_encoder_renamer, vae_encoder_architecture),
        "vae_decoder": Component("first_stage_model.", vae_decoder_renamer, vae_decoder_architecture),
    },
    scaling_factor=0.18215,
    prediction_type="epsilon",
)
