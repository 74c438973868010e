"""Make docs/images/ from the baked demo: `make demo && .venv/bin/python docs/make_images.py`."""

from pathlib import Path

import numpy as np
from PIL import Image

from axbake.pages.gallery import read_picture

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "results" / "demo"
TIMES = 3  # of the demo's 64 × 64 pixels
GAP = 12  # pixels between pictures


def main() -> None:
    """Side by side: the reference, what the emulated models draw, and eight times what is between them."""
    reference, emulated = (read_picture(DEMO / step / "image.png") for step in ("reference", "simulation"))
    apart = np.abs(reference.astype(int) - emulated.astype(int)).max(axis=2, keepdims=True)
    difference = np.repeat(np.minimum(8 * apart, 255).astype(np.uint8), 3, axis=2)
    tiles = [np.kron(picture, np.ones((TIMES, TIMES, 1), np.uint8)) for picture in (reference, emulated, difference)]
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    row = np.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], axis=1)
    Image.fromarray(row).save(ROOT / "docs" / "images" / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
