"""FLUX.1's transformer: blocks in which text and picture have their own weights, then blocks in which they are one sequence.

The names in its authors' files are those of github black-forest-labs/flux, `model.py`; diffusers calls it
`FluxTransformer2DModel`. A token is 2 × 2 pixels of a latent, channel after channel; graphs take the latent itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.networks import names
from axbake.networks.component import Interface, Module, Naming, Rename, Shape, Shapes
from axbake.networks.flux2 import check_size
from axbake.networks.mmdit import depth_of
from axbake.networks.sampling import Sampling, SamplingError, SpacedFlow
from axbake.networks.transformer_slices import CONTEXT, ROW, SAMPLE, Blocks
from axbake.runtime.added import AddedEmbedding

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width")
PREDICTION_TYPE = "flow_prediction"
FACTOR, PATCH = 8, 2  # image pixels a side for one latent pixel; latent pixels a side for one token
TOKENS = 512  # of a prompt
HEAD_WIDTH = 128
AXES, THETA = (16, 56, 56), 10000.0  # of the rotary positions: 0, row, column
SINUSOIDS = 256  # channels that a timestep becomes
EXAMPLE_TIMESTEP, EXAMPLE_GUIDANCE = 500.0, 3.5
TIME, GUIDANCE, POOLED = (f"time_text_embed.{part}_embedder." for part in ("timestep", "guidance", "text"))
ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
ENDS |= {
    f"{theirs}.{layer}_layer": f"{ours}linear_{number}"
    for theirs, ours in (("time_in", TIME), ("guidance_in", GUIDANCE), ("vector_in", POOLED))
    for number, layer in ((1, "in"), (2, "out"))
}
#: Of a block: authors' name -> diffusers', or those of the parts of its rows
DOUBLE: Mapping[str, str | tuple[str, ...]] = {
    "img_mod.lin": "norm1.linear",
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
#: A feed-forward layer has four times the channels of queries, keys or values
SINGLE: Mapping[str, str | tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", *["proj_mlp"] * 4),
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "modulation.lin": "norm.linear",
}
KINDS: Mapping[str, tuple[str, Mapping[str, str | tuple[str, ...]]]] = {
    "double_blocks": ("transformer_blocks", DOUBLE),
    "single_blocks": ("single_transformer_blocks", SINGLE),
}
STARTS = (
    *("x_embedder.", "context_embedder.", "time_text_embed.", "transformer_blocks.", "single_transformer_blocks."),
    *("norm_out.", "proj_out."),
)


def renamer(shapes: Shapes) -> Rename:
    """The authors' names to diffusers'; some programs write `weight` for their `scale`."""

    def rename(name: str) -> str | tuple[str, ...] | None:
        stem, _, kind = name.rpartition(".")
        if stem in ENDS:
            return f"{ENDS[stem]}.{kind}"
        m = re.fullmatch(r"(double_blocks|single_blocks)\.(\d{1,3})\.(.+)", stem)
        place, table = KINDS[m[1]] if m else ("", {})
        new = table.get(m[3]) if m else None
        if not m or not new:
            return None
        kind = "weight" if kind == "scale" else kind
        parts = tuple(f"{place}.{int(m[2])}.{part}.{kind}" for part in ([new] if isinstance(new, str) else new))
        return parts if len(parts) > 1 else parts[0]

    return rename


def exchanged(shapes: Shapes) -> tuple[str, ...]:
    """Tensors, by diffusers' names, whose halves the authors' files have the other way round: shift before scale."""
    return "norm_out.linear.weight", "norm_out.linear.bias"


def diffusers_renamer(shapes: Shapes) -> Rename:
    """diffusers' names, which stay."""
    return lambda name: name if name.startswith(STARTS) else None


NAMINGS = (
    Naming("single_blocks.0.linear1.weight", renamer, exchanged=exchanged),
    Naming("single_transformer_blocks.0.proj_mlp.weight", diffusers_renamer),
)


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The authors' modules, as LoRAs change them; without the one whose halves they have the other way round."""
    blocks = [
        f"{theirs}.{number}.{part}"
        for theirs, (ours, table) in KINDS.items()
        for number in range(depth_of(shapes, rf"{ours}\.(\d{{1,3}})\."))
        for part in table
    ]
    ends = [name for name in ENDS if name != "final_layer.adaLN_modulation.1"]
    return names.renamed_modules(renamer(shapes), [*blocks, *ends])


