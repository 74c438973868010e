"""Z-Image's transformer: picture and text are one sequence, in blocks with norms before and behind their layers.

The names in its authors' files are those of Lumina's NextDiT; diffusers calls it `ZImageTransformer2DModel`. What depends on the
prompt alone, two blocks among it, is a text encoder of its own (`z_image_text`), which the board's host runs.

A prompt's tokens stand at the end of their places, so that the picture always has the same positions: attention knows positions
by their differences alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.networks import names
from axbake.networks.component import Interface, Module, Naming, Rename, Shape, Shapes
from axbake.networks.flux2 import check_size
from axbake.networks.mmdit import PictureSizeError, depth_of
from axbake.networks.sampling import Sampling, SamplingError, SpacedFlow
from axbake.networks.transformer_slices import CONTEXT, MASK, ROW, SAMPLE, Blocks

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width", "prompt_chunks")
PREDICTION_TYPE = "flow_prediction"
FACTOR, PATCH = 8, 2  # image pixels a side for one latent pixel; latent pixels a side for one token
CHUNK, MULTIPLE = 128, 32  # tokens of a prompt; what the numbers of tokens are filled up to
SHIFT = 3.0  # of the noise levels
AXES, THETA = (32, 48, 48), 256.0  # of the rotary positions: number in the text, row, column
ROW_WIDTH = 256
EXAMPLE_TIMESTEP = 500.0
EMBEDDER, FINAL = "all_x_embedder.2-1", "all_final_layer.2-1"
PLACES = ("layers", "noise_refiner", "context_refiner")
#: Of a block: authors' name -> diffusers'
BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": "attention.to_out.0",
    "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
}
ENDS = {"x_embedder": EMBEDDER, "final_layer.linear": f"{FINAL}.linear"}
ENDS |= {"final_layer.adaLN_modulation.1": f"{FINAL}.adaLN_modulation.1"}
STARTS = ("t_embedder.", "cap_embedder.", "all_x_embedder.", "all_final_layer.", *(f"{place}." for place in PLACES))
TOKENS = ("x_pad_token", "cap_pad_token")


def renamer(shapes: Shapes) -> Rename:
    """The authors' names to diffusers', and diffusers', which stay."""

    def rename(name: str) -> str | tuple[str, ...] | None:
        stem, _, kind = name.rpartition(".")
        if name in TOKENS:
            return name
        if stem in ENDS:
            return f"{ENDS[stem]}.{kind}"
        m = re.fullmatch(rf"(({'|'.join(PLACES)})\.\d{{1,3}}\.)(.+)", stem)
        new = BLOCK.get(m[3]) if m else None
        if m and new:
            parts = tuple(f"{m[1]}{part}.{kind}" for part in ([new] if isinstance(new, str) else new))
            return parts if len(parts) > 1 else parts[0]
        return name if name.startswith(STARTS) else None

    return rename


NAMINGS = (
    Naming("noise_refiner.0.attention.qkv.weight", renamer),
    Naming("noise_refiner.0.attention.to_q.weight", renamer),
)


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The authors' modules, as LoRAs change them."""
    parts = (*BLOCK, *(f"feed_forward.w{number}" for number in (1, 2, 3)), "adaLN_modulation.0")
    blocks = [
        f"{place}.{number}.{part}"
        for place in PLACES
        for number in range(depth_of(shapes, rf"{place}\.(\d{{1,3}})\."))
        for part in parts
    ]
    return names.renamed_modules(
        renamer(shapes), [*blocks, *ENDS, "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"]
    )


def config(shapes: Shapes) -> dict:
    """Config of the transformer."""
    inner, patch = shapes[f"{EMBEDDER}.weight"]
    head = shapes["layers.0.attention.norm_q.weight"][0]
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [PATCH],
        "all_f_patch_size": [1],
        "in_channels": patch // PATCH**2,
        "out_channels": shapes[f"{FINAL}.linear.weight"][0] // PATCH**2,
        "dim": inner,
        "n_layers": depth_of(shapes, r"layers\.(\d{1,3})\."),
        "n_refiner_layers": depth_of(shapes, r"noise_refiner\.(\d{1,3})\."),
        "n_heads": inner // head,
        "n_kv_heads": inner // head,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        "axes_dims": [head * width // sum(AXES) for width in AXES],
        "rope_theta": THETA,
    }


def build(config: Mapping) -> Module:
    """diffusers' `ZImageTransformer2DModel`."""
    from diffusers import ZImageTransformer2DModel

    known = {name: value for name, value in config.items() if name != "out_channels"}
    return ZImageTransformer2DModel.from_config(known)


