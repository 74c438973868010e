"""What the benchmarks share: a model of full size to measure on, and a process's time and peak memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # run as a file, from anywhere

if TYPE_CHECKING:
    from axbake.families.family import Family


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float  # wall time, its imports included
    gib: float  # peak resident memory of it, as the kernel counts: mapped pages of files are in it
    said: str = ""  # its standard output


def run(script: str, *arguments: object) -> Cost:
    """Run a script of `bench/` in a process of its own."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / "bench" / script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"{script} {' '.join(map(str, arguments))}: ended with status {os.waitstatus_to_exitcode(status)}")
    return Cost(seconds, usage.ru_maxrss / 2**20, said)


def median(costs: Sequence[Cost]) -> Cost:
    """Medians of time and of memory."""
    return Cost(statistics.median(c.seconds for c in costs), statistics.median(c.gib for c in costs))


def import_part(
    checkpoint: Path,
    loras: Sequence[Path] = (),
    *,
    component: str,
    weights: Path,
    family: str = "sd1",
    strengths: Sequence[float] = (),
) -> None:
    """Import one component, as the workflow does (`import_step` in workflow/rules/import.smk)."""
    from axbake.families import FAMILIES
    from axbake.networks.component import DENOISER, TEXT, as_files
    from axbake.weights.importing import import_component, import_denoiser, import_text_encoder

    of = FAMILIES[family]
    part = of.component(component)
    if part.role not in (TEXT, DENOISER):
        import_component(checkpoint, component=as_files(part), family="", latents=of.latents, weights=weights)
        return
    given: dict[str, Any] = {"component": as_files(part), "family": of.name, "title": of.title, "latents": of.latents}
    given |= {"weights": weights, "strengths": strengths}
    if part.role == TEXT:
        import_text_encoder(checkpoint, loras, **given, clip_skip=1, shortened=of.clip_skip)
        return
    process = {"prediction_type": of.process.prediction_type, "sampling": of.process.sampling}
    import_denoiser(checkpoint, loras, **given, **process, prediction="", sidecar="")


def full_size(directory: Path) -> dict[str, Path]:
    """Weights of a random checkpoint of Stable Diffusion 1.5's size, by component; made in *directory* where they are not yet."""
    from axbake.families import FAMILIES

    directory.mkdir(parents=True, exist_ok=True)
    checkpoint = directory / "random-sd15.safetensors"
    if not checkpoint.is_file():
        subprocess.run([sys.executable, ROOT / "bench" / "random_checkpoint.py", checkpoint], check=True)
    weights = {component: directory / f"{component}.safetensors" for component in FAMILIES["sd1"].names}
    for component, path in weights.items():
        if not path.is_file():
            import_part(checkpoint, component=component, weights=path)
    return weights


def _unet_columns(height: int, width: int) -> dict[str, Any]:
    """What the graph of Stable Diffusion 1.x' UNet depends on."""
    return {"height": height, "width": width, "prompt_chunks": 1, "program": "axera"}


def export_unet(weights: Path, graph: Path, *, height: int, width: int) -> None:
    """Export Stable Diffusion 1.x' UNet to *graph*, as the workflow does, with its tensors beside it."""
    from axbake.families import FAMILIES
    from axbake.graphs.export import export_onnx

    denoiser = FAMILIES["sd1"].denoiser
    (piece,) = denoiser.graphs
    of = {"build": denoiser.build, "piece": piece, "columns": _unet_columns(height, width)}
    export_onnx(weights, **of, graph=graph, tensors=graph.with_name(f"{graph.name}.data"))


def denoiser_configs(family: Family) -> list[dict[str, Any]]:
    """Pulsar2's config of each graph of a family's denoiser, activations U16, to which the user adds nothing."""
    from axbake.networks.component import columns_of
    from axbake.toolchain.build_config import Build, build_config

    denoiser = family.denoiser
    columns = columns_of(denoiser, _unet_columns(64, 64))
    builds = [
        Build(piece.name, denoiser.name, denoiser.role, piece.inputs(**columns), "U16", "AX650", "NPU3")
        for piece in denoiser.graphs
    ]
    return [build_config(build, {}) for build in builds]


def diffusers_folder(directory: Path) -> Path:
    """The same model as a folder that `StableDiffusionPipeline.from_pretrained` reads, fp16, as hubs have them."""
    folder = directory / "diffusers"
    if not (folder / "model_index.json").is_file():
        import torch
        from diffusers import AutoencoderKL, StableDiffusionPipeline
        from transformers import CLIPTokenizer

        from axbake.drawing.schedule import build_scheduler
        from axbake.families import FAMILIES
        from axbake.weights.files import read_description
        from axbake.weights.networks import load

        weights = full_size(directory)
        networks = {
            component.name: load(weights[component.name], component.build, dtype=torch.float16)
            for component in FAMILIES["sd1"].components
        }
        halves = [networks[half] for half in ("vae_encoder", "vae_decoder")]
        vae = AutoencoderKL.from_config(read_description(weights["vae_encoder"]).config).to(torch.float16)
        vae.load_state_dict({name: tensor for half in halves for name, tensor in half.state_dict().items()})
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=networks["text_encoder"],
            tokenizer=CLIPTokenizer.from_pretrained(ROOT / "resources" / "clip", local_files_only=True),
            unet=networks["unet"],
            scheduler=build_scheduler("dpmpp_2m_karras"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder
