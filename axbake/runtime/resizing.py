"""Pictures and masks that came over a network, decoded within bounds and brought to a model's size as web UIs do."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from .canvas import WHITE
from .errors import BundleError
from .img2img import FORMATS
from .reading import shown

MOST_PIXELS = 20_000_000  # of an upload: 0.3 GB while it is scaled
MOST_WHOLE = 4_200_000  # pixels of a picture of which only a part is drawn, since all of it is sent back
#: AUTOMATIC1111's `resize_mode`, by number: stretched; the largest middle part, as `read_picture` has it; whole, with its edge
#: pixels drawn out over the rest
MODES = ("stretch", "crop", "fill")
LANCZOS = Image.Resampling.LANCZOS


def decoded(content: bytes, what: str) -> Image.Image:
    """The picture in *content* as its camera means it to be looked at, in RGBA.

    Raises:
        BundleError: no picture of `FORMATS`, or one of more than `MOST_PIXELS`; nothing is decoded then.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height <= MOST_PIXELS:
                return ImageOps.exif_transpose(image).convert("RGBA")
            size = f"{image.width}x{image.height} pixels"
    except Image.DecompressionBombError as error:
        size = shown(error)
    except UnidentifiedImageError as error:  # whose text is an address in memory
        raise BundleError(f"{what}: not a picture that can be read. Send a PNG, a JPEG or a WebP.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BundleError(f"{what}: a damaged picture ({shown(error)}). Send a PNG, a JPEG or a WebP.") from error
    raise BundleError(f"{what}: {size}; wanted {MOST_PIXELS // 10**6} million at most. Make it smaller.")


def on_white(picture: Image.Image) -> Image.Image:
    """RGBA -> RGB; what is transparent is white."""
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def grey_mask(mask: Image.Image) -> Image.Image:
    """RGBA -> L: white where to paint; black and what is transparent stays."""
    return Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask).convert("L")


def resized(picture: Image.Image, mode: str, *, width: int, height: int) -> Image.Image:
    """*picture*, RGB or L, of the size *width* × *height*.

    Args:
        mode: of `MODES`.
    """
    if picture.size == (width, height):
        return picture
    if mode == "stretch":
        return picture.resize((width, height), LANCZOS)
    if mode == "crop":
        return ImageOps.fit(picture, (width, height), LANCZOS)
    inner = ImageOps.contain(picture, (width, height), LANCZOS)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    around = (top, height - inner.height - top), (left, width - inner.width - left)
    pixels = np.asarray(inner)
    return Image.fromarray(np.pad(pixels, [*around, (0, 0)][: pixels.ndim], mode="edge"))


@dataclass(frozen=True)
class Paste:
    """Where a drawing of a part goes in the whole picture."""

    whole: Image.Image  # RGB
    box: tuple[int, int, int, int]  # left, top, right, bottom
    mask: Image.Image  # L, of the whole's size

    def apply(self, drawn: np.ndarray) -> np.ndarray:
        """*drawn*, (H, W, 3) uint8, scaled into the box, where the mask is white; the rest is the whole's."""
        left, top, right, bottom = self.box
        part = Image.fromarray(drawn).resize((right - left, bottom - top), LANCZOS)
        covered = self.whole.copy()
        covered.paste(part, (left, top))
        return np.asarray(Image.composite(covered, self.whole, self.mask))


@dataclass(frozen=True)
class Over:
    """What is drawn over, in the model's size."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray | None = None  # (H, W) uint8: 255 where to paint
    fill: str = "original"  # of `axbake.runtime.masking.FILLS`
    paste: Paste | None = None  # of the masked part alone


def over(
    picture: Image.Image,
    mask: Image.Image | None = None,
    *,
    width: int,
    height: int,
    mode: str = "crop",
    blur: int = 0,
    fill: str = "original",
    part: bool = False,
    padding: int = 0,
) -> Over:
    """What to draw over, of a picture and, if there is one, its mask.

    Args:
        picture: RGBA.
        mask: L, of the picture's size.
        blur: of the mask, in pixels of the picture.
        fill: of `FILLS`, or `colours`: the mask's surroundings flow into it before it is drawn over.
        part: whether only the mask's surroundings are drawn, in all the model's pixels («only masked»).
        padding: pixels of the picture around the mask that these are.

    Raises:
        BundleError: the mask is of another size, or has nothing to paint.
    """
    plain = on_white(picture)
    if mask is None:
        return Over(np.asarray(resized(plain, mode, width=width, height=height)))
    if mask.size != plain.size:
        raise BundleError(
            f"a mask of {mask.width}x{mask.height} pixels for a picture of {plain.width}x{plain.height}; wanted the same size."
        )
    if part and plain.width * plain.height > MOST_WHOLE:
        raise BundleError(
            f"{plain.width}x{plain.height} pixels, of which only the masked part is to be drawn; wanted {MOST_WHOLE} in all at"
            " most. Make the picture smaller."
        )
    soft = mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask
    if fill == "colours":
        plain, fill = flowed(plain, mask), "original"
    if np.asarray(soft).max() < WHITE:
        raise BundleError(f"no pixel is whiter than {WHITE - 1} of 255, after the blur; wanted white where to paint.")
    if not part:
        pixels, cover = (np.asarray(resized(one, mode, width=width, height=height)) for one in (plain, soft))
        if cover.max() < WHITE:
            raise BundleError("nothing white is left in the model's size; wanted white in the part that is drawn.")
        return Over(pixels, cover, fill)
    box = surroundings(soft, padding, width=width, height=height)
    pixels, cover = (np.asarray(one.crop(box).resize((width, height), LANCZOS)) for one in (plain, soft))
    # Outside the mask the whole picture is as it came, inside too where the drawing mixes with it.
    return Over(pixels, np.where(cover > 0, 255, 0).astype(np.uint8), fill, Paste(on_white(picture), box, soft))


def surroundings(mask: Image.Image, padding: int, *, width: int, height: int) -> tuple[int, int, int, int]:
    """The box of the white of *mask* with *padding*, grown to the shape of *width* × *height* as far as the picture reaches."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    box = [
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    ]
    shape = width / height
    for first, wanted, most in (
        (0, (box[3] - box[1]) * shape, mask.width),
        (1, (box[2] - box[0]) / shape, mask.height),
    ):
        missing = round(wanted) - (box[first + 2] - box[first])
        if missing > 0:
            box[first] -= missing // 2
            box[first + 2] += missing - missing // 2
            moved = max(-box[first], 0) - max(box[first + 2] - most, 0)
            box[first], box[first + 2] = max(box[first] + moved, 0), min(box[first + 2] + moved, most)
    return box[0], box[1], box[2], box[3]


def flowed(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """*picture* with the colours around the mask blurred into it, from far to near («masked content: fill»)."""
    kept = ImageChops.invert(mask)
    outside = Image.new("RGBA", picture.size, 0)
    outside.paste(picture.convert("RGBA"), mask=kept)
    flowing = outside.convert("RGBa")
    made = Image.new("RGBA", picture.size, (128, 128, 128, 255))
    for radius, times in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        blurred = flowing.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            made.alpha_composite(blurred)
    return Image.composite(picture, made.convert("RGB"), kept)
