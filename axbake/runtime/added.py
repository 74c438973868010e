"""What prompts add to a time embedding: an embedding of the pooled prompt and, of Stable Diffusion XL, of the picture's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BundleError
from .reading import read_arrays

SIZE_CHANNELS = 256  # that each number of the sizes becomes (diffusers' `addition_time_embed_dim`)
FILE = "added_embedding.npz"
PERIOD = 10000.0


@dataclass(frozen=True)
class AddedEmbedding:
    """Two linear layers with SiLU between them: diffusers' `add_embedding`, `label_emb` in the authors' files.

    All float32: a prompt's row is computed by NumPy in float64 and rounded once, so it is the same on every machine.
    """

    weight_1: np.ndarray  # (C, P + 6 × 256), or (C, P) of one that takes no sizes
    bias_1: np.ndarray  # (C,)
    weight_2: np.ndarray  # (C, C)
    bias_2: np.ndarray  # (C,)

    def row(self, pooled: np.ndarray, sizes: Sequence[float]) -> np.ndarray:
        """What is added for a prompt, before the SiLU that residual blocks take the sum through.

        Args:
            pooled: (1, P) float32: the pooled prompt.
            sizes: original height and width, crop's top and left, target height and width, in pixels (Podell et al. 2023); not
                used by weights that take the pooled prompt alone (Esser et al. 2024).

        Returns:
            (1, C) float32.

        Raises:
            BundleError: the pooled prompt is not of the width that the weights take.
        """
        takes_sizes = self.weight_1.shape[1] != pooled.shape[1]
        given = np.concatenate([pooled[0].astype(np.float64), size_embedding(sizes if takes_sizes else ())])
        if len(given) != self.weight_1.shape[1]:
            raise BundleError(
                f"a pooled prompt of {pooled.shape[1]} channels and {len(sizes)} sizes make {len(given)}, wanted"
                f" {self.weight_1.shape[1]}. Take text encoders and UNet of one model."
            )
        hidden = silu(self.weight_1.astype(np.float64) @ given + self.bias_1)
        return (self.weight_2.astype(np.float64) @ hidden + self.bias_2).astype(np.float32)[None]


ARRAYS = tuple(AddedEmbedding.__dataclass_fields__)


def size_embedding(sizes: Sequence[float]) -> np.ndarray:
    """(len(sizes) × 256,) float64: cosines, then sines, of each number, as diffusers' `Timesteps` gives them."""
    half = SIZE_CHANNELS // 2
    frequencies = np.exp(-np.log(PERIOD) * np.arange(half) / half).astype(np.float32)
    angles = (np.array(sizes, np.float32)[:, None] * frequencies).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).ravel()


def silu(values: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-x)), in float64."""
    wide = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient 0
        return wide / (1 + np.exp(-wide))


def load_added(path: Path) -> AddedEmbedding:
    """The embedding in a bundle's `added_embedding.npz`.

    Raises:
        BundleError: not there, damaged, or it lacks arrays.
    """
    found = AddedEmbedding(**read_arrays(path, {name: ("f", 1 + ("weight" in name)) for name in ARRAYS}))
    channels = len(found.bias_1)
    shapes = [found.weight_1.shape[0], *found.weight_2.shape, *found.bias_2.shape]
    if set(shapes) != {channels}:
        raise BundleError(f"{path}: layers of {shapes} channels; wanted {channels} each. Copy the bundle again.")
    return found
