"""Cosmos-Predict2's transformer at one frame, which Anima draws with: the picture attends to itself and to the text.

The names in its authors' files are those of github nvidia-cosmos/cosmos-predict2; diffusers calls it `CosmosTransformer3DModel`.
Its 17th channel tells where a film has no picture; a picture has none such, so graphs are without it.
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

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width")
PREDICTION_TYPE = "flow_prediction"
FACTOR, PATCH = 8, 2  # image pixels a side for one latent pixel; latent pixels a side for one token
TOKENS = 512  # of a prompt
SHIFT = 3.0  # of the noise levels
THETA, STRETCH = 10000.0, (1.0, 4.0, 4.0)  # of the rotary positions: frame, row, column
EXAMPLE_TIMESTEP = 500.0
TIME = "time_embed."
ENDS = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": f"{TIME}t_embedder.linear_1",
    "t_embedder.1.linear_2": f"{TIME}t_embedder.linear_2",
    "t_embedding_norm": f"{TIME}norm",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
}
#: Of a block: authors' name -> diffusers'
BLOCK = {
    f"adaln_modulation_{theirs}.{number}": f"{ours}.linear_{number}"
    for theirs, ours in (("self_attn", "norm1"), ("cross_attn", "norm2"), ("mlp", "norm3"))
    for number in (1, 2)
}
BLOCK |= {
    f"{theirs}_attn.{part}": f"{ours}.{new}"
    for theirs, ours in (("self", "attn1"), ("cross", "attn2"))
    for part, new in (
        *(("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("output_proj", "to_out.0")),
        *(("q_norm", "norm_q"), ("k_norm", "norm_k")),
    )
}
BLOCK |= {"mlp.layer1": "ff.net.0.proj", "mlp.layer2": "ff.net.2"}
STARTS = ("patch_embed.", TIME, "transformer_blocks.", "norm_out.", "proj_out.")


def renamer(shapes: Shapes) -> Rename:
    """The authors' names to diffusers', without what they keep for training and the constants of positions."""

    def rename(name: str) -> str | None:
        stem, _, kind = name.rpartition(".")
        if stem in ENDS:
            return f"{ENDS[stem]}.{kind}"
        m = re.fullmatch(r"blocks\.(\d{1,3})\.(.+)", stem)
        new = BLOCK.get(m[2]) if m else None
        return f"transformer_blocks.{int(m[1])}.{new}.{kind}" if m and new else None

    return rename


def diffusers_renamer(shapes: Shapes) -> Rename:
    """diffusers' names, which stay."""
    return lambda name: name if name.startswith(STARTS) else None


NAMINGS = (Naming("x_embedder.proj.1.weight", renamer), Naming("patch_embed.proj.weight", diffusers_renamer))


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The authors' modules, as LoRAs change them."""
    depth = depth_of(shapes, r"transformer_blocks\.(\d{1,3})\.")
    blocks = [f"blocks.{number}.{part}" for number in range(depth) for part in BLOCK]
    return names.renamed_modules(renamer(shapes), [*blocks, *ENDS])


def config(shapes: Shapes) -> dict:
    """Config of the transformer."""
    inner, patch = shapes["patch_embed.proj.weight"]
    block = "transformer_blocks.0."
    head = shapes[f"{block}attn1.norm_q.weight"][0]
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": patch // PATCH**2 - 1,
        "out_channels": shapes["proj_out.weight"][0] // PATCH**2,
        "num_attention_heads": inner // head,
        "attention_head_dim": head,
        "num_layers": depth_of(shapes, r"transformer_blocks\.(\d{1,3})\."),
        "mlp_ratio": shapes[f"{block}ff.net.0.proj.weight"][0] / inner,
        "text_embed_dim": shapes[f"{block}attn2.to_k.weight"][1],
        "adaln_lora_dim": shapes[f"{block}norm1.linear_1.weight"][0],
        "patch_size": [1, PATCH, PATCH],
        "rope_scale": list(STRETCH),
        "extra_pos_embed_type": None,
    }


