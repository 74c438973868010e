"""Masks that stand for all masks: what an inpainting denoiser is calibrated with.

They alternate, so that a few prompts see each kind: everything, which is text to image; a rectangle, as boxes are drawn;
brush strokes; all but a rectangle, as pictures are made larger (outpainting); a small rectangle; and halves. Sizes and places
are random, and always the same for one number.
"""

import itertools

import numpy as np

STROKES = (2, 6)  # number of brush strokes, of 2 to 5 straight parts each
BRUSH = (0.03, 0.12)  # radius of a brush, as a share of the picture's shorter side


def draw_mask(number: int, *, height: int, width: int) -> np.ndarray:
    """Mask *number*, from 0: (height, width) bool, True where to paint, which is somewhere."""
    # RandomState's numbers are fixed for good by NumPy's own rules; those of its newer generators are not.
    random = np.random.RandomState(number)
    kind = KINDS[number % len(KINDS)]
    return kind(random, height, width)


def _everything(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    return np.ones((height, width), bool)


def _box(random: np.random.RandomState, height: int, width: int, *, least: float, most: float) -> np.ndarray:
    """A rectangle whose sides are *least* to *most* of the picture's."""
    sides = [max(1, int(side * random.uniform(least, most))) for side in (height, width)]
    top, left = (random.randint(whole - side + 1) for whole, side in zip((height, width), sides, strict=True))
    mask = np.zeros((height, width), bool)
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def _rectangle(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    return _box(random, height, width, least=0.3, most=0.8)


def _small_rectangle(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    return _box(random, height, width, least=0.1, most=0.25)


def _around(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    return ~_box(random, height, width, least=0.4, most=0.8)


def _strokes(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Discs along straight parts that follow one another."""
    mask = np.zeros((height, width), bool)
    y, x = np.ogrid[:height, :width]
    for _ in range(random.randint(*STROKES)):
        radius = max(1.0, min(height, width) * random.uniform(*BRUSH))
        points = random.uniform(size=(random.randint(3, 7), 2)) * (height, width)
        for begin, end in itertools.pairwise(points):
            for share in np.linspace(0, 1, 2 + int(np.abs(end - begin).max() / radius)):
                middle = begin + share * (end - begin)
                mask |= (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
    return mask


def _half(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    halves = (y < height // 2, y >= height // 2, x < width // 2, x >= width // 2)
    return halves[random.randint(len(halves))]


KINDS = (_everything, _rectangle, _strokes, _around, _small_rectangle, _half)
