"""Calibration samples: what a model's networks see when it draws, recorded and packed for Pulsar2.

The formats are Pulsar2's (AXERA-TECH/pulsar2-docs-en, `user_guides_config/config.md`, InputQuantConfig): `NumpyObject` archives
for the UNet and the VAE decoder, a `Numpy` archive for the text encoder, an `Image` archive for the VAE encoder.
"""

import io
import logging
import pickle
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from axbake import components
from axbake.errors import AxbakeError
from axbake.export import TIME_INPUT, CutUnet
from axbake.runtime.noise import TorchNoise
from axbake.runtime.sampler import Schedule, load_schedule, sample
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.schedule import npz_bytes

logger = logging.getLogger(__name__)
TOKENIZER = Path(__file__).parents[1] / "resources" / "clip"


class CalibrationError(AxbakeError):
    """There are not as many samples as wanted."""


def record_trajectories(
    *,
    text_encoder: Path,
    unet: Path,
    schedule: Path,
    prompts: list[str],
    negative_prompt: str,
    guidance_scale: float,
    height: int,
    width: int,
    seed: int,
    trajectories: Path,
) -> None:
    """Draw every calibration prompt's latent in torch, with guidance as at run time, and keep what the UNet saw.

    Args:
        text_encoder, unet: `weights/{component}.safetensors`.
        schedule: `schedule.npz`; N steps.
        height, width: image pixels.
        seed: of the first prompt's noise; the n-th prompt has seed + n.
        trajectories: `.npz` to write, for P prompts: `prompt_embeds` (P, 1, 77, W), `negative_embeds` (1, 77, W), `latents`
            (P, N + 1, 1, 4, H/8, W/8): before the first step, and after each. All float32.
    """
    steps = load_schedule(schedule)
    encode = _text_encoding(components.load(text_encoder))
    negative = encode(negative_prompt)
    denoise = _denoising(components.load(unet))
    shape = (1, 4, height // 8, width // 8)
    embeds, latents = [], []
    for number, prompt in enumerate(prompts):
        logger.info("recording: prompt %d of %d: %s", number + 1, len(prompts), prompt)
        embeds.append(encode(prompt))
        start = TorchNoise(seed + number).normal(shape) * np.float32(steps.init_noise_sigma)
        _, path = sample(
            denoise,
            steps,
            TorchNoise(seed + number),
            shape=shape,
            prompt_embeds=embeds[-1],
            negative_embeds=negative,
            guidance_scale=guidance_scale,
        )
        latents.append(np.concatenate([start[None], path]))
    arrays = {"prompt_embeds": np.stack(embeds), "negative_embeds": negative, "latents": np.stack(latents)}
    trajectories.write_bytes(npz_bytes(arrays))


def _text_encoding(network: torch.nn.Module):
    tokenizer = ClipTokenizer(TOKENIZER)

    def encode(prompt: str) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(tokenizer.encode(prompt))).last_hidden_state.numpy()

    return encode


def _denoising(network: torch.nn.Module):
    """The UNet as the sampler calls it, its time embedding passed by as in the exported graph."""
    cut = CutUnet(network.to(memory_format=torch.channels_last))  # half the time of the usual layout on CPUs

    def denoise(latent: np.ndarray, time_row: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return cut(*map(torch.from_numpy, (latent, prompt, time_row))).contiguous().numpy()

    return denoise


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
    prompts, rows = recorded["latents"].shape[:2]
    chosen = stratified(samples, prompts=prompts, steps=rows - 1, branches=2 if guidance_scale > 1 else 1)
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


def calibrate_vae_decoder(trajectories: Path, weights: Path, *, archive: Path) -> None:
    """Pack each prompt's final latent, divided by the VAE's scaling factor, into a `NumpyObject` archive."""
    scaling_factor = np.float32(components.read_description(weights).config["scaling_factor"])
    with np.load(trajectories) as arrays:
        finals = arrays["latents"][:, -1]
    members = ((f"vae_decoder_{n:04d}.npy", _npy_object({"x": final / scaling_factor})) for n, final in enumerate(finals))
    _write_archive(archive, members)


def calibrate_text_encoder(*, prompts: list[str], archive: Path) -> None:
    """Pack the token ids of *prompts* and of the empty prompt into a `Numpy` archive: (1, 77) int64 each."""
    tokenizer = ClipTokenizer(TOKENIZER)
    texts = dict.fromkeys([*prompts, ""])  # each once, in order
    members = ((f"text_encoder_{n:04d}.npy", _npy(tokenizer.encode(text))) for n, text in enumerate(texts))
    _write_archive(archive, members)


def calibrate_vae_encoder(trajectories: Path, vae_decoder: Path, *, archive: Path) -> None:
    """Pack the pictures that the final latents show, as PNG, into an `Image` archive.

    Args:
        vae_decoder: `weights/vae_decoder.safetensors`; torch decodes.
    """
    scaling_factor = components.read_description(vae_decoder).config["scaling_factor"]
    network = components.load(vae_decoder)
    with np.load(trajectories) as arrays:
        finals = torch.from_numpy(arrays["latents"][:, -1])

    def members() -> Iterator[tuple[str, bytes]]:
        for number, final in enumerate(finals):
            with torch.inference_mode():
                unit = (network(final / scaling_factor)[0] / 2 + 0.5).clamp(0, 1)
            file = io.BytesIO()
            Image.fromarray((unit.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()).save(file, "PNG")
            yield f"vae_encoder_{number:04d}.png", file.getvalue()

    _write_archive(archive, members())


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
