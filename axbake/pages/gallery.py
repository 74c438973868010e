"""Pictures as pages hold them: whole, as maps of what differs, and small."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

THUMBNAIL = 160  # pixels, of the longer side


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of a picture file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def picture_uri(picture: np.ndarray) -> str:
    """`data:` URI of *picture*, (H, W, 3) or (H, W) uint8, as PNG without loss and without its file's metadata."""
    return _uri(Image.fromarray(picture), "png")


def thumbnail_uri(picture: np.ndarray) -> str:
    """`data:` URI of *picture*, (H, W, 3) uint8, made small; what is small already is kept without loss."""
    image = Image.fromarray(picture)
    if max(image.size) <= THUMBNAIL:
        return _uri(image, "webp", lossless=True)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return _uri(image, "webp", quality=80)


def difference_maps(wanted: np.ndarray, others: Sequence[np.ndarray]) -> tuple[int, list[dict[str, str | float]]]:
    """What differs from the picture *wanted* in each of *others*, all (H, W, 3) uint8, on one scale.

    Returns:
        The scale: the largest power of two that clips no difference in any of them. And of each of *others*: `map`, the `data:`
        URI of a grey picture of each pixel's largest difference of its three channels, times the scale; the `mean` and the
        `largest` difference, of 255.
    """
    apart = [np.abs(wanted.astype(np.int16) - other.astype(np.int16)) for other in others]
    gain = 2 ** int(np.log2(255 / max(1, *(one.max() for one in apart))))
    said: list[dict[str, str | float]] = [
        {
            "map": picture_uri((one.max(axis=2) * gain).astype(np.uint8)),
            "mean": round(float(one.mean()), 2),
            "largest": int(one.max()),
        }
        for one in apart
    ]
    return gain, said


def _uri(image: Image.Image, form: str, **how) -> str:
    file = io.BytesIO()
    image.save(file, form, **how)
    return f"data:image/{form};base64," + base64.b64encode(file.getvalue()).decode()
