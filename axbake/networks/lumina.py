"""Lumina-Image 2's transformer: picture and text are one sequence, as in its successor (`axbake.networks.z_image`).

The names in its authors' files are those of github Alpha-VLLM/Lumina-Image-2.0, `models/model.py`; diffusers calls it
`Lumina2Transformer2DModel`. What depends on the prompt alone, two blocks among it, is a text encoder of its own (`lumina_text`).
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
from axbake.networks.sampling import RenormalisedFlow, Sampling, SamplingError
from axbake.networks.transformer_slices import CONTEXT, MASK, ROW, SAMPLE, Blocks

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width")
PREDICTION_TYPE = "flow_prediction"
FACTOR, PATCH = 8, 2  # image pixels a side for one latent pixel; latent pixels a side for one token
TOKENS = 256  # of a prompt
SHIFT = 6.0  # of the noise levels
AXES, THETA = 3, 10000.0  # of the rotary positions, of which each has as many channels: number in the text, row, column
PLACES = [300, 512, 512]  # that the published model has on each
FEED_FORWARD, MULTIPLE = 4, 256  # channels of a feed-forward layer for one of the network, up to the next multiple
SINUSOIDS, MOST_TIME = 256, 1024  # channels that a timestep becomes, and at most those of its embedding
EXAMPLE_TIMESTEP = 500.0
TIME = "time_caption_embed."
ENDS = {
    "x_embedder": "x_embedder",
    "t_embedder.mlp.0": f"{TIME}timestep_embedder.linear_1",
    "t_embedder.mlp.2": f"{TIME}timestep_embedder.linear_2",
    "cap_embedder.0": f"{TIME}caption_embedder.0",
    "cap_embedder.1": f"{TIME}caption_embedder.1",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "final_layer.linear": "norm_out.linear_2",
}
#: Of a block: authors' name -> diffusers'
BLOCK = {"attention.out": "attn.to_out.0", "attention.q_norm": "attn.norm_q", "attention.k_norm": "attn.norm_k"}
BLOCK |= {f"feed_forward.w{number}": f"feed_forward.linear_{number}" for number in (1, 2, 3)}
BLOCK |= {"attention_norm2": "norm2", "ffn_norm1": "ffn_norm1", "ffn_norm2": "ffn_norm2"}
BLOCK |= {"adaLN_modulation.1": "norm1.linear"}
STARTS = ("x_embedder.", TIME, "norm_out.", "layers.", "noise_refiner.", "context_refiner.")


def renamer(shapes: Shapes) -> Rename:
    """The authors' names to diffusers'; queries, keys and values stand in one tensor, of which the queries have the most."""
    rows, inner = shapes.get("layers.0.attention.qkv.weight", (0, 1))
    groups = 2 * inner // max(1, rows - inner)  # heads of the queries for one of the keys

    def rename(name: str) -> str | tuple[str, ...] | None:
        stem, _, kind = name.rpartition(".")
        if stem in ENDS:
            return f"{ENDS[stem]}.{kind}"
        m = re.fullmatch(r"((layers|noise_refiner|context_refiner)\.\d{1,3}\.)(.+)", stem)
        if m is None:
            return None
        if m[3] == "attention.qkv":
            parts = ("to_q",) * groups + ("to_k", "to_v")
            return tuple(f"{m[1]}attn.{part}.{kind}" for part in parts)
        if m[3] == "attention_norm1":
            return f"{m[1]}norm1.{kind}" if m[2] == "context_refiner" else f"{m[1]}norm1.norm.{kind}"
        return f"{m[1]}{BLOCK[m[3]]}.{kind}" if m[3] in BLOCK else None

    return rename


def diffusers_renamer(shapes: Shapes) -> Rename:
    """diffusers' names, which stay."""
    return lambda name: name if name.startswith(STARTS) else None


NAMINGS = (
    Naming("noise_refiner.0.attention.qkv.weight", renamer),
    Naming("noise_refiner.0.attn.to_q.weight", diffusers_renamer),
)


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The authors' modules, as LoRAs change them."""
    places = ("layers", "noise_refiner", "context_refiner")
    blocks = [
        f"{place}.{number}.{part}"
        for place in places
        for number in range(depth_of(shapes, rf"{place}\.(\d{{1,3}})\."))
        for part in ("attention.qkv", *BLOCK)
    ]
    queries, inner = shapes["context_refiner.0.attn.to_q.weight"]
    rows = queries + 2 * shapes["context_refiner.0.attn.to_k.weight"][0]
    return names.renamed_modules(renamer({"layers.0.attention.qkv.weight": (rows, inner)}), [*blocks, *ENDS])


