"""Stable Diffusion 3's transformer (MMDiT, Esser et al. 2024): text and picture each have their own weights, and attend to both.

The names in its authors' files are those of github Stability-AI/sd3-ref, `mmdit.py`; diffusers calls it `SD3Transformer2DModel`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.errors import AxbakeError
from axbake.networks import names, unet
from axbake.networks.component import Interface, Module, Naming, Rename, Shape, Shapes
from axbake.networks.sampling import Flow, Sampling, SamplingError
from axbake.networks.transformer_slices import CONTEXT, ROW, SAMPLE, Blocks
from axbake.runtime.added import AddedEmbedding
from axbake.runtime.tokenizer import TOKENS

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width", "prompt_chunks")
PREDICTION_TYPE = "flow_prediction"
SHIFT = 3.0  # of the noise levels, in the published scheduler_config.json of all of them
FACTOR = 8  # image pixels a side for one latent pixel
HEAD_WIDTH = 64  # channels of one attention head
EXAMPLE_TIMESTEP = 500.0
T5_TOKENS = 256  # of a prompt, where it has T5
TIME, POOLED = "time_text_embed.timestep_embedder.", "time_text_embed.text_embedder."
ENDS = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": f"{TIME}linear_1",
    "t_embedder.mlp.2": f"{TIME}linear_2",
    "y_embedder.mlp.0": f"{POOLED}linear_1",
    "y_embedder.mlp.2": f"{POOLED}linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
#: Of a block: authors' name -> diffusers', or those of the three parts of its rows
PICTURE = {
    "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.proj": "attn.to_out.0",
    "attn.ln_q": "attn.norm_q",
    "attn.ln_k": "attn.norm_k",
    "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn2.proj": "attn2.to_out.0",
    "attn2.ln_q": "attn2.norm_q",
    "attn2.ln_k": "attn2.norm_k",
    "adaLN_modulation.1": "norm1.linear",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
TEXT = {
    "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.proj": "attn.to_add_out",
    "attn.ln_q": "attn.norm_added_q",
    "attn.ln_k": "attn.norm_added_k",
    "adaLN_modulation.1": "norm1_context.linear",
    "mlp.fc1": "ff_context.net.0.proj",
    "mlp.fc2": "ff_context.net.2",
}


class PictureSizeError(AxbakeError):
    """A transformer does not draw pictures of the row's size."""


def renamer(shapes: Shapes) -> Rename:
    """The authors' names to diffusers'."""

    def rename(name: str) -> str | tuple[str, ...] | None:
        stem, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        if stem in ENDS:
            return ENDS[stem] + dot + kind
        m = re.fullmatch(r"joint_blocks\.(\d{1,3})\.(x_block|context_block)\.(.+)", stem)
        new = m and (PICTURE if m[2] == "x_block" else TEXT).get(m[3])
        if not m or not new:
            return None
        place = f"transformer_blocks.{int(m[1])}."
        parts = tuple(f"{place}{part}{dot}{kind}" for part in ([new] if isinstance(new, str) else new))
        return parts if len(parts) > 1 else parts[0]

    return rename


def exchanged(shapes: Shapes) -> tuple[str, ...]:
    """Tensors, by diffusers' names, whose halves the authors' files have the other way round: shift before scale."""
    last = depth_of(shapes, r"joint_blocks\.(\d{1,3})\.") - 1
    layers = ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    return tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


def diffusers_renamer(shapes: Shapes) -> Rename:
    """diffusers' names, which stay."""
    starts = ("pos_embed.", "time_text_embed.", "context_embedder.", "transformer_blocks.", "norm_out.", "proj_out.")
    return lambda name: name if name.startswith(starts) else None


NAMINGS = (
    Naming("joint_blocks.0.x_block.attn.qkv.weight", renamer, exchanged=exchanged),
    Naming("pos_embed.pos_embed", diffusers_renamer),
)


def depth_of(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that *pattern* finds at the beginning of the names."""
    return 1 + max((int(m[1]) for name in shapes if (m := re.match(pattern, name))), default=-1)


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The authors' modules, as LoRAs change them; without those whose halves they have the other way round."""
    depth = depth_of(shapes, r"transformer_blocks\.(\d{1,3})\.")
    blocks = [
        f"joint_blocks.{number}.{side}.{part}"
        for number in range(depth)
        for side, table in (("x_block", PICTURE), ("context_block", TEXT))
        for part in table
        if (number, side, part) != (depth - 1, "context_block", "adaLN_modulation.1")
    ]
    ends = [name for name in ENDS if name not in ("pos_embed", "final_layer.adaLN_modulation.1")]
    return names.renamed_modules(renamer(shapes), [*blocks, *ends])


def config(shapes: Shapes) -> dict:
    """Config of the transformer."""
    width, context = shapes["context_embedder.weight"]
    channels, patch = shapes["pos_embed.proj.weight"][1:3]
    depth = depth_of(shapes, r"transformer_blocks\.(\d{1,3})\.")
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,  # of the table of positions, which the file has
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": depth,
        "attention_head_dim": min(HEAD_WIDTH, width),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "joint_attention_dim": context,
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes[f"{POOLED}linear_1.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        "dual_attention_layers": [
            number for number in range(depth) if f"transformer_blocks.{number}.attn2.to_q.weight" in shapes
        ],
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in shapes else None,
    }


