"""What a UNet was trained to predict, and with which schedule: from what a checkpoint says of itself, never from a guess.

Shapes do not tell whether a UNet predicts the noise (epsilon) or the velocity (v_prediction), and a picture drawn with the wrong
one is no picture. Files say it in many places; where they say nothing and the family has both kinds, or where they contradict
each other, the table's column `prediction` decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axbake.checkpoints.containers import SCHEDULER, Container
from axbake.errors import AxbakeError
from axbake.networks.sampling import Sampling
from axbake.printable import shown
from axbake.runtime.values import Latents
from axbake.users_files import UnreadableFile, is_file, kind_of, read_yaml

EPSILON, VELOCITY = "epsilon", "v_prediction"
WORDS = {"epsilon": EPSILON, "eps": EPSILON, "v": VELOCITY, "v_prediction": VELOCITY}
TERMINAL = 1e-6  # share of the signal in the last step, below which a schedule ends in pure noise
PROBED = 8  # latent pixels a side of the probe's input
ROUNDING = 1e-2  # relative; a schedule stored in bfloat16 is off by 4e-3


class UnknownPrediction(AxbakeError):
    """It is not known what the UNet predicts, or two sources contradict each other."""


class UnreadableSidecar(AxbakeError):
    """The YAML beside a checkpoint cannot be read."""


@dataclass(frozen=True)
class Evidence:
    """What a checkpoint says of its UNet's training."""

    types: dict[str, str]  # where it is stated -> epsilon or v_prediction
    zero_terminal: list[str]  # where it is stated that the schedule ends in pure noise
    notes: list[str]

    def lines(self) -> list[str]:
        """What was found, for people."""
        return [f"{place} says {kind}" for place, kind in self.types.items()] + self.zero_terminal + self.notes


def read_sidecar(checkpoint: Path) -> str:
    """What the LDM config beside *checkpoint*, of its name with `.yaml`, says: epsilon, v_prediction, or nothing.

    LDM's default is epsilon (`ddpm.py`), so a config of a model that names no `parameterization` says that.

    Raises:
        UnreadableSidecar: too large or no YAML; says where.
    """
    if kind_of(checkpoint) == "a folder":
        return ""
    path = checkpoint.with_suffix(".yaml")
    if not is_file(path) or path == checkpoint:  # the last is a recipe
        return ""
    try:
        config = read_yaml(path)
    except UnreadableFile as error:
        raise UnreadableSidecar(
            f"{error} Wanted the LDM config of {checkpoint.name} in YAML; remove it if it is something else."
        ) from None
    model = _inside(config, "model", "params")
    if not isinstance(model, dict):
        return ""
    scaling = _inside(model, "denoiser_config", "params", "scaling_config", "target")
    if isinstance(scaling, str) and scaling.endswith((".VScaling", ".EpsScaling")):
        return VELOCITY if scaling.endswith(".VScaling") else EPSILON
    stated = model.get("parameterization", "eps")
    if not isinstance(stated, str) or stated not in WORDS:
        raise UnreadableSidecar(
            f"{path}: parameterization '{shown(stated, 80)}'; wanted eps or v, which axbake's samplers support."
        )
    return WORDS[stated]


def _inside(config: Any, *names: str) -> Any:
    for name in names:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def gather_evidence(container: Container, *, sidecar: str) -> Evidence:
    """All that the checkpoint says.

    Args:
        sidecar: what `read_sidecar` found.
    """
    types, zero, notes = {}, [], []
    last = {name.rpartition(".")[2]: name for name in container.tensors}
    if "v_pred" in last:
        types["the tensor v_pred"] = VELOCITY
    if "ztsnr" in last:
        zero.append("the tensor ztsnr says that the schedule ends in pure noise")
    spec = container.metadata
    if (stated := spec.get("modelspec.prediction_type", "")) in WORDS:
        types["metadata modelspec.prediction_type"] = WORDS[stated]
    architecture = spec.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-"):
        types["metadata modelspec.architecture"] = (
            VELOCITY if architecture.startswith("stable-diffusion-v2-768-v") else EPSILON
        )
    if sidecar:
        types["the YAML beside it"] = sidecar
    scheduler = container.configs.get(SCHEDULER, {})
    if (kind := scheduler.get("prediction_type")) in list(WORDS):  # a list, since JSON may have any value here
        types["scheduler_config.json"] = WORDS[kind]
    if scheduler.get("rescale_betas_zero_snr") is True:
        zero.append("scheduler_config.json says that the schedule ends in pure noise")
    if "alphas_cumprod" in container.tensors and container.format != "pickle":
        ends_in_noise, note = _judge_schedule(container)
        zero += [note] if ends_in_noise else []
        notes += [] if ends_in_noise else [note]
    if zero and not types:
        types["a schedule that ends in pure noise, where a noise prediction carries no information,"] = VELOCITY
    return Evidence(types, zero, notes)