def config(shapes: Shapes) -> dict:
    """Config of the transformer."""
    inner, patch = shapes["x_embedder.weight"]
    head = shapes["layers.0.attn.norm_q.weight"][0]
    return {
        "_class_name": "Lumina2Transformer2DModel",
        "patch_size": PATCH,
        "in_channels": patch // PATCH**2,
        "out_channels": shapes["norm_out.linear_2.weight"][0] // PATCH**2,
        "hidden_size": inner,
        "num_layers": depth_of(shapes, r"layers\.(\d{1,3})\."),
        "num_refiner_layers": depth_of(shapes, r"noise_refiner\.(\d{1,3})\."),
        "num_attention_heads": inner // head,
        "num_kv_heads": shapes["layers.0.attn.to_k.weight"][0] // head,
        "multiple_of": MULTIPLE,
        "axes_dim_rope": [head // AXES] * AXES,
        "axes_lens": PLACES,
        "cap_feat_dim": shapes[f"{TIME}caption_embedder.1.weight"][1],
    }


def build(config: Mapping) -> Module:
    """diffusers' `Lumina2Transformer2DModel`, with the angles of its positions, which no file has."""
    import torch
    from diffusers import Lumina2Transformer2DModel

    network = Lumina2Transformer2DModel.from_config(config)
    with torch.device("cpu"):
        network.rope_embedder = type(network.rope_embedder)(
            theta=int(THETA), axes_dim=config["axes_dim_rope"], axes_lens=config["axes_lens"], patch_size=PATCH
        )
    return network


def width(config: Mapping) -> int:
    """Channels of a token that its graphs take."""
    return config["hidden_size"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run: what it predicts is the picture less the noise.

    Raises:
        SamplingError: the table or the file says that it predicts something else than a flow.
    """
    if prediction_type != PREDICTION_TYPE:
        raise SamplingError(
            f"prediction: {prediction_type}, but a transformer of Lumina-Image 2 predicts a flow. Leave the column prediction"
            " empty."
        )
    return RenormalisedFlow(shift=SHIFT, sign=-1)


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects; those of the prompt alone are not counted."""
    inner, time = config["hidden_size"], min(config["hidden_size"], MOST_TIME)
    head = inner // config["num_attention_heads"]
    fed = -(-FEED_FORWARD * inner // MULTIPLE) * MULTIPLE
    attention = 2 * inner**2 + 2 * inner * head * config["num_kv_heads"] + 2 * head
    block = attention + 3 * inner * fed + 4 * inner * (time + 1) + 4 * inner
    sizes = [block] * (config["num_refiner_layers"] + config["num_layers"])
    patch = config["in_channels"] * PATCH**2
    sizes[0] += (patch + 1) * inner
    sizes[-1] += (inner + 1) * patch + (time + 1) * inner
    return sizes


def shapes(config: Mapping, *, height: int, width: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks: picture, then text.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    check_size(FACTOR * PATCH, height=height, width=width)
    inner = config["hidden_size"]
    pixels = (height // FACTOR // PATCH) * (width // FACTOR // PATCH)
    return {
        SAMPLE: (1, config["in_channels"], height // FACTOR, width // FACTOR),
        CONTEXT: (1, TOKENS, inner),
        ROW: (1, min(inner, MOST_TIME)),
        MASK: (1, TOKENS),
        "hidden": (1, pixels + TOKENS, inner),
    }


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*, the refiners of the picture first."""
    from axbake.networks.lumina_modules import SlicedLumina

    _, _, height, width = face.latent
    return SlicedLumina(network, begin, end, size=(height, width), words=TOKENS)


BLOCKS = Blocks(("hidden",), weights, shapes, sliced, masked=True)


def with_rows(network: Module) -> Module:
    """The network without its time embedding and what depends on the prompt alone: (latent, tokens, row, mask) -> prediction."""
    from axbake.networks.lumina_modules import SlicedLumina

    return SlicedLumina(network, 0, len(network.noise_refiner) + len(network.layers), size=None, words=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows for *timesteps*, which it counts from the noise on, from 0 to 1: their embedding after SiLU.

    Args:
        weights: `weights/{component}.safetensors` of the transformer; only the tensors that make rows are read.
        timesteps: (N,) noise levels, 0 to 1000.

    Returns:
        (N, C) float32.
    """
    import torch
    from diffusers.models.embeddings import Timesteps

    from axbake.weights.files import read_tensor

    def linear(number: int, given: torch.Tensor) -> torch.Tensor:
        name = f"{TIME}timestep_embedder.linear_{number}"
        weight, bias = (read_tensor(weights, f"{name}.{kind}").double() for kind in ("weight", "bias"))
        return given @ weight.T + bias

    project = Timesteps(SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
    hidden = linear(1, project(1 - torch.from_numpy(timesteps) / 1000).double())
    return torch.nn.functional.silu(linear(2, torch.nn.functional.silu(hidden))).float().numpy()


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent and states of a short prompt at a timestep in the middle, and what the whole network makes of them."""
    import torch

    from axbake.networks.lumina_modules import Conditioner

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    states = torch.randn((1, TOKENS, config["cap_feat_dim"]), generator=generator)
    kinds = (torch.arange(TOKENS)[None] >= TOKENS - 40).long()
    context = Conditioner.of(network)(states, kinds)
    time = torch.tensor([EXAMPLE_TIMESTEP / 1000])
    own = states[:, -40:]
    output = network(latent, time, own, torch.ones((1, 40), dtype=torch.int64), return_dict=False)[0]
    row, _ = network.time_caption_embed(latent, time, own)
    return {SAMPLE: latent, CONTEXT: context, ROW: torch.nn.functional.silu(row), MASK: kinds.float()}, output