def build(config: Mapping) -> Module:
    """diffusers' `SD3Transformer2DModel`."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel.from_config(config)


def width(config: Mapping) -> int:
    """Channels of a token that it takes."""
    return config["joint_attention_dim"]


def pooled_width(config: Mapping) -> int:
    """Channels of the pooled prompt that it takes."""
    return config["pooled_projection_dim"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run.

    Raises:
        SamplingError: the table or the file says that it predicts something else than a flow.
    """
    if prediction_type != PREDICTION_TYPE:
        raise SamplingError(
            f"prediction: {prediction_type}, but a transformer of Stable Diffusion 3 predicts a flow. Leave the column prediction"
            " empty."
        )
    return Flow(shift=SHIFT)


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects."""
    inner = config["caption_projection_dim"]
    token, context, patch = inner + 1, config["joint_attention_dim"] + 1, config["patch_size"] ** 2
    attention, feed_forward, modulation = 4 * token * inner, (8 * inner + 5) * inner, token * inner
    sizes = []
    for number in range(config["num_layers"]):
        dual, last = number in config["dual_attention_layers"], number == config["num_layers"] - 1
        picture = attention + feed_forward + (9 if dual else 6) * modulation + (attention if dual else 0)
        text = attention + feed_forward + 6 * modulation
        text -= (attention // 4 + feed_forward + 4 * modulation) if last else 0
        sizes.append(picture + text + (HEAD_WIDTH * (4 + 2 * dual) if config["qk_norm"] else 0))
    sizes[0] += (config["in_channels"] * patch + 1) * inner + context * inner
    sizes[-1] += 2 * modulation + token * patch * config["out_channels"]
    return sizes


def shapes(config: Mapping, *, height: int, width: int, prompt_chunks: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    rows, columns = height // FACTOR, width // FACTOR
    inner, tokens = config["caption_projection_dim"], prompt_chunks * TOKENS
    step = FACTOR * config["patch_size"]
    most = step * config["pos_embed_max_size"]
    if wrong := [
        f"{name}: {side}" for name, side in (("height", height), ("width", width)) if side % step or side > most
    ]:
        raise PictureSizeError(
            f"column {', '.join(wrong)}; this transformer draws pictures of a multiple of {step} pixels a side, at most {most}."
        )
    return {
        SAMPLE: (1, config["in_channels"], rows, columns),
        CONTEXT: (1, tokens, config["joint_attention_dim"]),
        ROW: (1, inner),
        "hidden": (1, (rows // config["patch_size"]) * (columns // config["patch_size"]), inner),
        "context": (1, tokens, inner),
    }


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*."""
    from axbake.networks.mmdit_modules import SlicedMmdit

    _, _, height, width = face.latent
    return SlicedMmdit(network, begin, end, size=(height, width))


BLOCKS = Blocks(("hidden", "context"), weights, shapes, sliced)


def shapes_with_t5(config: Mapping, **columns: int) -> dict[str, Shape]:
    """The same with T5's tokens behind CLIP's."""
    found = shapes(config, **columns)
    more = {name: (1, found[name][1] + T5_TOKENS, found[name][2]) for name in (CONTEXT, "context")}
    return found | more


T5_BLOCKS = replace(BLOCKS, shapes=shapes_with_t5)


def with_rows(network: Module) -> Module:
    """The network without its time embedding: (latent, tokens, row) -> prediction."""
    from axbake.networks.mmdit_modules import SlicedMmdit

    return SlicedMmdit(network, 0, len(network.transformer_blocks), size=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows of *timesteps* without SiLU, to which pooled prompts are added; (N, C) float32 (`axbake.networks.unet.time_rows`)."""
    return unet.time_rows(weights, timesteps, guidance_scale=guidance_scale, activated=False, prefix=TIME)


def added_embedding(weights: Path) -> AddedEmbedding:
    """What pooled prompts add to the rows, from `weights/{component}.safetensors` of the transformer."""
    from axbake.weights.files import read_tensor

    arrays = {
        f"{kind}_{number}": read_tensor(weights, f"{POOLED}linear_{number}.{kind}").float().numpy()
        for number in (1, 2)
        for kind in ("weight", "bias")
    }
    return AddedEmbedding(**arrays)


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent, tokens and pooled prompt at a timestep in the middle, and what the whole network makes of them."""
    import torch

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    context = torch.randn(face.inputs[CONTEXT].shape, generator=generator)
    pooled = torch.randn((1, pooled_width(config)), generator=generator)
    time = torch.tensor([EXAMPLE_TIMESTEP])
    row = torch.nn.functional.silu(network.time_text_embed(time, pooled))
    output = network(latent, context, pooled, time, return_dict=False)[0]
    return {SAMPLE: latent, CONTEXT: context, ROW: row}, output
