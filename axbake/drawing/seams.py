"""How far a picture that is decoded in tiles is from one that is decoded as a whole: float32 networks on one latent.

GroupNorm and attention of a VAE decoder see all of their input. A tile has other statistics than the picture, so tiles differ in
brightness and colour, and the blended overlaps show it.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axbake.distance import psnr
from axbake.runtime.tiles import Decode, decode_tiles, starts
from axbake.weights import networks


def measure_seams(
    weights: Path, build: Callable[[dict], Any], latent: np.ndarray, *, tile: int, factor: int
) -> dict[str, Any]:
    """Figures of `seams` for the VAE decoder in *weights*, in torch.

    Args:
        weights: `weights/{component}.safetensors`; *build*: the component's.
        latent: (1, C, h, w) float32, as the decoder takes it.
        tile: side of a tile in latent pixels.
        factor: pixels a side for one latent pixel.
    """
    network = networks.channels_last(networks.load(weights, build))

    def decode(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(part, np.float32))).contiguous().numpy()

    return seams(decode, latent, tile=tile, factor=factor)


def seams(decode: Decode, latent: np.ndarray, *, tile: int, factor: int) -> dict[str, Any]:
    """What tiles cost: `tile`, a tile's side in pixels; `tiles`, how many a picture has; of pixels from 0 to 255 that are not
    rounded `psnr_db`, the PSNR against the whole, and `largest_in_overlaps`, the largest difference where tiles overlap.
    """
    whole, tiled = (
        np.clip(pixels * 0.5 + 0.5, 0, 1) * 255
        for pixels in (decode(latent), decode_tiles(decode, latent, tile, factor=factor))
    )
    rows, columns = (starts(length, tile) for length in latent.shape[2:])
    apart = np.abs(tiled - whole).max(axis=(0, 1))  # (H, W)
    both = np.zeros(apart.shape, bool)
    for before, begins in itertools.pairwise(rows):
        both[begins * factor : (before + tile) * factor] = True
    for before, begins in itertools.pairwise(columns):
        both[:, begins * factor : (before + tile) * factor] = True
    return {
        "tile": tile * factor,
        "tiles": len(rows) * len(columns),
        "psnr_db": round(psnr(whole, tiled, peak=255), 2),
        "largest_in_overlaps": round(float(apart[both].max(initial=0)), 2),
    }
