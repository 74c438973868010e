"""A table of many rows: one that cannot be baked does not stop the others, and the end says what became of each."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file, save_file

from tests.workflow.project import ROOT, ROW, Project

MISSING = ROW | {"model": "missing", "checkpoint": "checkpoints/nowhere.safetensors"}
BROKEN = ROW | {"model": "broken", "checkpoint": "checkpoints/broken.safetensors"}  # what only its import finds


def summary(project: Project) -> dict[str, dict[str, str]]:
    """Rows of results/summary.tsv by model."""
    with (project.directory / "results" / "summary.tsv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def batch(baked, tmp_path_factory):
    """A run of all rows, and what it said: one row is baked already, one has no checkpoint, one half of a VAE."""
    directory = tmp_path_factory.mktemp("batch")
    project = baked.copy(directory)
    tensors = load_file(project.directory / ROW["checkpoint"])
    del tensors["first_stage_model.decoder.conv_out.bias"]
    save_file(tensors, project.directory / BROKEN["checkpoint"])
    (project.directory / "results" / "tiny" / "unet.axmodel").unlink()
    project.write_rows(MISSING, BROKEN, ROW)
    return project, project.refusal()


def test_a_row_that_cannot_be_baked_does_not_stop_the_others(batch):
    project, _ = batch

    assert (project.directory / "results" / "tiny" / "unet.axmodel").is_file()
    assert not list((project.directory / "results" / "missing").glob("*.json"))


def test_rows_left_out_are_named_with_their_reason_before_the_first_job_and_at_the_end(batch):
    _, said = batch
    reason = "MissingCheckpoint: missing: checkpoints/nowhere.safetensors is not there."

    assert said.index(f"Left out: {reason}") < said.index("  build cache: ")
    assert f"  skipped    missing: {reason}" in said[said.index("3 models: 1 done, 1 failed, 1 skipped.") :]


def test_the_summary_says_which_models_are_done_failed_and_left_out(batch):
    project, said = batch
    rows = summary(project)
    distance = json.loads((project.directory / "results/tiny/simulation/distance.json").read_text())

    assert {model: row["state"] for model, row in rows.items()} == {
        "missing": "skipped",
        "broken": "failed",
        "tiny": "done",
    }
    assert float(rows["tiny"]["image_psnr_db"]) == distance["image_psnr_db"]
    assert rows["tiny"]["compiled"] == "emulated"
    assert rows["broken"]["why"].startswith("import_sd1: TensorMismatch: ")
    assert "decoder.conv_out.bias" in rows["broken"]["why"]
    assert rows["broken"]["log"] == "logs/broken/weights.log"
    assert "TensorMismatch" in (project.directory / rows["broken"]["log"]).read_text()
    assert "log: logs/broken/weights.log" in said


def test_the_page_over_all_models_leads_to_each_report_and_log(batch):
    project, _ = batch
    page = (project.directory / "results" / "report.html").read_text()

    assert 'href="tiny/report.html"' in page
    assert 'href="../logs/broken/weights.log"' in page
    assert "MissingCheckpoint" in page


def test_the_next_run_has_only_to_say_again_what_it_leaves_out(batch):
    project, _ = batch
    project.write_rows(MISSING, ROW)

    assert project.plan().jobs == {"refuse_row": 1}
    assert "refuse_row" in project.planner()
    assert "2 models: 1 done, 1 skipped." in project.refusal()

    project.write_rows(ROW)
    assert "Nothing to be done" in project.bake()


# What is wrong with a row's sources -> its cells, and the words that leave it out
SOURCES = {
    "no checkpoint": ({"checkpoint": "checkpoints/nowhere.ckpt"}, "MissingCheckpoint: other"),
    "another checkpoint": ({"sha256": "0123456789"}, "WrongChecksum: other"),
    "half a checkpoint": (
        {"checkpoint": "checkpoints/half.safetensors"},
        "UnreadableCheckpoint: other: checkpoints/half",
    ),
    "another family": ({"family": "sd2"}, "WrongFamily: other"),
    "no family of what is to be fetched": (
        {"checkpoint": "https://example.org/a.safetensors", "sha256": "0" * 64},
        "MissingFamily: other",
    ),
    "a folder that is no model": ({"checkpoint": "config"}, "UnreadableCheckpoint: other: config: a folder"),
    "no VAE": ({"vae": "vae/nowhere.safetensors"}, "vae/nowhere.safetensors"),
    "no embedding": ({"embeddings": "embeddings/nowhere.pt"}, "MissingEmbedding: other"),
    "no LoRA": ({"loras": "loras/nowhere.safetensors"}, "MissingLora: other"),
    "a LoRA that is none": ({"loras": "config/notes.safetensors"}, "LoraError: other: config/notes.safetensors"),
}


def test_whatever_a_row_lacks_the_others_are_planned(baked, tmp_path):
    project = baked.copy(tmp_path)
    (project.directory / "config" / "notes.safetensors").write_text("not tensors")
    whole = (project.directory / ROW["checkpoint"]).read_bytes()
    (project.directory / "checkpoints" / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    others = [ROW | changed | {"model": f"other{n}"} for n, (changed, _) in enumerate(SOURCES.values())]
    project.write_rows(ROW, *others)

    plan = project.plan()

    assert plan.jobs == {"refuse_row": len(SOURCES)}
    for number, (_, words) in enumerate(SOURCES.values()):
        assert re.search(f"Left out: .*{words.replace('other', f'other{number}')}", plan.text), (number, plan.text)


def test_a_row_asked_for_by_name_without_its_checkpoint_is_an_error(batch):
    project, _ = batch
    project.write_rows(MISSING, ROW)

    said = project.refusal("results/missing/unet.axmodel")

    assert "MissingCheckpoint: missing: checkpoints/nowhere.safetensors is not there." in said
    assert "build cache: " not in said  # the run has not begun


def test_the_table_that_is_shipped_has_no_row_that_cannot_be_baked(tmp_path):
    project = Project(tmp_path / "project", tmp_path / "cache")
    shutil.copytree(ROOT / "config", project.directory / "config")
    (project.directory / "resources").symlink_to(ROOT / "resources")

    said = project.bake("--dry-run")

    assert "Left out" not in said and "refuse_row" not in said


SLEEPER = """#!/bin/sh
[ "$1" = version ] && echo "version: 4.2" && exit 0
touch "$(dirname "$0")/begun"
exec sleep 600
"""


@pytest.mark.parametrize("target", [[], ["results/tiny/unet.axmodel"]], ids=["all rows", "a named target"])
def test_ctrl_c_is_an_interrupt_and_no_failure(target, project, tmp_path):
    place = tmp_path / "bin"
    place.mkdir()
    (place / "pulsar2").write_text(SLEEPER)
    (place / "pulsar2").chmod(0o755)
    project.edit("config/config.yaml", "toolchain: emulator", "toolchain: native")
    environment = project.environment | {"PATH": f"{place}:{os.environ['PATH']}"}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    run = subprocess.Popen([*project.command, *target], cwd=project.directory, env=environment, **how)
    while not (place / "begun").exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.1)

    os.killpg(run.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    said, _ = run.communicate()

    assert run.returncode != 0
    assert "1 model: 1 unfinished." in said and "interrupted; the same command goes on where it stopped" in said
    assert "Interrupted: Compiling the " in said
    assert "because memory" not in said and "FAILED" not in said
    if not target:
        assert summary(project)["tiny"]["state"] == "unfinished"
        assert "interrupted" in (project.directory / "results" / "report.html").read_text()


def test_a_named_target_that_fails_has_a_summary_too(batch):
    project, _ = batch
    project.write_rows(BROKEN, ROW)

    said = project.refusal("results/broken/weights/unet.safetensors")

    assert "1 model: 1 failed.\n  failed     broken: import_sd1: TensorMismatch: " in said
    assert "log: logs/broken/weights.log" in said and "summary.tsv" not in said


def test_a_poor_picture_is_not_called_done(project):
    project.edit("config/config.yaml", "    psnr: 10 #", "    psnr: 98 #")

    said = project.bake()

    why = "picture against reference: PSNR "
    assert f"tiny/report: POOR {why}" in said and "1 model: 1 poor.\n  poor       tiny: " + why in said
    assert "Try: " in said and " loses most: " in said
    assert summary(project)["tiny"]["state"] == "poor"
    assert 'class="verdict poor"' in (project.directory / "results" / "report.html").read_text()
