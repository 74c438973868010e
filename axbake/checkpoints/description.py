"""What a checkpoint is, for people and programs: `checkpoint.json`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from axbake.checkpoints.containers import Container, open_container
from axbake.checkpoints.importing import check_widths, sampling_of
from axbake.checkpoints.parts import find_family, find_names, find_part, has_part, open_checkpoint, precision_of
from axbake.checkpoints.prediction import gather_evidence, reasons
from axbake.families import COMPONENTS, VAE
from axbake.families.architecture import unet_variant

# Tensors that training leaves behind and no run of the model reads (CompVis' `ddpm.py`, Lightning, transformers 4).
LEFTOVERS = (
    ("model_ema.decay", "how training kept a moving average"),
    ("model_ema.num_updates", "how training kept a moving average"),
    (
        "model_ema.",
        "moving average of the UNet kept by training; the UNet itself is used, as web UIs, stable-diffusion.cpp and diffusers do",
    ),
    (".position_ids", "a constant: 0 to 76"),
    (".logit_scale", "only CLIP's training uses it"),
    (".text_projection", "only CLIP's pooled output uses it"),
    (".transformer.resblocks.23.", "Stable Diffusion 2.x takes what the last but one layer of its text encoder gives"),
    (".scale_input", "scale of an activation in 8 bits; axbake computes in 32 before it compiles"),
    (".input_scale", "scale of an activation in 8 bits; axbake computes in 32 before it compiles"),
    ("scaled_fp8", "says that weights in 8 bits have scales"),
    ("v_pred", "says that the UNet predicts the velocity"),
    ("ztsnr", "says that the schedule ends in pure noise"),
    ("safety_checker.", "looks at finished pictures; no part of drawing them"),
)
NOISE_SCHEDULE = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "lvlb_weights")


def describe_checkpoint(
    checkpoint: Path,
    vae: Path,
    *,
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
        sha256: of the file that the user brought.
        vae_sha256: the same of an autoencoder of its own; empty: it is the checkpoint's.
        description: JSON to write.
        records: what `axbake.fetch` says of a fetched file; none of one that the user brought.
        prediction, sidecar: as `import_checkpoint` has them.

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, UnknownPrediction
    """
    container = open_checkpoint(checkpoint)
    own = open_container(vae) if vae_sha256 else None
    fetched = json.loads(records[0].read_text(encoding="utf-8")) if records else None
    sha256 = fetched["sha256"] if fetched else sha256
    content = {"sha256": sha256, "autov2": sha256[:10], "vae_sha256": vae_sha256 or None, "fetched": fetched}
    content |= summary(container, vae=own, prediction=prediction, sidecar=sidecar)
    description.write_text(json.dumps(content, indent=1) + "\n")


def summary(container: Container, *, vae: Container | None = None, prediction: str = "", sidecar: str = "") -> dict:
    """What a checkpoint is, as `checkpoint.json` has it.

    Args:
        vae: what the autoencoder is taken from; None: the checkpoint.
    """
    family = find_family(container)
    holders = {component: vae if vae and component in VAE else container for component in COMPONENTS}
    parts = {component: find_part(holder, family, component) for component, holder in holders.items()}
    check_widths(container.path, parts["text_encoder"], parts["unet"])
    evidence = gather_evidence(container, sidecar=sidecar)
    sampling = sampling_of(container, family, parts["unet"], prediction, sidecar, probing=False)
    used = {
        name
        for component, part in parts.items()
        if holders[component] is container
        for source in part.sources.values()
        for name in (source.name, source.scale)
    }
    replaced = _names_of_vae(container) if vae else set()
    unused: dict[str, list[str]] = {}
    for name in sorted(set(container.tensors) - used):
        why = "the row's column vae names another VAE" if name in replaced else _why_unused(name)
        unused.setdefault(why, []).append(name)
    said = container.origin
    return {
        "bytes": said.get("bytes", sum(path.stat().st_size for path in {s.path for s in container.tensors.values()})),
        "container": said.get("form", container.format),
        "left_out_of_pickle": sorted({*said.get("left_out", []), *said.get("leftovers", [])}),
        "family": family.name,
        "title": family.title,
        "variant": unet_variant(parts["unet"].config),
        "prediction_type": sampling.prediction_type,
        "zero_terminal_snr": sampling.zero_terminal_snr,
        "prediction_why": reasons(evidence, family=family, prediction=prediction),
        "steps": sampling.steps,
        "guidance_embedded": sampling.guidance_embedded,
        "unet_is_average": container.averaged,
        "scaling_factor": parts["vae_decoder"].config["scaling_factor"],
        "components": {
            component: {
                "names": f"{part.prefix}…",
                "parameters": sum(math.prod(shape) for shape in part.shapes.values()),
                "stored": sorted({holders[component].tensors[s.name].dtype for s in part.sources.values()}),
                "precision": sorted({precision_of(holders[component], source) for source in part.sources.values()}),
                "scaled": sum(source.scale is not None for source in part.sources.values()),
                "config": part.config,
            }
            for component, part in parts.items()
        },
        "unused_tensors": [{"why": why, "count": len(names), "first": names[:5]} for why, names in unused.items()],
    }


def _names_of_vae(container: Container) -> set[str]:
    """Names of the autoencoder's tensors in *container*, if it holds one."""
    parts = [
        find_names(container.path, container.shapes, component, VAE[component].layouts)[1]
        for component in VAE
        if has_part(container, component)
    ]
    return {source.name for sources in parts for source in sources.values()}


def _why_unused(name: str) -> str:
    if any(name.startswith(start) for start in NOISE_SCHEDULE) and "." not in name:
        return "noise schedule of training; the scheduler column decides"
    # Names without prefix come with a dot too, so that both are the same here.
    return next((why for part, why in LEFTOVERS if part in f".{name}"), "unknown to this family")
