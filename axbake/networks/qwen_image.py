"""Qwen-Image's transformer: text and picture each have their own weights in every block, and attend to both.

The names in its authors' files are diffusers', which calls it `QwenImageTransformer2DModel`. A token is 2 × 2 pixels of a
latent, channel after channel; graphs take the latent itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.networks import names
from axbake.networks.component import Interface, Module, Naming, Rename, Shape, Shapes
from axbake.networks.flux2 import check_size
from axbake.networks.mmdit import depth_of
from axbake.networks.sampling import Sampling, SamplingError, TerminalFlow
from axbake.networks.transformer_slices import CONTEXT, MASK, ROW, SAMPLE, Blocks

if TYPE_CHECKING:
    import numpy as np

FOLDER, PREFIX = "transformer", "transformer."
COLUMNS = ("height", "width", "prompt_chunks")
PREDICTION_TYPE = "flow_prediction"
FACTOR, PATCH = 8, 2  # image pixels a side for one latent pixel; latent pixels a side for one token
CHUNK = 256  # tokens of a prompt
AXES, THETA = (16, 56, 56), 10000.0  # channels of a head that turn with each rotary position: frame, row, column
SINUSOIDS = 256  # channels that a timestep becomes
EXAMPLE_TIMESTEP, EXAMPLE_TOKENS = 500.0, 40
TIME = "time_text_embed.timestep_embedder."
MARK = "transformer_blocks.0.img_mod.1.weight"
STARTS = ("img_in.", "txt_in.", "txt_norm.", "time_text_embed.", "transformer_blocks.", "norm_out.", "proj_out.")


def renamer(shapes: Shapes) -> Rename:
    """diffusers' names, which stay."""
    return lambda name: name if name.startswith(STARTS) else None


NAMINGS = (Naming(MARK, renamer),)


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Its modules under the only names that they have."""
    modules = {name.rpartition(".")[0] for name in shapes}
    return names.renamed_modules(renamer(shapes), sorted(modules))


def config(shapes: Shapes) -> dict:
    """Config of the transformer."""
    inner, channels = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "patch_size": PATCH,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // PATCH**2,
        "num_layers": depth_of(shapes, r"transformer_blocks\.(\d{1,3})\."),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": [head * width // sum(AXES) for width in AXES],
    }


def build(config: Mapping) -> Module:
    """diffusers' `QwenImageTransformer2DModel`, with the angles of its positions, which no file has."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    network = QwenImageTransformer2DModel.from_config(config)
    with torch.device("cpu"):
        axes = list(config["axes_dims_rope"])
        network.pos_embed = type(network.pos_embed)(theta=int(THETA), axes_dim=axes, scale_rope=True)
    return network


def width(config: Mapping) -> int:
    """Channels of a token that it takes."""
    return config["joint_attention_dim"]


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
            f"prediction: {prediction_type}, but a transformer of Qwen-Image predicts a flow. Leave the column prediction empty."
        )
    return TerminalFlow(dynamic="qwen_image", factor=FACTOR * PATCH)


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of what embeds and what projects."""
    inner, head = inner_width(config), config["attention_head_dim"]
    linear = inner * (inner + 1)
    side = 6 * linear + 4 * linear + 8 * inner**2 + 5 * inner + 2 * head  # modulation, attention, feed-forward layer
    sizes = [2 * side] * config["num_layers"]
    context = config["joint_attention_dim"]
    sizes[0] += (config["in_channels"] + 1 + context + 1) * inner + context
    sizes[-1] += 2 * linear + (inner + 1) * config["in_channels"]
    return sizes


def shapes(config: Mapping, *, height: int, width: int, prompt_chunks: int) -> dict[str, Shape]:
    """Shapes of what it takes and of what crosses between its blocks: text, then picture.

    Raises:
        PictureSizeError: it does not draw pictures of that size.
    """
    check_size(FACTOR * PATCH, height=height, width=width)
    rows, columns, inner = height // FACTOR, width // FACTOR, inner_width(config)
    tokens = CHUNK * prompt_chunks
    return {
        SAMPLE: (1, config["in_channels"] // PATCH**2, rows, columns),
        CONTEXT: (1, tokens, config["joint_attention_dim"]),
        ROW: (1, inner),
        MASK: (1, tokens),
        "hidden": (1, tokens + rows * columns // PATCH**2, inner),
    }


def sliced(network: Module, begin: int, end: int, face: Interface) -> Module:
    """Its blocks from *begin* to *end*."""
    from axbake.networks.qwen_image_modules import SlicedQwenImage

    _, _, height, width = face.latent
    _, words = face.inputs[MASK].shape
    return SlicedQwenImage(network, begin, end, size=(height, width), words=words)


BLOCKS = Blocks(("hidden",), weights, shapes, sliced, masked=True)


def with_rows(network: Module) -> Module:
    """The network without its time embedding: (latent, tokens, row, mask) -> prediction."""
    from axbake.networks.qwen_image_modules import SlicedQwenImage

    return SlicedQwenImage(network, 0, len(network.transformer_blocks), size=None, words=None)


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows for *timesteps*: their embedding after SiLU (`axbake.networks.flux2.time_rows`).

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
        weight, bias = (read_tensor(weights, f"{TIME}linear_{number}.{kind}").double() for kind in ("weight", "bias"))
        return given @ weight.T + bias

    project = Timesteps(SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)
    hidden = linear(1, project(torch.from_numpy(timesteps) / 1000).double())  # as the pipeline hands them on
    return torch.nn.functional.silu(linear(2, torch.nn.functional.silu(hidden))).float().numpy()


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent and states of a short prompt at a timestep in the middle, and what the whole network makes of them."""
    import torch

    from axbake.networks.flux1_modules import picture_of_packed
    from axbake.networks.modules import counted_or_last

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    states = torch.randn(face.inputs[CONTEXT].shape, generator=generator)
    mask = (torch.arange(states.shape[1])[None] < EXAMPLE_TOKENS).float()
    time = torch.tensor([EXAMPLE_TIMESTEP / 1000])
    row = torch.nn.functional.silu(network.time_text_embed(time, states))
    rows, columns = (side // PATCH for side in latent.shape[2:])
    packed = torch.nn.functional.pixel_unshuffle(latent, PATCH).flatten(2).transpose(1, 2)
    own = states[:, :EXAMPLE_TOKENS]
    output = network(packed, own, timestep=time, img_shapes=[[(1, rows, columns)]], return_dict=False)[0]
    prediction = picture_of_packed(output, *latent.shape[2:])
    return {SAMPLE: latent, CONTEXT: counted_or_last(states, mask), ROW: row, MASK: mask}, prediction
