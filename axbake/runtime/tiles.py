"""A picture decoded in overlapping tiles of one size, as diffusers' `AutoencoderKL.tiled_decode` does, and what differs from it.

A compiled decoder takes one shape. So the last tile of a row or column is not cut short, as in diffusers, but moved inwards until
it ends with the picture; it then overlaps more of the tile before it. Where tiles overlap, the share of the later one rises
linearly over the whole overlap. Rows of tiles are blended first, then with each other. diffusers blends each corner twice from
left to right, which leaves an edge above the corner; here each pixel has the shares of both directions once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .progress import progress

OVERLAP = 0.25  # of a tile's side: diffusers' `tile_overlap_factor`
#: (1, C, t, t) latent of a tile -> its pixels, (1, 3, T, T) float32
Decode = Callable[[np.ndarray], np.ndarray]


def starts(length: int, tile: int) -> list[int]:
    """Where the tiles of a side of *length* begin; both in latent pixels, and *tile* is not more than *length*."""
    step = int(tile * (1 - OVERLAP))
    return [*range(0, length - tile, step), length - tile]


def tiles_of(latent: np.ndarray, tile: int) -> list[np.ndarray]:
    """The tiles of a (1, C, h, w) *latent*, each (1, C, tile, tile), row after row."""
    tops, lefts = (starts(length, tile) for length in latent.shape[2:])
    return [latent[:, :, top : top + tile, left : left + tile] for top in tops for left in lefts]


def decode_tiles(decode: Decode, latent: np.ndarray, tile: int, *, factor: int) -> np.ndarray:
    """The pixels of a (1, C, h, w) *latent*, (1, 3, H, W) float32, decoded in tiles and blended.

    Args:
        tile: side of a tile, in latent pixels.
        factor: pixels a side for one latent pixel.
    """
    tops, lefts = (starts(length, tile) for length in latent.shape[2:])
    tell, total = progress("decoding: tile"), len(tops) * len(lefts)
    rows = []
    for number, part in enumerate(tiles_of(latent, tile)):
        if number % len(lefts) == 0:
            rows.append(decode(part))
        else:
            rows[-1] = _joined(rows[-1], decode(part), start=lefts[number % len(lefts)] * factor, axis=3)
        tell(number + 1, total)
    picture = rows[0]
    for row, top in zip(rows[1:], tops[1:]):
        picture = _joined(picture, row, start=top * factor, axis=2)
    return picture


def _joined(before: np.ndarray, after: np.ndarray, *, start: int, axis: int) -> np.ndarray:
    """*before*, and from *start* on along *axis* *after*; where they overlap, the share of *after* rises from 0."""
    before, after = np.moveaxis(before, axis, -1), np.moveaxis(after, axis, -1)
    old = before[..., start:]
    overlap = old.shape[-1]
    share = np.arange(overlap, dtype=np.float32) / np.float32(overlap)
    # So written, equal values stay as they are to the last bit.
    blended = old + (after[..., :overlap] - old) * share
    return np.moveaxis(np.concatenate([before[..., :start], blended, after[..., overlap:]], axis=-1), -1, axis)
