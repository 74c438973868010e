"""What a model draws on, on the host: a row's picture and mask, and torch's VAE encoder as the runtime calls its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from axbake.runtime.canvas import Canvas, read_canvas
from axbake.runtime.img2img import Encode
from axbake.weights.networks import Build


def canvas_of(files: Sequence[Path], *, height: int, width: int) -> Canvas | None:
    """Picture and mask in *files*, or a picture alone, in a size of pixels; None where there are none."""
    return read_canvas(*files, height=height, width=width) if files else None


def torch_encoding(weights: Path, build: Build) -> Encode:
    """The VAE encoder of `weights/{component}.safetensors` in torch, float32, as a function of NumPy arrays."""
    import torch  # here, since who draws with compiled models does without

    from axbake.weights import networks

    network = networks.channels_last(networks.load(weights, build))

    def encode(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(pixels, np.float32))).contiguous().numpy()

    return encode