def config(shapes: Shapes) -> dict:
    """Config of the transformer."""
    width, channels = shapes["x_embedder.weight"]
    head = shapes["single_transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": depth_of(shapes, r"transformer_blocks\.(\d{1,3})\."),
        "num_single_layers": depth_of(shapes, r"single_transformer_blocks\.(\d{1,3})\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes[f"{POOLED}linear_1.weight"][1],
        "guidance_embeds": f"{GUIDANCE}linear_1.weight" in shapes,
        "axes_dims_rope": [head * width // sum(AXES) for width in AXES],
    }


def build(config: Mapping) -> Module:
    """diffusers' `FluxTransformer2DModel`."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_config(config)


def width(config: Mapping) -> int:
    """Channels of a token that it takes."""
    return config["joint_attention_dim"]


def pooled_width(config: Mapping) -> int:
    """Channels of the pooled prompt that it takes."""
    return config["pooled_projection_dim"]


def inner_width(config: Mapping) -> int:
    """Channels of its hidden tensors."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run: with one branch and a shift that grows with the picture if it takes the guidance scale as an input (dev).

    Raises:
        SamplingError: the table or the file says that it predicts something else than a flow.
    """
    if prediction_type != PREDICTION_TYPE:
        raise SamplingError(
            f"prediction: {prediction_type}, but a transformer of FLUX.1 predicts a flow. Leave the column prediction empty."
        )
    if config["guidance_embeds"]:
        return SpacedFlow(guidance_embedded=True, dynamic="flux1", factor=FACTOR * PATCH)
    return SpacedFlow()


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects."""
    inner, head = inner_width(config), config["attention_head_dim"]
    linear = inner * (inner + 1)
    double = 2 * (6 * linear + 4 * linear + 8 * inner**2 + 5 * inner) + 4 * head
    single = 3 * linear + 3 * linear + 4 * linear + 5 * inner**2 + inner + 2 * head
    sizes = [double] * config["num_layers"] + [single] * config["num_single_layers"]
    sizes[0] += (config["in_channels"] + 1 + config["joint_attention_dim"] + 1) * inner
    sizes[-1] += 2 * linear + (inner + 1) * config["in_channels"]
    return sizes


def shapes(config: Mapping, *, height: int, width: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks: text, then picture.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    check_size(FACTOR * PATCH, height=height, width=width)
    rows, columns, inner = height // FACTOR, width // FACTOR, inner_width(config)
    return {
        SAMPLE: (1, config["in_channels"] // PATCH**2, rows, columns),
        CONTEXT: (1, TOKENS, config["joint_attention_dim"]),
        ROW: (1, inner),
        "hidden": (1, TOKENS + rows * columns // PATCH**2, inner),
    }


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*."""
    from axbake.networks.flux1_modules import SlicedFlux1

    _, _, height, width = face.latent
    return SlicedFlux1(network, begin, end, size=(height, width))


BLOCKS = Blocks(("hidden",), weights, shapes, sliced)


def with_rows(network: Module) -> Module:
    """The network without its time embedding: (latent, tokens, row) -> prediction."""
    from axbake.networks.flux1_modules import SlicedFlux1

    blocks = len(network.transformer_blocks) + len(network.single_transformer_blocks)
    return SlicedFlux1(network, 0, blocks, size=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows of *timesteps* without SiLU, to which pooled prompts are added (`axbake.networks.flux2.time_rows`).

    Args:
        weights: `weights/{component}.safetensors` of the transformer; only the tensors that make rows are read.
        timesteps: (N,) noise levels, 0 to 1000.
        guidance_scale: of a transformer that takes it as an input; not used by others.

    Returns:
        (N, C) float32.
    """
    import torch
    from diffusers.models.embeddings import Timesteps

    from axbake.weights.files import read_shapes, read_tensor

    project = Timesteps(SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)

    def embedded(place: str, values: torch.Tensor) -> torch.Tensor:
        hidden = project(values).double()
        for number in (1, 2):
            hidden = torch.nn.functional.silu(hidden) if number == 2 else hidden
            weight, bias = (
                read_tensor(weights, f"{place}linear_{number}.{kind}").double() for kind in ("weight", "bias")
            )
            hidden = hidden @ weight.T + bias
        return hidden

    row = embedded(TIME, torch.from_numpy(timesteps) / 1000 * 1000)  # as the pipeline hands it on
    if f"{GUIDANCE}linear_1.weight" in read_shapes(weights):
        row = row + embedded(GUIDANCE, torch.full((1,), 1000 * guidance_scale))
    return row.float().numpy()


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

    from axbake.networks.flux1_modules import picture_of_packed

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    context = torch.randn(face.inputs[CONTEXT].shape, generator=generator)
    pooled = torch.randn((1, pooled_width(config)), generator=generator)
    time, guidance = torch.tensor([EXAMPLE_TIMESTEP / 1000]), torch.tensor([EXAMPLE_GUIDANCE])
    told = (guidance,) if config["guidance_embeds"] else ()
    row = network.time_text_embed(time * 1000, *(scale * 1000 for scale in told), pooled)
    rows, columns = (side // PATCH for side in latent.shape[2:])
    packed = torch.nn.functional.pixel_unshuffle(latent, PATCH).flatten(2).transpose(1, 2)
    places = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).float()
    output = network(
        packed, context, pooled, time, places, torch.zeros((TOKENS, 3)), told[0] if told else None, return_dict=False
    )[0]
    prediction = picture_of_packed(output, *latent.shape[2:])
    return {SAMPLE: latent, CONTEXT: context, ROW: torch.nn.functional.silu(row)}, prediction