def _judge_schedule(container: Container) -> tuple[bool, str]:
    """Whether the file's own `alphas_cumprod` ends in pure noise, and what it is."""
    stored = container.tensors["alphas_cumprod"]
    if stored.dtype not in ("F64", "F32", "F16", "BF16") or stored.shape != (1000,):
        return False, f"alphas_cumprod of shape {list(stored.shape)} is not a schedule of 1000 steps; not used"
    content = container.content("alphas_cumprod")
    if stored.dtype == "BF16":  # the upper half of a float32
        found = (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    else:
        found = np.frombuffer(content, f"<f{len(content) // 1000}").astype(np.float64)
    wanted = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    # Lin et al. 2023, algorithm 1: the square roots, shifted and scaled so that the first stays and the last is 0.
    roots = np.sqrt(wanted)
    rescaled = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    if np.isfinite(found).all() and np.abs(found / wanted - 1).max() < ROUNDING:
        return False, "alphas_cumprod is the schedule of Stable Diffusion"
    if np.isfinite(found).all() and 0 <= found[-1] < TERMINAL and np.abs(found - rescaled).max() < ROUNDING:
        return True, "alphas_cumprod ends in pure noise"
    return False, "alphas_cumprod is not a schedule that axbake knows, as after a merge; not used"


def decide_sampling(
    evidence: Evidence,
    *,
    title: str,
    prediction_type: str | None,
    sampling: Callable[..., Sampling],
    prediction: str,
    path: Path,
    probe: Callable[[], str] | None,
) -> Sampling:
    """How the denoiser is run.

    Args:
        title: of the family.
        prediction_type: what the family's denoisers predict; None: there are both kinds.
        sampling: (prediction type, zero_terminal_snr=) -> how this one is run.
        prediction: of the table: epsilon or v_prediction; empty: what the file says.
        probe: one run of the denoiser, which says in a sentence what it looks like; asked only where nothing else decides.

    Raises:
        UnknownPrediction: nothing decides, or two statements contradict each other; asks for the column `prediction`.
    """
    stated = set(evidence.types.values())
    if not prediction and (len(stated) > 1 or (not stated and prediction_type is None)):
        found = "; ".join(evidence.lines()) if stated else "neither the file nor a YAML beside it says so"
        seen = f" {probe()}" if probe else ""
        raise UnknownPrediction(
            f"{path}: does its UNet predict the noise (epsilon, as {title.replace('.x', '')} base) or the velocity "
            f"(v_prediction)? {found[:1].upper()}{found[1:]}.{seen} Fill in the column prediction of "
            "config/models.tsv: epsilon or v_prediction, as the model's page says."
        )
    kind = prediction or next(iter(stated), None) or prediction_type or EPSILON
    zero = bool(evidence.zero_terminal) and kind == VELOCITY
    return sampling(kind, zero_terminal_snr=zero)


def reasons(evidence: Evidence, *, title: str, prediction_type: str | None, prediction: str) -> list[str]:
    """Why the prediction type is what it is, for people; arguments as of `decide_sampling`."""
    first = [f"column prediction says {prediction}"] if prediction else []
    if not first and not evidence.types:
        first = [f"{title} predicts {prediction_type}, and the file says nothing else"]
    return first + evidence.lines()


def probe_unet(network: Any, *, latents: Latents, context_width: int) -> str:
    """What one run of a UNet looks like: AUTOMATIC1111's probe (`sd_models_config.py`, `is_using_v_parameterization_for_sd2`).

    At the last timestep of an input that is the same everywhere, a UNet of Stable Diffusion 2.x that predicts the noise gives
    about the input back; one that predicts the velocity gives much less.
    """
    import torch

    channels = network.config.in_channels  # an inpainting UNet's are more than the latent's
    sample, context = torch.full((1, channels, PROBED, PROBED), 0.5), torch.full((1, 2, context_width), 0.5)
    with torch.inference_mode():
        output = network(sample, torch.tensor([999]), context, return_dict=False)[0]
    mean = float((output - sample[:, : latents.channels]).mean())
    kind = VELOCITY if mean < -1 else EPSILON
    return (
        f"One run of the UNet looks like {kind} (the mean of output minus input is {mean:.2f}; below -1 means "
        "v_prediction in AUTOMATIC1111's probe of Stable Diffusion 2.x)."
    )
