"""Networks' configs in diffusers' form, read from the shapes of their tensors under diffusers' names.

What shapes do not tell (normalisation groups, activations) is that of Stable Diffusion 1.5, in `resources/sd1`.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from axbake.networks.component import Shapes
from axbake.root import shipped
from axbake.runtime.added import SIZE_CHANNELS
from axbake.runtime.values import CANVAS

CONFIGS = shipped("resources/sd1")
TEXT_HEAD_WIDTH = 64  # channels of one attention head in every CLIP text encoder: 12 heads at 768, 16 at 1024

#: (cross-attention in each level on the way down, resnets a level, mid block) -> who distilled such a UNet
VARIANTS = {
    ((True, True, True, False), 2, True): "Stable Diffusion",
    ((True, True, True, False), 1, True): "BK-SDM-base",
    ((True, True, True, False), 1, False): "BK-SDM-small or small-sd",
    ((True, True, True), 1, False): "BK-SDM-tiny or tiny-sd",
    ((False, True, True), 1, False): "SDXS-512",
}
SDXS = "SDXS-512"


@functools.cache
def _base_text(component: str) -> str:
    return (CONFIGS / component / "config.json").read_text(encoding="utf-8")


def _base(component: str) -> dict:
    return json.loads(_base_text(component))


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand at the group of *pattern* at the start of the names."""
    return len({m[1] for name in shapes if (m := re.match(pattern, name))})


def _crossed(shapes: Shapes, side: str) -> list[bool]:
    """Which of the levels of *side*, down or up, have cross-attention."""
    levels = _count(shapes, rf"{side}_blocks\.(\d+)\.")
    return [f"{side}_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(levels)]


def context_width(shapes: Shapes) -> int:
    """Channels of a token's embedding, as a UNet's cross-attention takes it."""
    return next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))


def is_conditioned_by_prompt_and_sizes(shapes: Shapes) -> bool:
    """Whether a UNet's time embedding has the pooled prompt and the picture's sizes added, as in Stable Diffusion XL."""
    return "add_embedding.linear_1.weight" in shapes


def has_linear_projections(shapes: Shapes) -> bool:
    """Whether a UNet's transformers begin with a linear layer, as in Stable Diffusion 2.x, and not a 1×1 convolution."""
    return next(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".proj_in.weight"))


def _attends_context_only(shapes: Shapes, block: str) -> bool:
    """Whether the first attention of *block* looks at the prompt too, and not at the picture: only where widths differ."""
    start = f"{block}.attentions.0.transformer_blocks.0.attn1"
    key, query = shapes.get(f"{start}.to_k.weight"), shapes.get(f"{start}.to_q.weight")
    return key is not None and query is not None and key[1] != query[1]


def _one_or_all(values: list) -> Any:
    """*values* of all levels, as diffusers has them: one where all are the same."""
    return values[0] if len(set(values)) == 1 else values


def unet_architecture(shapes: Shapes, *, heads: Callable[[int], int]) -> dict:
    """Config of a `UNet2DConditionModel`.

    Args:
        heads: channels of a level -> attention heads, which shapes do not tell.
    """
    down, up = _crossed(shapes, "down"), _crossed(shapes, "up")
    channels = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(len(down))]
    has_mid = "mid_block.resnets.0.conv1.weight" in shapes
    config = _base("unet") | {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in down],
        "up_block_types": ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in up],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if has_mid else None,
        "cross_attention_dim": context_width(shapes),
        "use_linear_projection": has_linear_projections(shapes),
        "attention_head_dim": _one_or_all([heads(width) for width in channels]),  # diffusers' name for their number
        "only_cross_attention": _one_or_all(
            [_attends_context_only(shapes, f"down_blocks.{level}") for level in range(len(down))]
        ),
    }
    if "time_embedding.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = shapes["time_embedding.cond_proj.weight"][1]
    return config


def xl_unet_architecture(shapes: Shapes, *, heads: Callable[[int], int]) -> dict:
    """The same of UNets with transformers of several blocks, and a time embedding to which prompts and sizes are added.

    So are Stable Diffusion XL's and those that were distilled from it. A prompt is added by its pooled channels, a size by 256.
    """
    config = unet_architecture(shapes, heads=heads)
    sides: dict[str, list] = {}
    for side in ("down", "up"):
        numbers = [_numbers(shapes, f"{side}_blocks.{level}") for level in range(len(config["block_out_channels"]))]
        sides[side] = [_one_or_all(found) if found else 1 for found in numbers]
    depths = {"transformer_layers_per_block": sides["down"]}
    if sides["up"] != sides["down"][::-1]:  # diffusers reverses them for the way up
        depths["reverse_transformer_layers_per_block"] = sides["up"]
    attended = _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    kind = "UNetMidBlock2DCrossAttn" if attended else "UNetMidBlock2D"
    return (
        config
        | depths
        | {
            "mid_block_type": kind if config["mid_block_type"] else None,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_CHANNELS,
            "projection_class_embeddings_input_dim": shapes["add_embedding.linear_1.weight"][1],
        }
    )


def _numbers(shapes: Shapes, block: str) -> list[int]:
    """How many blocks each transformer of a level has."""
    count = _count(shapes, rf"{re.escape(block)}\.attentions\.(\d+)\.")
    return [
        _count(shapes, rf"{re.escape(block)}\.attentions\.{number}\.transformer_blocks\.(\d+)\.")
        for number in range(count)
    ]


