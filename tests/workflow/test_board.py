"""Snakemake brings a bundle to a board that is played, measures it there, and makes a page of it."""

import base64
import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.board.played import recorded
from tests.double.container import wrap
from tests.services.sshd import free_port
from tests.workflow.project import COMPONENTS, ROW

PAGE, SERVED = "results/tiny/board/report.html", "results/tiny/board/served.json"
# The models are compiled already in these tests: what is tried is what follows.
RULES = ["write_bundle", "deploy_bundle", "benchmark_board", "serve_board", "write_board_report"]
AFTER_COMPILING = ["--allowed-rules", *RULES, "--"]


def results(project, name) -> Path:
    return project.directory / "results" / "tiny" / name


@pytest.fixture
def on_board(project, board):
    """A project with a board, whose models have the container of Pulsar2's, and the pictures that the emulator's drew."""
    path = project.directory / "config" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.dump(config | {"toolchain": "native", "board": board.measuring | {"serve_port": free_port()}}))
    for component in COMPONENTS:
        model, emulated = results(project, f"{component}.axmodel"), project.directory / f"{component}.onnx"
        model.rename(emulated)
        wrap(emulated, model, version="4.2", commit="played00", hardware="AX650", mode="NPU3")
        record = results(project, f"build/{component}.json")
        content = json.loads(record.read_text()) | {"toolchain": "native", "emulated": False, "version": "4.2 played"}
        record.unlink()  # it may be a hard link of the build cache
        record.write_text(json.dumps(content))
    return project


@pytest.fixture
def ended(board):
    """What `serve_board` starts goes on without it."""
    yield
    for number in board.directory.glob(".serve-*.pid"):
        os.kill(int(number.read_text()), signal.SIGTERM)


def test_a_compiled_model_is_deployed_measured_served_and_shown(on_board, board, ended):
    on_board.bake(*AFTER_COMPILING, PAGE, SERVED)

    served = json.loads(results(on_board, "board/served.json").read_text())
    picture = results(on_board, "board/served.png").read_bytes()
    assert picture == results(on_board, "board/image.png").read_bytes()
    assert served["picture_sha256"] == hashlib.sha256(picture).hexdigest()
    assert served["drawing"]["total_seconds"] < served["seconds_to_answer"]
    assert served["kept_by"].startswith("nothing")  # no systemd on the board that is played
    assert board.settings["host"] not in json.dumps(served)

    said = json.loads(results(on_board, "board/benchmark.json").read_text())
    assert (said["ran_on"], said["emulated"]) == ("board", False)
    assert set(said["drawings"]) == {ROW["steps"], "10", "20"}
    assert all(len(steps) == 4 for steps in said["drawings"]["4"]["seconds_of_each_step"])
    assert said["host"]["packages"]["numpy"] == np.__version__
    # Board and simulation run the same models by the same program; only the number of threads may differ.
    drawn, simulated = (
        np.asarray(Image.open(results(on_board, f"{name}/image.png"))) for name in ("board", "simulation")
    )
    assert np.abs(drawn.astype(int) - simulated).max() <= 2
    apart = json.loads(results(on_board, "board/distance.json").read_text())
    assert apart["simulation"]["psnr_db"] > 45 and apart["reference"]["psnr_db"] > 15
    page = results(on_board, "board/report.html").read_text()
    for picture in ("board", "reference", "simulation"):
        assert base64.b64encode(results(on_board, f"{picture}/image.png").read_bytes()).decode() in page
    assert "Not measured on a board" not in page
    there = board.directory / "tiny"
    assert (there / "unet.axmodel").read_bytes() == results(on_board, "unet.axmodel").read_bytes()

    assert "Nothing to be done" in on_board.bake(*AFTER_COMPILING, PAGE)
    on_board.edit("config/config.yaml", "  pictures: 2", "  pictures: 3")
    assert on_board.plan(*AFTER_COMPILING, PAGE).jobs == {"benchmark_board": 1, "write_board_report": 1}
    on_board.edit("config/config.yaml", f"  directory: {board.directory}", f"  directory: {board.directory}/other")
    assert on_board.plan(*AFTER_COMPILING, PAGE).jobs == {
        "deploy_bundle": 1,
        "benchmark_board": 1,
        "write_board_report": 1,
    }


def test_a_board_that_cannot_take_it_ends_the_run_in_words_and_leaves_nothing(on_board, board):
    board.play("axcl-smi", recorded("axcl-smi.driver.txt"), status=1)

    said = on_board.refusal(*AFTER_COMPILING, PAGE)

    assert "MissingDriver: axcl-smi: 0x8030010b: the card's driver is not loaded" in said
    assert "Traceback" not in said
    assert not list(results(on_board, "board").rglob("*.json"))
    assert "Traceback" in (on_board.directory / "logs" / "tiny" / "board" / "deployment.log").read_text()


def test_a_project_without_a_board_or_with_emulated_models_is_told_so_before_anything_starts(project):
    assert "no board: set board/host in the config" in project.refusal(PAGE)

    project.edit("config/config.yaml", '  host: ""', "  host: somewhere")
    said = project.refusal(PAGE)
    assert "tiny: toolchain is emulator in config; its models run on hosts, not on boards" in said
    assert "Traceback" not in said


def test_pulsar2s_models_are_simulated_by_the_emulators_of_the_same_graphs(project):
    project.edit("config/config.yaml", "toolchain: emulator", "toolchain: native")
    project.edit("config/config.yaml", '  host: ""', "  host: somewhere")

    jobs = project.plan(PAGE).jobs

    assert (jobs["compile_model"], jobs["emulate_model"], jobs["simulate"]) == (4, 4, 1)


def test_a_host_runs_the_same_program_and_is_called_no_board(project):
    project.edit("config/config.yaml", "pictures: 5", "pictures: 1")

    project.bake("results/tiny/host/report.html")

    said = json.loads(results(project, "host/benchmark.json").read_text())
    assert (said["ran_on"], said["emulated"]) == ("host", True)
    page = results(project, "host/report.html").read_text()
    assert "Not measured on a board" in page and "emulated models that no board" in page
    drawn, simulated = (
        np.asarray(Image.open(results(project, f"{name}/image.png"))) for name in ("host", "simulation")
    )
    assert np.array_equal(drawn, simulated)
