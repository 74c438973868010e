"""FLUX.2's transformer: blocks in which text and picture have their own weights, then blocks in which they are one sequence.

The names in its authors' files are those of github black-forest-labs/flux2, `model.py`; diffusers calls it
`Flux2Transformer2DModel`. All blocks of a kind are modulated by the same numbers, which depend on the step alone: so these are
rows that the host computes, and their weights are in no graph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.networks import names
from axbake.networks.component import Interface, Module, Naming, Rename, Shape, Shapes
from axbake.networks.mmdit import PictureSizeError, depth_of
from axbake.networks.sampling import Sampling, SamplingError, SpacedFlow
from axbake.networks.transformer_slices import CONTEXT, ROW, SAMPLE, Blocks

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width")
PREDICTION_TYPE = "flow_prediction"
FACTOR = 16  # image pixels a side for one token
TOKENS = 512  # of a prompt
HEAD_WIDTH, RATIO = 128, 3  # channels of a head; of a feed-forward layer for one of the network
AXES, THETA = (32, 32, 32, 32), 2000.0  # of the rotary positions: time, row, column, number in the text
ROWS = (
    6,
    6,
    3,
    2,
)  # channels of a row, as multiples of the network's: of the picture's blocks, the text's, the joint ones, the end
EXAMPLE_TIMESTEP = 500.0
TIME = "time_guidance_embed."
MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation", "norm_out")
ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": f"{TIME}timestep_embedder.linear_1",
    "time_in.out_layer": f"{TIME}timestep_embedder.linear_2",
    "guidance_in.in_layer": f"{TIME}guidance_embedder.linear_1",
    "guidance_in.out_layer": f"{TIME}guidance_embedder.linear_2",
    **{f"{name}.lin": f"{name}.linear" for name in MODULATIONS[:3]},
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
#: Of a block: authors' name -> diffusers', or those of the three parts of its rows
DOUBLE: Mapping[str, str | tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
SINGLE: Mapping[str, str | tuple[str, ...]] = {
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
KINDS: Mapping[str, tuple[str, Mapping[str, str | tuple[str, ...]]]] = {
    "double_blocks": ("transformer_blocks", DOUBLE),
    "single_blocks": ("single_transformer_blocks", SINGLE),
}


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
    """The tensor, by diffusers' name, whose halves the authors' files have the other way round: shift before scale."""
    return ("norm_out.linear.weight",)


def diffusers_renamer(shapes: Shapes) -> Rename:
    """diffusers' names, which stay."""
    starts = (
        *("x_embedder.", "context_embedder.", TIME, "transformer_blocks.", "single_transformer_blocks.", "proj_out."),
        *(f"{name}." for name in MODULATIONS),
    )
    return lambda name: name if name.startswith(starts) else None


