"""Content decides: real work after an edit is exactly what the edit affects, and the plan said so before."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import REPORT
from tests.workflow.project import ROOT, ROW, Project

SETTINGS = re.compile(r"^(stored|build|unknown|run) +(\S+)", re.MULTILINE)


def plan(project: Project) -> dict[str, str]:
    """What the planner says of each job: step and component -> stored, build, unknown or run."""
    command = [sys.executable, "-m", "axbake.plan", REPORT, "--snakefile", ROOT / "Snakefile", "--cores", "2"]
    environment = os.environ | {"PYTHONPATH": str(project.checkout)}
    done = subprocess.run(command, cwd=project.directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: kind for kind, name in SETTINGS.findall(done.stdout)}


def real_work(project: Project) -> set[str]:
    """Jobs that do real work in a run of the project: their logs say that they build."""
    logs = project.directory / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    project.bake(REPORT)
    return {
        job_name(path.relative_to(logs / "tiny")) for path in logs.rglob("*.log") if "building: " in path.read_text()
    }


def job_name(log: Path) -> str:
    """Rule and component of a job, by its log."""
    step, component = (log.parts[0], log.stem) if len(log.parts) > 1 else (log.stem, "")
    rules = {
        "weights": "import_checkpoint",
        "checkpoint": "describe_checkpoint",
        "embeddings": "list_embeddings",
        "reference": "draw_reference",
        "schedule": "derive_schedule",
        "onnx": "export_onnx",
        "parity": "check_parity",
        "build": "compile_model",
        "simulation": "simulate",
    }
    if step == "calibration":
        own = {"trajectories": "record_trajectories", "pictures": "draw_pictures", "latents": "encode_pictures"}
        return own.get(component, f"calibrate_{component}")
    if (step, component) == ("weights", "text_encoder"):
        return "import_text_encoder"
    if component.endswith(".config"):
        return f"configure_build/{component.removesuffix('.config')}"
    return f"{rules[step]}/{component}" if component else rules[step]


def row(**cells: str):
    return lambda project: project.write_rows(ROW | cells)


def config(old: str, new: str):
    return lambda project: project.edit("config/config.yaml", old, new)


def touch(project: Project) -> None:
    for path in project.directory.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)


def forget(project: Project) -> None:
    shutil.rmtree(project.directory / ".snakemake")
    shutil.rmtree(project.directory / ".axbake")


def clone(project: Project) -> None:
    """As after `git clone`: nothing is there but what the user brings; the cache is kept."""
    forget(project)
    for name in ("results", "logs", "benchmarks"):
        shutil.rmtree(project.directory / name)


def same_checkpoint_elsewhere(project: Project) -> None:
    shutil.copy(project.directory / ROW["checkpoint"], project.directory / "checkpoints" / "copy.safetensors")
    project.write_rows(ROW | {"checkpoint": "checkpoints/copy.safetensors"})


def another_name(project: Project) -> None:
    """Rows and results are the model's of another name."""
    project.write_rows(ROW, ROW | {"model": "other"})


PICTURES = {"draw_reference", "simulate"}
UNET = {"record_trajectories", "calibrate_unet", "compile_model/unet", "simulate"}
TEXT_ENCODER = {"import_text_encoder"} | {
    f"{step}/text_encoder" for step in ("export_onnx", "check_parity", "compile_model")
}
# What is edited -> jobs that do real work
EDITS = {
    "touch everything": (touch, set()),
    "delete .snakemake": (forget, set()),
    "clone anew": (clone, set()),
    "the same checkpoint under another name": (same_checkpoint_elsewhere, set()),
    "one other model's row": (another_name, set()),
    "where the checkpoint is had": (row(source="https://example.org/elsewhere"), set()),
    "a version that is not used": (config('"4.2"', '"5.0"'), set()),
    "a threshold of parity": (config("    unet: 60", "    unet: 55"), {"check_parity/unet"}),
    "reference prompt": (row(prompt="a tractor"), PICTURES),
    "seed": (row(seed="8"), PICTURES),
    "samples": (config("samples: 8", "samples: 9"), UNET - {"record_trajectories"}),
    "calibration prompt": (lambda p: p.edit(ROW["calibration_prompts"], "penguin", "tractor"), UNET),
    "negative prompt": (row(negative_prompt="ugly"), UNET | PICTURES),
    "guidance": (row(guidance_scale="6"), UNET | PICTURES),
    "steps": (row(steps="5"), UNET | PICTURES | {"derive_schedule"}),
    "scheduler": (row(scheduler="ddim"), UNET | PICTURES | {"derive_schedule"}),
    "clip skip": (row(clip_skip="2"), UNET | PICTURES | TEXT_ENCODER),
    "Pulsar2 option of the VAE": (
        config("  vae_decoder: U16", "  vae_decoder: S16"),
        {"configure_build/vae_decoder", "compile_model/vae_decoder", "simulate"},
    ),
    "height": (
        row(height="72"),
        UNET
        | PICTURES
        | {"draw_pictures", "encode_pictures", "calibrate_vae_encoder", "calibrate_vae_decoder"}
        | {
            f"{step}/{part}"
            for step in ("export_onnx", "check_parity")
            for part in ("unet", "vae_encoder", "vae_decoder")
        }
        | {"compile_model/vae_encoder", "compile_model/vae_decoder"},
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_real_work_is_exactly_what_the_edit_affects_and_none_once_it_is_taken_back(project, what):
    edit, affected = EDITS[what]
    before = {path: path.read_bytes() for path in (project.directory / "config").rglob("*") if path.is_file()}
    edit(project)

    planned = plan(project)
    assert {name for name, kind in planned.items() if kind == "build"} <= affected
    assert affected <= {name for name, kind in planned.items() if kind in ("build", "unknown")}
    assert real_work(project) == affected

    for path, content in before.items():
        path.write_bytes(content)
    assert "build" not in plan(project).values()
    assert real_work(project) == set()
    assert plan(project) == {}


def test_another_model_of_the_same_checkpoint_compiles_nothing_anew(project):
    project.write_rows(ROW, ROW | {"model": "other"})
    project.bake("results/other/report.html")

    logs = project.directory / "logs" / "other"
    worked = {path.relative_to(logs).as_posix() for path in logs.rglob("*.log") if "building: " in path.read_text()}
    assert worked == {"reference.log", "simulation.log"}  # their pictures name the model


def test_a_checkpoint_of_other_bytes_and_an_older_date_is_another_checkpoint(project):
    path = project.directory / ROW["checkpoint"]
    content, past = path.read_bytes(), path.stat().st_mtime - 86400
    path.write_bytes(content[:-2] + bytes(2))  # the last tensor's last value, of the file's last component
    os.utime(path, (past, past))

    worked = real_work(project)

    imported = {f"import_checkpoint/{part}" for part in ("unet", "vae_encoder", "vae_decoder")} | {
        "import_text_encoder"
    }
    assert imported < worked
    compiled = {name for name in worked if name.startswith("compile_model")}
    assert len(compiled) == 1  # the component that the value is of


def test_the_reason_of_a_build_is_told_in_values(project):
    project.write_rows(ROW | {"seed": "8"})
    project.edit(ROW["calibration_prompts"], "penguin", "tractor")
    project.bake(REPORT)

    logs = project.directory / "logs" / "tiny"
    assert "building: draw_reference: seed 7 → 8" in (logs / "reference.log").read_text().replace("seed: ", "seed ")
    assert "prompt 2 changed" in (logs / "calibration" / "trajectories.log").read_text()
    assert "prompt 2 changed" in (logs / "build" / "unet.log").read_text()
