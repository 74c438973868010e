"""Pictures as pages hold them: whole, as maps of what differs, and small."""

import base64
import io
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


def difference_map(one: np.ndarray, other: np.ndarray) -> tuple[str, dict[str, float]]:
    """What differs between two (H, W, 3) uint8 pictures.

    Returns:
        `data:` URI of a grey picture: each pixel's largest difference of its three channels, times the largest power of two that
        clips none; and in numbers that factor `gain`, the `mean` and the `largest` difference, of 255.
    """
    apart = np.abs(one.astype(np.int16) - other.astype(np.int16))
    largest = int(apart.max())
    gain = 2 ** int(np.log2(255 / max(1, largest)))
    grey = (apart.max(axis=2) * gain).astype(np.uint8)
    return picture_uri(grey), {"gain": gain, "mean": round(float(apart.mean()), 2), "largest": largest}


def _uri(image: Image.Image, form: str, **how) -> str:
    file = io.BytesIO()
    image.save(file, form, **how)
    return f"data:image/{form};base64," + base64.b64encode(file.getvalue()).decode()
