"""The normal noise that PyTorch draws on a CPU, without PyTorch.

A seed then means the same picture here, in diffusers (`generator=torch.Generator().manual_seed(seed)`) and in other
programs built on them. Source: ATen/native/cpu/DistributionTemplates.h (`normal_fill`),
ATen/core/DistributionsHelper.h (`normal_distribution`) and ATen/core/MT19937RNGEngine.h of PyTorch 2.x; the sequence is
the same in 1.x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BLOCK = 16  # values that `normal_fill` makes at once: 8 radii, 8 angles
TWO_PI = np.float32(2 * math.pi)


class TorchNoise:
    """A stream of unit normal noise: the numbers of `torch.randn(shape, generator=…)` in float32.

    PyTorch's vector code approximates logarithm, sine and cosine differently on different CPUs, and its numbers differ
    in the last digits between them. Here these three are computed in float64 and rounded, so the numbers are the same
    everywhere, and within 1e-6 of PyTorch's.

    Args:
        seed: any integer. PyTorch's generator uses its low 32 bits alone.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._next_normal: float | None = None  # the second of the last pair that `_few` made

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """The next float32 array of *shape*."""
        size = math.prod(shape)
        values = self._many(size) if size >= BLOCK else self._few(size)
        return values.reshape(tuple(shape))

    def _many(self, size: int) -> np.ndarray:
        """Whole blocks; where they do not fill *size*, the last 16 values are drawn anew."""
        uniforms = self._uniforms(size)
        whole = size - size % BLOCK
        values = np.concatenate([_box_muller(uniforms[:whole]), uniforms[whole:]])
        if whole < size:
            values[-BLOCK:] = _box_muller(self._uniforms(BLOCK))
        return values

    def _few(self, size: int) -> np.ndarray:
        """One value at a time in float64, two made at once: the second waits for the next call."""
        values = np.empty(size, dtype=np.float32)
        for i in range(size):
            if self._next_normal is None:
                angle, radius = self._uniform_double(), self._uniform_double()
                radius = math.sqrt(-2 * math.log1p(-radius))
                angle *= 2 * math.pi
                values[i] = radius * math.cos(angle)
                self._next_normal = radius * math.sin(angle)
            else:
                values[i] = self._next_normal
                self._next_normal = None
        return values

    def _uniforms(self, size: int) -> np.ndarray:
        """(size,) float32 in [0, 1): 24 bits each."""
        bits = self._twister.randint(0, 1 << 32, size=size, dtype=np.uint32)
        return (bits & np.uint32((1 << 24) - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _uniform_double(self) -> float:
        """One in [0, 1): 53 bits, of two draws, the high ones first."""
        high, low = (int(bits) for bits in self._twister.randint(0, 1 << 32, size=2, dtype=np.uint32))
        return (((high << 32) | low) & ((1 << 53) - 1)) * 2.0**-53


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    """Normal values of uniform ones, both (16 × n,) float32: in each block 8 cosines, then 8 sines."""
    first, second = uniforms.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    logarithm = np.log(1.0 - first.astype(np.float64)).astype(np.float32)  # 1 - u: (0, 1], so never log(0)
    radius = np.sqrt(np.float32(-2) * logarithm)
    angle = (TWO_PI * second).astype(np.float64)
    return np.stack(
        [radius * np.cos(angle).astype(np.float32), radius * np.sin(angle).astype(np.float32)], axis=1
    ).reshape(-1)