NAMINGS = (
    Naming("double_stream_modulation_img.lin.weight", renamer, exchanged=exchanged),
    Naming("double_stream_modulation_img.linear.weight", diffusers_renamer),
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
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": depth_of(shapes, r"transformer_blocks\.(\d{1,3})\."),
        "num_single_layers": depth_of(shapes, r"single_transformer_blocks\.(\d{1,3})\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "axes_dims_rope": [head // len(AXES)] * len(AXES),
        "guidance_embeds": f"{TIME}guidance_embedder.linear_1.weight" in shapes,
    }


def build(config: Mapping) -> Module:
    """diffusers' `Flux2Transformer2DModel`."""
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel.from_config(config)


def width(config: Mapping) -> int:
    """Channels of a token that it takes."""
    return config["joint_attention_dim"]


def inner_width(config: Mapping) -> int:
    """Channels of its hidden tensors."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run: with one branch if it takes the guidance scale as an input.

    Raises:
        SamplingError: the table or the file says that it predicts something else than a flow.
    """
    if prediction_type != PREDICTION_TYPE:
        raise SamplingError(
            f"prediction: {prediction_type}, but a transformer of FLUX.2 predicts a flow. Leave the column prediction empty."
        )
    return SpacedFlow(guidance_embedded=config["guidance_embeds"], dynamic="flux2", factor=FACTOR)


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects."""
    inner = inner_width(config)
    head = config["attention_head_dim"]
    double = (8 + 6 * RATIO) * inner**2 + 4 * head  # of both: q, k, v, out; feed-forward in and out
    single = (4 + 3 * RATIO) * inner**2 + 2 * head
    sizes = [double] * config["num_layers"] + [single] * config["num_single_layers"]
    sizes[0] += (config["in_channels"] + config["joint_attention_dim"]) * inner
    sizes[-1] += config["in_channels"] * inner
    return sizes


def shapes(config: Mapping, *, height: int, width: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks: text, then picture.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    check_size(FACTOR, height=height, width=width)
    rows, columns, inner = height // FACTOR, width // FACTOR, inner_width(config)
    return {
        SAMPLE: (1, config["in_channels"], rows, columns),
        CONTEXT: (1, TOKENS, config["joint_attention_dim"]),
        ROW: (1, sum(ROWS) * inner),
        "hidden": (1, TOKENS + rows * columns, inner),
    }


def check_size(step: int, **sides: int) -> None:
    """Raise PictureSizeError unless all *sides* are multiples of *step* pixels."""
    if wrong := [f"{name}: {side}" for name, side in sides.items() if side % step]:
        raise PictureSizeError(
            f"column {', '.join(wrong)}; this transformer draws pictures of a multiple of {step} pixels a side."
        )


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*."""
    from axbake.networks.flux2_modules import SlicedFlux2

    _, _, height, width = face.latent
    return SlicedFlux2(network, begin, end, size=(height, width))


BLOCKS = Blocks(("hidden",), weights, shapes, sliced)


def with_rows(network: Module) -> Module:
    """The network without what makes its rows: (latent, tokens, row) -> prediction."""
    from axbake.networks.flux2_modules import SlicedFlux2

    blocks = len(network.transformer_blocks) + len(network.single_transformer_blocks)
    return SlicedFlux2(network, 0, blocks, size=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows that all blocks take for *timesteps*: shifts, scales and gates of the four kinds in `ROWS`, one after the other.

    The sinusoids are float32 as the model was trained with, the linear layers float64, so that the order in which a CPU sums
    does not show in the result.

    Args:
        weights: `weights/{component}.safetensors` of the transformer; only the tensors that make rows are read.
        timesteps: (N,) noise levels, 0 to 1000.
        guidance_scale: of a transformer that takes it as an input; not used by others.

    Returns:
        (N, 17 × C) float32.
    """
    import torch
    from diffusers.models.embeddings import Timesteps

    from axbake.weights.files import read_shapes, read_tensor

    there = read_shapes(weights)
    first = f"{TIME}timestep_embedder.linear_1.weight"
    project = Timesteps(there[first][1], flip_sin_to_cos=True, downscale_freq_shift=0)

    def linear(name: str, given: torch.Tensor) -> torch.Tensor:
        return given @ read_tensor(weights, f"{name}.weight").double().T

    def embedded(kind: str, values: torch.Tensor) -> torch.Tensor:
        hidden = linear(f"{TIME}{kind}.linear_1", project(values).double())
        return linear(f"{TIME}{kind}.linear_2", torch.nn.functional.silu(hidden))

    row = embedded("timestep_embedder", torch.from_numpy(timesteps) / 1000 * 1000)  # as the pipeline hands it on
    if f"{TIME}guidance_embedder.linear_1.weight" in there:
        row = row + embedded("guidance_embedder", torch.full((1,), 1000 * guidance_scale))
    active = torch.nn.functional.silu(row)
    return torch.cat([linear(f"{name}.linear", active) for name in MODULATIONS], dim=1).float().numpy()


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent and tokens at a timestep in the middle, and what the whole network makes of them, in float32."""
    import torch

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    context = torch.randn(face.inputs[CONTEXT].shape, generator=generator)
    time = torch.tensor([EXAMPLE_TIMESTEP / 1000])
    guidance = torch.tensor([4.0]) if config["guidance_embeds"] else None
    embedded = network.time_guidance_embed(time * 1000, None if guidance is None else guidance * 1000)
    active = torch.nn.functional.silu(embedded)
    row = torch.cat([getattr(network, name).linear(active) for name in MODULATIONS], dim=1)
    rows, columns = latent.shape[2:]
    places = [torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns), torch.arange(1))]
    places += [torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, context.shape[1])))]
    output = network(
        latent.flatten(2).transpose(1, 2), context, time, places[0], places[1], guidance, return_dict=False
    )[0]
    picture = output.transpose(1, 2).reshape(latent.shape)
    return {SAMPLE: latent, CONTEXT: context, ROW: row}, picture
