"""Calibration samples, packed for Pulsar2.

The UNet's are chosen from what it saw when the model drew (`axbake.trajectories`); the VAE's depend on the VAE alone
(`axbake.pictures`), the text encoder's on the project's text prompts alone, so that models which share them share their builds.

The formats are Pulsar2's (AXERA-TECH/pulsar2-docs-en, `user_guides_config/config.md`, InputQuantConfig): `NumpyObject` archives
for the UNet and the VAE decoder, a `Numpy` archive for the text encoder, an `Image` archive for the VAE encoder.
"""

import io
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from axbake.errors import AxbakeError
from axbake.interface import TIME_INPUT
from axbake.prompts import load_tokenizer
from axbake.runtime.prompt import chunk_prompt
from axbake.runtime.sampler import Schedule, load_schedule


class CalibrationError(AxbakeError):
    """There are not as many samples as wanted."""


def stratified(count: int, *, prompts: int, steps: int, branches: int) -> list[tuple[int, int, int]]:
    """*count* different (prompt, step, branch), spread evenly over each of the three.

    In the order of steps, from the first (all noise) to the last.

    Raises:
        CalibrationError: there are fewer than *count*.
    """
    if count > prompts * steps * branches:
        raise CalibrationError(
            f"calibration/samples: {count}, but {prompts} prompts × {steps} steps × {branches} branches give"
            f" {prompts * steps * branches}. Give more calibration prompts, or a lower number."
        )
    # Numbers of one step follow one another, so they are of different prompts, and of the other branch when a prompt
    # comes round again.
    return [
        (number % prompts, number * steps // count, (number // prompts + number % prompts) % branches)
        for number in range(count)
    ]


def calibrate_unet(trajectories: Path, schedule: Path, *, samples: int, guidance_scale: float, archive: Path) -> None:
    """Pack *samples* of the UNet's inputs into a `NumpyObject` archive: float32, the names of the exported graph.

    Args:
        guidance_scale: at 1 the negative branch does not run, and gives no samples.
    """
    steps = load_schedule(schedule)
    with np.load(trajectories) as arrays:
        recorded = {name: arrays[name] for name in arrays.files}
    run = [step for step in range(len(steps.timesteps)) if steps.runs_model(step)]
    branches = 2 if guidance_scale > 1 else 1
    chosen = [
        (prompt, run[number], branch)
        for prompt, number, branch in stratified(
            samples, prompts=len(recorded["latents"]), steps=len(run), branches=branches
        )
    ]
    _write_archive(
        archive,
        (
            (f"unet_{number:04d}.npy", _npy_object(_unet_inputs(recorded, steps, *which)))
            for number, which in enumerate(chosen)
        ),
    )


def _unet_inputs(recorded: dict, steps: Schedule, prompt: int, step: int, branch: int) -> dict[str, np.ndarray]:
    text = recorded["negative_embeds"] if branch else recorded["prompt_embeds"][prompt]
    return {
        "sample": (recorded["latents"][prompt, step] * steps.input_scale[step]).astype(np.float32),
        "encoder_hidden_states": text,
        TIME_INPUT: steps.time_embedding[step : step + 1],
    }


def calibrate_vae_decoder(latents: Path, *, archive: Path) -> None:
    """Pack *latents*, an .npy of (N, 1, 4, h, w) float32 (`axbake.pictures.encode_pictures`), into a `NumpyObject` archive."""
    members = ((f"vae_decoder_{n:04d}.npy", _npy_object({"x": latent})) for n, latent in enumerate(np.load(latents)))
    _write_archive(archive, members)


def calibrate_text_encoder(embeddings: Path, *, prompts: list[str], archive: Path) -> None:
    """Pack the chunks of *prompts*, of all embeddings' names and of the empty prompt into a `Numpy` archive.

    Each chunk is there once, (1, 77) int64 ids; a long prompt has several.

    Args:
        embeddings: `embeddings.json`.
    """
    tokenizer = load_tokenizer(embeddings)
    texts = [*prompts, *tokenizer.embeddings, ""]
    samples = {chunk.ids.tobytes(): chunk.ids for text in texts for chunk in chunk_prompt(text, tokenizer)}
    members = ((f"text_encoder_{n:04d}.npy", _npy(ids)) for n, ids in enumerate(samples.values()))
    _write_archive(archive, members)


def calibrate_vae_encoder(pictures: Path, *, archive: Path) -> None:
    """Pack *pictures*, an .npy of (P, H, W, 3) uint8, as PNGs into an `Image` archive."""

    def png(picture: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        return file.getvalue()

    members = ((f"vae_encoder_{number:04d}.png", png(picture)) for number, picture in enumerate(np.load(pictures)))
    _write_archive(archive, members)


def _write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of *members* in their order; the same members give the same bytes (no times, no owners)."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


class _PortablePickler(pickle.Pickler):
    """Pickles arrays as calls of `numpy.ndarray`.

    NumPy 2 pickles refer to `numpy._core`, which the NumPy 1 inside Pulsar2's image has not; `numpy.ndarray` and
    `numpy.array` are in both.
    """

    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        if obj.dtype == object:
            return np.array, (obj.item(), "O")
        return np.ndarray, (obj.shape, obj.dtype.str, obj.tobytes())


def _npy_object(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npy` of one object, the dict *arrays*, as `np.save(path, arrays)` writes it, readable by NumPy 1 and 2."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    _PortablePickler(file, protocol=4).dump(np.array(arrays, dtype=object))
    return file.getvalue()
