"""What a checkpoint is, for people and programs: `checkpoint.json`."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from axbake.checkpoints.containers import Container, open_container
from axbake.checkpoints.finding import (
    Found,
    averaged_namings,
    copies_of,
    find_names,
    find_network,
    has_network,
    is_of,
    open_checkpoint,
    precision_of,
)
from axbake.checkpoints.prediction import decide_sampling, gather_evidence, reasons
from axbake.checkpoints.refusals import UnknownFamily, check_texts
from axbake.networks.component import DECODER, DENOISER, ENCODER, Component, Shapes
from axbake.networks.sampling import Sampling
from axbake.runtime.values import Conditioning, Latents

# Tensors that training leaves behind and no run of the model reads (CompVis' `ddpm.py`, Lightning, transformers 4).
LEFTOVERS = (
    ("model_ema.decay", "state of training's moving average"),
    ("model_ema.num_updates", "state of training's moving average"),
    (
        "model_ema.",
        "moving average of the UNet from training; axbake uses the UNet itself, as web UIs, stable-diffusion.cpp and "
        "diffusers do",
    ),
    (".position_ids", "a constant: 0 to 76"),
    (".logit_scale", "only CLIP's training uses it"),
    (".text_projection", "only CLIP's pooled output uses it"),
    (
        ".transformer.resblocks.23.",
        "Stable Diffusion 2.x takes the output of the second-to-last layer of its text encoder",
    ),
    (".scale_input", "scale of an activation in 8 bits; axbake computes in 32 before it compiles"),
    (".input_scale", "scale of an activation in 8 bits; axbake computes in 32 before it compiles"),
    ("scaled_fp8", "says that weights in 8 bits have scales"),
    ("v_pred", "says that the UNet predicts the velocity"),
    ("ztsnr", "says that the schedule ends in pure noise"),
    ("safety_checker.", "checks finished pictures; not used to draw them"),
)
NOISE_SCHEDULE = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "lvlb_weights")


def describe_checkpoint(
    checkpoint: Path,
    vae: Path,
    *,
    family: str,
    title: str,
    components: Sequence[Component],
    latents: Latents,
    conditioning: Conditioning,
    fits: Callable[[Shapes], bool],
    prediction_type: str | None,
    sampling: Callable[..., Sampling],
    sha256: str,
    vae_sha256: str,
    description: Path,
    records: Sequence[Path] = (),
    prediction: str = "",
    sidecar: str = "",
) -> None:
    """Write what *checkpoint* is: family, configs, precision, parameters, and which tensors are not used and why.

    Args:
        vae: file that the autoencoder is taken from; mostly the checkpoint.
        family, title, components, latents, conditioning, fits: of its family; *prediction_type* and *sampling* of the family's
            process.
        sha256: of the file that the user brought.
        vae_sha256: the same of an autoencoder of its own; empty: it is the checkpoint's.
        description: JSON to write.
        records: what `axbake.fetch` says of a fetched file; none of one that the user brought.
        prediction, sidecar: as `axbake.weights.importing.import_denoiser` has them.

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, UnknownPrediction
    """
    container = open_checkpoint(checkpoint, averaged_namings(components))
    own = open_container(vae) if vae_sha256 else None
    fetched = json.loads(records[0].read_text(encoding="utf-8")) if records else None
    sha256 = fetched["sha256"] if fetched else sha256
    holders = {one.name: own if own and one.role in (ENCODER, DECODER) else container for one in components}
    (denoiser,) = (one for one in components if one.role == DENOISER)
    if not is_of(container, denoiser, fits):  # of a file that was fetched, seen only now
        raise UnknownFamily(
            f"{container.path}: its {denoiser.name} is not one of {title}, which the column family says. Correct the column;"
            f" `axbake inspect {container.path}` says what the file is."
        )
    found = {one.name: find_network(holders[one.name], one, latents) for one in components}
    check_texts(container.path, components, {name: one.config for name, one in found.items()}, conditioning)
    (decoder,) = (one for one in components if one.role == DECODER)
    evidence = gather_evidence(container, sidecar=sidecar)
    config = found[denoiser.name].config
    decided = decide_sampling(
        evidence,
        title=title,
        prediction_type=prediction_type,
        sampling=functools.partial(sampling, config),
        prediction=prediction,
        path=container.path,
        probe=None,
    )
    said = container.origin
    content = {
        "sha256": sha256,
        "autov2": sha256[:10],
        "vae_sha256": vae_sha256 or None,
        "fetched": fetched,
        "bytes": said.get("bytes", sum(path.stat().st_size for path in {s.path for s in container.tensors.values()})),
        "container": said.get("form", container.format),
        "left_out_of_pickle": sorted({*said.get("left_out", []), *said.get("leftovers", [])}),
        "family": family,
        "title": title,
        "variant": denoiser.variant(config) if denoiser.variant else title,
        "prediction_type": decided.prediction_type,
        "zero_terminal_snr": decided.zero_terminal_snr,
        "prediction_why": reasons(evidence, title=title, prediction_type=prediction_type, prediction=prediction),
        "steps": decided.steps,
        "guidance_embedded": decided.guidance_embedded,
        "unet_is_average": container.averaged,
        "scaling_factor": found[decoder.name].config.get("scaling_factor", 1.0),
        "components": {
            name: {
                "names": f"{network.prefix}…",
                "parameters": sum(math.prod(shape) for shape in network.shapes.values()),
                "stored": sorted({holders[name].tensors[origin.name].dtype for origin in network.origins.values()}),
                "precision": sorted({precision_of(holders[name], origin) for origin in network.origins.values()}),
                "scaled": sum(origin.scale is not None for origin in network.origins.values()),
                "config": network.config,
            }
            for name, network in found.items()
        },
        "unused_tensors": _unused(container, components, holders, found, own_vae=own is not None),
    }
    description.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _unused(
    container: Container,
    components: Sequence[Component],
    holders: dict[str, Container],
    found: dict[str, Found],
    *,
    own_vae: bool,
) -> list[dict]:
    """Tensors that no network has a use for, by why."""
    used = {
        name
        for component, network in found.items()
        if holders[component] is container
        for origin in network.origins.values()
        for name in (origin.name, origin.scale)
    }
    replaced = _names_of_vae(container, components) if own_vae else set()
    copies = {name for one in components if holders[one.name] is container for name in copies_of(container, one)}
    unused: dict[str, list[str]] = {}
    for name in sorted(set(container.tensors) - used):
        why = "the row's column vae names another VAE" if name in replaced else _why_unused(name)
        why = "equal to other tensors that are used" if name in copies else why
        unused.setdefault(why, []).append(name)
    return [{"why": why, "count": len(names), "first": names[:5]} for why, names in unused.items()]


def _names_of_vae(container: Container, components: Sequence[Component]) -> set[str]:
    """Names of the autoencoder's tensors in *container*, if it holds one."""
    halves = [one for one in components if one.role in (ENCODER, DECODER) and has_network(container, one)]
    found = [find_names(container, half)[1] for half in halves]
    return {origin.name for origins in found for origin in origins.values()}


def _why_unused(name: str) -> str:
    if any(name.startswith(start) for start in NOISE_SCHEDULE) and "." not in name:
        return "noise schedule of training; the scheduler column decides"
    # Names without prefix come with a dot too, so that both are the same here.
    return next((why for part, why in LEFTOVERS if part in f".{name}"), "unknown to this family")