def width(config: Mapping) -> int:
    """Channels of a token that its graphs take."""
    return config["dim"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run: what it predicts is the picture less the noise.

    Raises:
        SamplingError: the table or the file says that it predicts something else than a flow.
    """
    if prediction_type != PREDICTION_TYPE:
        raise SamplingError(
            f"prediction: {prediction_type}, but a transformer of Z-Image predicts a flow. Leave the column prediction empty."
        )
    return SpacedFlow(shift=SHIFT, sign=-1)


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects; those of the prompt alone are not counted."""
    inner, row = config["dim"], min(config["dim"], ROW_WIDTH)
    head = inner // config["n_heads"]
    feed_forward = 3 * inner * int(inner / 3 * 8)
    block = 4 * inner**2 + feed_forward + 4 * inner * (row + 1) + 4 * inner + 2 * head
    sizes = [block] * (config["n_refiner_layers"] + config["n_layers"])
    sizes[0] += (config["in_channels"] * PATCH**2 + 1) * inner
    sizes[-1] += (inner + 1) * config["in_channels"] * PATCH**2 + (row + 1) * inner
    return sizes


def shapes(config: Mapping, *, height: int, width: int, prompt_chunks: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks: picture, then text.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    side = FACTOR * PATCH
    check_size(side, height=height, width=width)
    if (tokens := (height // side) * (width // side)) % MULTIPLE:
        raise PictureSizeError(
            f"column height, width: {height}, {width}; a picture of {side} × {side} pixels a token has {tokens} tokens; wanted a"
            f" multiple of {MULTIPLE}, such as that of sides that are multiples of {side * 8} and {side * 4}."
        )
    inner = config["dim"]
    text = CHUNK * prompt_chunks
    return {
        SAMPLE: (1, config["in_channels"], height // FACTOR, width // FACTOR),
        CONTEXT: (1, text, inner),
        ROW: (1, min(inner, ROW_WIDTH)),
        MASK: (1, text),
        "hidden": (1, tokens + text, inner),
    }


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*, the refiners of the picture first."""
    from axbake.networks.z_image_modules import SlicedZImage

    _, _, height, width = face.latent
    return SlicedZImage(network, begin, end, size=(height, width), words=face.inputs[MASK].shape[1])


BLOCKS = Blocks(("hidden",), weights, shapes, sliced, masked=True)


def with_rows(network: Module) -> Module:
    """The network without its time embedding and what depends on the prompt alone: (latent, tokens, row, mask) -> prediction."""
    from axbake.networks.z_image_modules import SlicedZImage

    return SlicedZImage(network, 0, len(network.noise_refiner) + len(network.layers), size=None, words=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows for *timesteps*, which it counts from the noise on; (N, C) float32 (`axbake.networks.unet.time_rows`)."""
    return embedded_rows(weights, 1000 - timesteps)


def embedded_rows(weights: Path, timesteps: np.ndarray) -> np.ndarray:
    """What `t_embedder` makes of *timesteps*: sinusoids in float32, linear layers in float64; (N, C) float32."""
    import torch
    from diffusers.models.embeddings import Timesteps

    from axbake.weights.files import read_shapes, read_tensor

    channels = read_shapes(weights)["t_embedder.mlp.0.weight"][1]
    project = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)

    def linear(number: int, given: torch.Tensor) -> torch.Tensor:
        weight, bias = (read_tensor(weights, f"t_embedder.mlp.{number}.{kind}").double() for kind in ("weight", "bias"))
        return given @ weight.T + bias

    hidden = linear(0, project(torch.from_numpy(timesteps) / 1000 * 1000).double())
    return linear(2, torch.nn.functional.silu(hidden)).float().numpy()


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent and states of a short prompt at a timestep in the middle, and what the whole network makes of them."""
    import torch

    from axbake.networks.z_image_modules import Conditioner

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    text = face.inputs[MASK].shape[1]
    count = MULTIPLE + MULTIPLE // 2  # which is filled up by half a multiple
    states = torch.randn((1, text, config["cap_feat_dim"]), generator=generator)
    kinds = torch.zeros((1, text), dtype=torch.int64)
    kinds[:, -2 * MULTIPLE :], kinds[:, len(kinds[0]) - 2 * MULTIPLE + count :] = 1, 2
    context = Conditioner.of(network)(states, kinds)
    time = torch.tensor([EXAMPLE_TIMESTEP / 1000])
    own = states[0, kinds[0] == 1]
    output = network([latent[0][:, None]], time, [own], return_dict=False)[0][0]
    row = network.t_embedder(time * 1000)
    mask = (kinds > 0).float()
    return {SAMPLE: latent, CONTEXT: context, ROW: row, MASK: mask}, output[:, 0][None]
