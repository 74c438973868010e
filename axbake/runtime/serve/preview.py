"""What a latent looks like before it is decoded: a linear map to colours, learned from the pictures that the bundle drew."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

RIDGE = 1e-4  # of the squares' mean, so that few pictures give a tame map


class Preview:
    """The map from a latent's channels to red, green and blue, by least squares over all pixels seen so far."""

    def __init__(self, channels: int, factor: int) -> None:
        """
        Args:
            factor: pixels a side for one latent pixel.
        """
        self._factor = factor
        self._squares = np.zeros((channels + 1, channels + 1))
        self._products = np.zeros((channels + 1, 3))
        self._map: np.ndarray | None = None

    def learn(self, latent: np.ndarray, image: np.ndarray) -> None:
        """Take in a picture.

        Args:
            latent: (1, C, h, w) float32, that it was decoded from.
            image: (h × factor, w × factor, 3) uint8.
        """
        height, width = latent.shape[2:]
        squares = image.reshape(height, self._factor, width, self._factor, 3).mean(axis=(1, 3)).reshape(-1, 3) / 255
        given = _with_one(latent)
        self._squares += given.T @ given
        self._products += given.T @ squares
        ridge = RIDGE * np.trace(self._squares) / len(self._squares)
        self._map = np.linalg.solve(self._squares + ridge * np.eye(len(self._squares)), self._products)

    def png(self, latent: np.ndarray) -> bytes | None:
        """*latent* as a PNG of its own size, w × h pixels; None before the first picture."""
        if self._map is None:
            return None
        colours = np.clip(_with_one(latent) @ self._map, 0, 1).reshape(*latent.shape[2:], 3)
        file = io.BytesIO()
        Image.fromarray((colours * 255).round().astype(np.uint8)).save(file, format="PNG", compress_level=1)
        return file.getvalue()


def _with_one(latent: np.ndarray) -> np.ndarray:
    """(1, C, h, w) -> (h × w, C + 1) float64, the last channel 1."""
    pixels = latent[0].reshape(latent.shape[1], -1).T.astype(np.float64)
    return np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
