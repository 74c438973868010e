"""Decode pictures in tiles and as a whole, with our tiling and with diffusers' own, and tell how far they are apart.

    python bench/seams.py [--full-size]

Without an option: the demo's VAE, which is trained, and the latents that its encoder gives for four of the pictures that VAEs are
calibrated with, at several sizes of picture and tile. With it: latents of noise, through a VAE of Stable Diffusion 1.5's size,
with random weights as diffusers initialises them; that takes some minutes, and 4 GB of memory.

All in torch, float32. Pixels are from 0 to 255 and not rounded. A largest difference is that of the worst picture.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import measure  # it has the checkout on Python's path, for the imports below
import numpy as np
import torch

from axbake.calibration.pictures import draw_pictures
from axbake.distance import psnr
from axbake.families import FAMILIES
from axbake.networks.autoencoder import LATENTS, autoencoder
from axbake.runtime.img2img import normalised
from axbake.runtime.tiles import decode_tiles, starts
from axbake.weights.files import read_description
from axbake.weights.networks import load

CHECKPOINT = measure.ROOT / "resources" / "demo" / "emoji-sd.safetensors"
PICTURES = slice(0, 4)  # of dead leaves
#: Height and width of a picture, side of a tile; the demo's VAE was trained with pictures of 64 × 64
SIZES = ((64, 96, 64), (96, 96, 64), (128, 128, 64), (128, 128, 96), (192, 192, 128), (384, 384, 256))
FULL_SIZES = ((384, 384, 256), (768, 768, 512))


def demo() -> Any:
    """The demo's VAE, as diffusers has it."""
    with tempfile.TemporaryDirectory() as place:
        halves, weights = [], Path(place) / "weights.safetensors"
        for component in FAMILIES["sd1"].autoencoder:
            measure.import_part(CHECKPOINT, component=component.name, weights=weights)
            halves.append(load(weights, component.build))
        vae = autoencoder(read_description(weights).config)
    vae.load_state_dict({name: tensor for half in halves for name, tensor in half.state_dict().items()})
    return vae.eval()


def full_size() -> Any:
    """A VAE of Stable Diffusion 1.5's size with random weights."""
    torch.manual_seed(0)
    config = json.loads((measure.ROOT / "resources" / "sd1" / "vae" / "config.json").read_text(encoding="utf-8"))
    return autoencoder(config).eval()


def latents_of(vae: Any, height: int, width: int) -> list[np.ndarray]:
    """What the encoder of *vae* gives for pictures of that size."""
    with tempfile.TemporaryDirectory() as place:
        draw_pictures(height=height, width=width, pictures=Path(place) / "pictures.npy")
        pictures = np.load(Path(place) / "pictures.npy")[PICTURES]
    with torch.inference_mode():
        return [vae.encode(torch.from_numpy(normalised(picture))).latent_dist.mean.numpy() for picture in pictures]


def values(pixels: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 255."""
    return np.clip(pixels * 0.5 + 0.5, 0, 1) * 255


def apart(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """PSNR of the mean squared error over all pictures, and the largest difference, as cells of the table."""
    wanted, found = (np.stack(pictures) for pictures in zip(*pairs, strict=True))
    return f"{psnr(wanted, found, peak=255):.1f} dB | {np.abs(wanted - found).max():.1f}"


def row(vae: Any, latents: list[np.ndarray], tile: int) -> str:
    """Ours against the whole, diffusers' against the whole, ours against diffusers'."""
    side = tile // LATENTS.factor
    vae.tile_latent_min_size, vae.tile_sample_min_size = side, tile

    def through(decode: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda latent: decode(torch.from_numpy(np.ascontiguousarray(latent))).sample.numpy()

    whole, theirs = through(vae.decode), through(vae.tiled_decode)
    with torch.inference_mode():
        found = [
            [
                values(decode(latent))
                for decode in (whole, lambda part: decode_tiles(whole, part, side, factor=LATENTS.factor), theirs)
            ]
            for latent in latents
        ]
    compared = [apart((one[a], one[b]) for one in found) for a, b in ((0, 1), (0, 2), (2, 1))]
    high, wide = (len(starts(length, side)) for length in latents[0].shape[2:])
    return f"{high} × {wide} | " + " | ".join(compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-size", action="store_true", help="random weights of Stable Diffusion 1.5's size")
    options = parser.parse_args()
    vae = full_size() if options.full_size else demo()
    print(
        "| picture | tile | tiles | ours, PSNR | largest | diffusers', PSNR | largest | ours to diffusers' | largest |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for height, width, tile in FULL_SIZES if options.full_size else SIZES:
        if options.full_size:
            noise = np.random.default_rng(0).standard_normal(LATENTS.shape(height, width))
            latents = [(noise / vae.config.scaling_factor).astype(np.float32)]
        else:
            latents = latents_of(vae, height, width)
        print(f"| {height} × {width} | {tile} | {row(vae, latents, tile)} |", flush=True)


if __name__ == "__main__":
    main()
