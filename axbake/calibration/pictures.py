"""Pictures that stand for all pictures: what a VAE is calibrated with, whatever the model around it.

If a VAE were calibrated with what one model draws, its compiled form would depend on that model, and a VAE that many
checkpoints share would be compiled for each of them. So its samples are made of its own weights and the picture size alone:
synthetic pictures, and the latents that its own encoder gives for them, which is what a UNet is trained to produce.

Most are dead leaves (Lee, Mumford and Huang 2001): discs of random place and colour that cover each other, with radii of density
r⁻³, which have the edges, flat parts and 1/f spectrum of photographs; here with few discs or many, on white, black or coloured
ground, in all colours or in saturated ones. The others are extremes that bound the ranges: flat black, white and pure colours,
checks of one pixel and of eight, ramps, white noise.

Each half is calibrated with the fewest that cover its ranges (`axbake.calibration.coverage`), after it has seen all at full size.

What that costs: docs/numbers.md compares it with calibration by what the model draws.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from axbake.calibration.coverage import choose, described, shares
from axbake.host import freed_memory_kept
from axbake.runtime.progress import progress
from axbake.runtime.tiles import tiles_of
from axbake.weights.files import read_description

if TYPE_CHECKING:
    from axbake.weights.networks import Build

logger = logging.getLogger(__name__)
ENOUGH = 0.999  # share of the ranges of a half of the VAE that its samples cover
LEAVES = 24  # pictures of dead leaves
COLOURS = (
    (0, 0, 0),
    (255, 255, 255),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
)
BLACK, WHITE = COLOURS[:2]
MOST_DISCS = 256  # in one picture
NOISE = (0.7, 1.0, 1.5, 2.0)  # standard deviations of latents of noise, after scaling


def draw_pictures(*, height: int, width: int, pictures: Path) -> None:
    """Write the calibration pictures of one size as an .npy of (N, height, width, 3) uint8; always the same."""
    # RandomState's numbers are fixed for good by NumPy's own rules; those of its newer generators are not.
    random = np.random.RandomState(0)
    drawn = [_dead_leaves(random, height, width) for _ in range(LEAVES)]
    drawn += [np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)) for colour in COLOURS]
    y, x = np.mgrid[:height, :width]
    drawn += [_grey((x // side + y // side) % 2 * 255) for side in (1, 8)]
    drawn += [_grey(x * 255 // max(1, width - 1)), _grey(y * 255 // max(1, height - 1))]
    drawn.append(random.randint(0, 256, (height, width, 3)).astype(np.uint8))
    np.save(pictures, np.stack(drawn))


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None].astype(np.uint8), 3, axis=2)


def _dead_leaves(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8."""
    palette = (None, COLOURS)[random.randint(2)]

    def colour() -> np.ndarray:
        return random.randint(0, 256, 3) if palette is None else np.array(palette[random.randint(len(palette))])

    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = (WHITE, WHITE, BLACK, colour())[random.randint(4)]
    side = min(height, width)
    smallest, largest = side * random.uniform(0.016, 0.1), side * 0.6
    for _ in range(int(MOST_DISCS ** random.uniform(0.1, 1))):
        # Inverse of the distribution of r⁻³ between the two radii.
        radius = (smallest**-2 - random.uniform() * (smallest**-2 - largest**-2)) ** -0.5
        centre_y, centre_x = random.uniform(0, height), random.uniform(0, width)
        top, left = max(0, int(centre_y - radius)), max(0, int(centre_x - radius))
        around = picture[top : int(centre_y + radius) + 2, left : int(centre_x + radius) + 2]
        y, x = np.ogrid[top : top + around.shape[0], left : left + around.shape[1]]
        around[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = colour()
    return picture


def encode_pictures(
    pictures: Path,
    encoder: Path,
    *,
    build: Build,
    channels: int,
    precision: str,
    device: str,
    latents: Path,
    chosen: Path,
) -> None:
    """Write the latents' means that a VAE's own encoder gives for *pictures*, and some noise of a UNet's latents' size.

    Args:
        encoder: `weights/{component}.safetensors` of the encoder half; *build*: the component's.
        channels: C of a latent.
        precision: float32 or bfloat16: of the encoder's weights and activations.
        device: cpu or cuda: where it runs.
        latents: .npy to write: (N, 1, C, h, w) float32, not scaled, as the decoder's graph takes them.
        chosen: JSON to write: the fewest pictures that cover the encoder's ranges (`ENOUGH`), by number, and what they cover.
    """
    scaled = np.load(pictures).transpose(0, 3, 1, 2)[:, None] / np.float32(127.5) - 1  # (N, 1, 3, H, W)
    made = _run(encoder, build, scaled, precision=precision, device=device, what="encoding: picture", chosen=chosen)
    means = [one[:, :channels] for one in made]
    # What a UNet makes has a standard deviation of about 1 after scaling: that is what the factor is for.
    unit = np.random.RandomState(0).standard_normal((len(NOISE), *means[0].shape))
    scaling_factor = read_description(encoder).config.get("scaling_factor", 1.0)
    noise = [size / scaling_factor * values for size, values in zip(NOISE, unit, strict=True)]
    np.save(latents, np.stack([*means, *noise]).astype(np.float32))


def decode_latents(
    latents: Path,
    decoder: Path,
    *,
    build: Build,
    precision: str,
    device: str,
    chosen: Path,
    tile: int | None = None,
) -> None:
    """Choose the fewest of *latents* that cover a VAE decoder's ranges.

    Args:
        latents: of `encode_pictures`.
        decoder: `weights/{component}.safetensors` of the decoder half; *build*: the component's.
        precision, device: as `encode_pictures` has them.
        chosen: JSON to write, as `encode_pictures` does.
        tile: as `axbake.calibration.tars.calibrate_decoder` has it.
    """
    _run(
        decoder,
        build,
        decoded_of(np.load(latents), tile),
        precision=precision,
        device=device,
        what="decoding: latent",
        chosen=chosen,
    )


def decoded_of(latents: np.ndarray, tile: int | None) -> Sequence[np.ndarray]:
    """What the decoder is given of each of *latents*, as `axbake.calibration.tars.calibrate_decoder` says."""
    if not tile:
        return list(latents)
    return [(tiles := tiles_of(latent, tile))[number % len(tiles)] for number, latent in enumerate(latents)]


def read_chosen(chosen: Path) -> list[int]:
    """Numbers of the samples that are chosen."""
    return json.loads(chosen.read_text(encoding="utf-8"))["samples"]


def _run(
    weights: Path,
    build: Build,
    samples: Sequence[np.ndarray],
    *,
    precision: str,
    device: str,
    what: str,
    chosen: Path,
) -> list[np.ndarray]:
    """What a half of a VAE gives for each of *samples*; *chosen* is written."""
    import torch  # here, so that drawing the pictures does not wait for it

    from axbake.calibration.modules import OUTPUT, ModuleRanges
    from axbake.weights import networks

    dtype = networks.PRECISIONS[precision]
    network = networks.channels_last(networks.load(weights, build, dtype=dtype, device=device))
    ranges, tell = ModuleRanges(network), progress(what)
    made: list[np.ndarray] = []
    with freed_memory_kept(), torch.inference_mode():
        for sample in samples:
            made.append(network(torch.from_numpy(sample).to(device, dtype)).float().cpu().contiguous().numpy())
            ranges.end_of_run()
            tell(len(made), len(samples))
    covered = shares(ranges.found(), {OUTPUT})
    order = choose(covered, 1)
    count = 1 + next(number for number, reached in enumerate(covered.curve(order)) if reached >= ENOUGH)
    content = {
        "component": read_description(weights).component,
        "recorded": len(samples),
        **described(covered, order[:count], order),
        "samples": order[:count],
    }
    logger.info("%d of %d cover %.2f %% of the ranges", count, len(samples), 100 * content["coverage"])
    chosen.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return made