def projected_text_architecture(shapes: Shapes, *, hidden_act: str, pad_token_id: int) -> dict:
    """Config of a `CLIPTextModelWithProjection`; arguments as of `text_architecture`."""
    config = text_architecture(shapes, hidden_act=hidden_act, pad_token_id=pad_token_id)
    return config | {"projection_dim": shapes["text_projection.weight"][0]}


def unet_variant(config: Mapping) -> str:
    """Name of a UNet's structure."""
    crossed = tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"])
    known = VARIANTS.get((crossed, config["layers_per_block"], config["mid_block_type"] is not None))
    variant = SDXS if config["only_cross_attention"] else known or "a structure without a name"
    return variant + _made_for(config)


def xl_unet_variant(config: Mapping) -> str:
    """The same of a UNet of Stable Diffusion XL or one that was distilled from it."""
    if config["layers_per_block"] == 1:
        variant = "KOALA 1B" if config["mid_block_type"] else "KOALA 700M"
    elif config["mid_block_type"] == "UNetMidBlock2DCrossAttn":
        variant = "Stable Diffusion XL"
    else:
        up = config.get("reverse_transformer_layers_per_block", config["transformer_layers_per_block"][::-1])
        variant = "SSD-1B" if _deepest(up[1]) > 1 else "Segmind-Vega"
    return variant + _made_for(config)


def _made_for(config: Mapping) -> str:
    """What the name of a UNet's structure is followed by, of one that takes more than others."""
    said = ", distilled for LCM" if config.get("time_cond_proj_dim") else ""
    kinds = {1: ", for instructions (InstructPix2Pix)", 2: ", for inpainting"}
    return said + kinds.get(len(drawn_on(config)), "")


def drawn_on(config: Mapping) -> tuple[str, ...]:
    """Of `CANVAS`, what a UNet takes beside the latent: nothing; a picture, as another latent; or a mask besides."""
    latent, taken = config["out_channels"], config["in_channels"]
    return {2 * latent: CANVAS[:1], 2 * latent + 1: CANVAS}.get(taken, ())


def _deepest(depths: int | list[int]) -> int:
    return depths if isinstance(depths, int) else max(depths)


def _vae_architecture(levels: int, channels: list[int], layers: int, latent_channels: int) -> dict:
    return _base("vae") | {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "latent_channels": latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _tiny_vae_architecture(shapes: Shapes, half: str) -> dict:
    """Config of the `AutoencoderTiny` of which this is the *half*, encoder or decoder; the other one mirrors it.

    Each half is a sequence: a convolution, blocks, a convolution, blocks …, a convolution.
    """
    numbers = {int(m[1]): m[2] for name in shapes if (m := re.match(rf"{half}\.layers\.(\d+)\.(weight|conv\.0)", name))}
    convolutions = sorted(number for number, kind in numbers.items() if kind == "weight")
    blocks = [
        sum(first < number < last for number, kind in numbers.items() if kind != "weight")
        for first, last in itertools.pairwise(convolutions)
    ]
    found = [shapes[f"{half}.layers.{number}.weight"] for number in convolutions]
    channels = [shape[0] for shape in found[:-1]]
    other = "decoder" if half == "encoder" else "encoder"
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "latent_channels": found[-1][0] if half == "encoder" else found[0][1],
        "scaling_factor": 1.0,
        f"{half}_block_out_channels": channels,
        f"{other}_block_out_channels": channels[::-1],
        f"num_{half}_blocks": blocks,
        f"num_{other}_blocks": blocks[::-1],
    }


def vae_encoder_architecture(shapes: Shapes) -> dict:
    """Config of the `AutoencoderKL`, or `AutoencoderTiny`, whose encoder half this is."""
    if "encoder.layers.0.weight" in shapes:
        return _tiny_vae_architecture(shapes, "encoder")
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    channels = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    layers = _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    return _vae_architecture(levels, channels, layers, shapes["quant_conv.weight"][0] // 2)


def without_quant_conv(architecture: Callable[[Shapes], dict], shapes: Shapes) -> dict:
    """Config of the autoencoder that lacks the convolutions between half and latent, as those of 16 channels do.

    Args:
        architecture: of its half: `vae_encoder_architecture` or `vae_decoder_architecture`.
        shapes: of its half.

    Raises:
        KeyError: the half is not there.
    """
    ends = {"quant_conv.weight": "encoder.conv_out.weight", "post_quant_conv.weight": "decoder.conv_in.weight"}
    sides = {
        name: shapes[end] if name == "quant_conv.weight" else shapes[end][1:]
        for name, end in ends.items()
        if end in shapes
    }
    return architecture({**shapes, **sides}) | {"use_quant_conv": False, "use_post_quant_conv": False}


def vae_decoder_architecture(shapes: Shapes) -> dict:
    """Config of the `AutoencoderKL`, or `AutoencoderTiny`, whose decoder half this is."""
    if "decoder.layers.0.weight" in shapes:
        return _tiny_vae_architecture(shapes, "decoder")
    levels = _count(shapes, r"decoder\.up_blocks\.(\d+)\.")
    coarse_first = [shapes[f"decoder.up_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    layers = _count(shapes, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1  # diffusers adds one in the decoder
    return _vae_architecture(levels, coarse_first[::-1], layers, shapes["post_quant_conv.weight"][0])


def text_architecture(shapes: Shapes, *, hidden_act: str, pad_token_id: int) -> dict:
    """Config of a `CLIPTextModel`.

    Args:
        hidden_act: activation of the feed-forward layers: quick_gelu or gelu.
        pad_token_id: of the token that a prompt is filled up with to its 77.
    """
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return _base("text_encoder") | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // TEXT_HEAD_WIDTH),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": hidden_act,
        "pad_token_id": pad_token_id,
    }