def build(config: Mapping) -> Module:
    """diffusers' `CosmosTransformer3DModel`, which needs no padding mask: its channel is 0."""
    from diffusers import CosmosTransformer3DModel

    from axbake.networks.cosmos_modules import WithoutMask

    network = CosmosTransformer3DModel.from_config({**config, "concat_padding_mask": False})
    patch = tuple(config["patch_size"])
    network.patch_embed = WithoutMask(config["in_channels"] + 1, inner_width(config), patch, bias=False)
    return network


def width(config: Mapping) -> int:
    """Channels of a token that it takes."""
    return config["text_embed_dim"]


def inner_width(config: Mapping) -> int:
    """Channels of its hidden tensors."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run.

    Raises:
        SamplingError: the table or the file says that it predicts something else than a flow.
    """
    if prediction_type != PREDICTION_TYPE:
        raise SamplingError(
            f"prediction: {prediction_type}, but a transformer of Anima predicts a flow. Leave the column prediction empty."
        )
    return SpacedFlow(shift=SHIFT)


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects."""
    inner, low = inner_width(config), config["adaln_lora_dim"]
    attention = 6 * inner**2 + 2 * inner * config["text_embed_dim"] + 4 * config["attention_head_dim"]
    block = attention + 2 * int(config["mlp_ratio"] * inner) * inner + 3 * 4 * inner * low
    sizes = [block] * config["num_layers"]
    sizes[0] += config["in_channels"] * PATCH**2 * inner
    sizes[-1] += config["in_channels"] * PATCH**2 * inner + 3 * inner * low
    return sizes


def shapes(config: Mapping, *, height: int, width: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    check_size(FACTOR * PATCH, height=height, width=width)
    inner = inner_width(config)
    return {
        SAMPLE: (1, config["in_channels"], height // FACTOR, width // FACTOR),
        CONTEXT: (1, TOKENS, config["text_embed_dim"]),
        ROW: (1, 4 * inner),
        "hidden": (1, (height // FACTOR // PATCH) * (width // FACTOR // PATCH), inner),
    }


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*."""
    from axbake.networks.cosmos_modules import SlicedCosmos

    _, _, height, width = face.latent
    return SlicedCosmos(network, begin, end, size=(height, width))


BLOCKS = Blocks(("hidden",), weights, shapes, sliced, attending=True)


def with_rows(network: Module) -> Module:
    """The network without its time embedding: (latent, tokens, row) -> prediction."""
    from axbake.networks.cosmos_modules import SlicedCosmos

    return SlicedCosmos(network, 0, len(network.transformer_blocks), size=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows that all blocks take for *timesteps*: the normalised sinusoids after SiLU, then their embedding.

    The sinusoids are float32 as the model was trained with, the linear layers float64 (`axbake.networks.flux2.time_rows`).

    Args:
        weights: `weights/{component}.safetensors` of the transformer; only the tensors that make rows are read.
        timesteps: (N,) noise levels, 0 to 1000.

    Returns:
        (N, 4 × C) float32.
    """
    import torch
    from diffusers.models.embeddings import Timesteps

    from axbake.weights.files import read_tensor

    norm, first, second = (
        read_tensor(weights, f"{TIME}{name}.weight").double()
        for name in ("norm", "t_embedder.linear_1", "t_embedder.linear_2")
    )
    project = Timesteps(len(norm), flip_sin_to_cos=True, downscale_freq_shift=0)
    sinusoids = project(torch.from_numpy(timesteps) / 1000).double()
    normed = torch.nn.functional.rms_norm(sinusoids, norm.shape, norm, eps=1e-6)
    embedded = torch.nn.functional.silu(sinusoids @ first.T) @ second.T
    return torch.cat([torch.nn.functional.silu(normed), embedded], dim=1).float().numpy()


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent and tokens at a timestep in the middle, and what the whole network makes of them, in float32."""
    import torch

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    context = torch.randn(face.inputs[CONTEXT].shape, generator=generator)
    time = torch.tensor([EXAMPLE_TIMESTEP / 1000])
    embedded, normed = network.time_embed(latent, time)
    row = torch.cat([torch.nn.functional.silu(normed), embedded], dim=1)
    output = network(latent[:, :, None], time, context, return_dict=False)[0][:, :, 0]
    return {SAMPLE: latent, CONTEXT: context, ROW: row}, output
