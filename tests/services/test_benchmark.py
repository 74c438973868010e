"""Bundles that are measured on a board, over a real sshd: one at a time, and with an end in words when that cannot be."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from axbake.board.benchmark import benchmark_board
from axbake.board.deploy import deploy_bundle
from axbake.board.errors import BusyCard, ConnectionLost, EmulatedModel, FailedOnBoard, MissingProgram, UnreadableOutput
from tests.board.bundle import EMULATOR, ROLES, SIZE, write_bundle
from tests.board.played import CARD, recorded, recorded_smi

DEADLINE = 600  # seconds for what takes one; machines that run tests are slow


def within_deadline(happened) -> bool:
    """Whether *happened* becomes true before long."""
    end = time.monotonic() + DEADLINE
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()


@pytest.fixture
def manifest(board, tmp_path):
    """A bundle that is on the board."""
    manifest = write_bundle(tmp_path / "bundle")
    shutil.copytree(manifest.parent, board.directory / "tiny")
    return manifest


@pytest.fixture
def measure(board, manifest, tmp_path):
    """A function that measures; gives what the benchmark says."""

    def run(name="benchmark", **other):
        place = tmp_path / name
        place.mkdir()
        made = {"benchmark": place / "benchmark.json", "image": place / "image.png"}
        try:
            benchmark_board(**{"manifest": manifest, **board.measuring, **made, **other})
        except Exception:
            assert not list(place.iterdir())  # an error leaves no result
            raise
        return json.loads(made["benchmark"].read_text())

    return run


def calls(board, program="axcl_run_model"):
    """Models that the board's benchmark program was given."""
    path = board.programs / f"{program}.calls"
    return path.read_text().split() if path.exists() else []


def test_models_and_pictures_are_measured_with_the_card_they_were_on(board, measure, tmp_path):
    said = measure()

    assert (said["ran_on"], said["emulated"], said["model"]) == ("board", False, "tiny")
    assert calls(board) == [f"{name}.axmodel" for name in said["models"]] and set(said["models"]) == set(ROLES)
    assert said["models"]["unet"]["device_ms"] == {"min": 3.391, "max": 3.414, "avg": 3.402}
    assert said["models"]["unet"]["cmm_bytes"] == 10488066
    assert said["models"]["unet"]["versions"] == {"axclrt": "1.0.0", "pulsar2": "3.2 99cf147d", "tool": "0.0.1"}
    assert (said["board"]["card"], said["board"]["firmware"], said["board"]["cmm_mib"]) == ("AX650N", "V3.6.4", 7040)
    assert said["board"]["driver"] == "V3.6.4_20250805020145"
    assert said["board"]["temperature_c"] == dict.fromkeys(["start", *said["models"], "20", "10"], 41)
    drawn = said["drawings"]["20"]
    assert drawn["pictures"] == 2 and drawn["step_seconds"] == {"median": 0.5, "min": 0.5, "max": 0.5, "count": 40}
    assert drawn["total_seconds"]["median"] == pytest.approx(10.78)
    assert drawn["load_seconds"] == {"text_encoder": 1.0, "unet": 9.0, "vae_decoder": 1.0}
    assert drawn["beside_device_ms"]["unet"] == pytest.approx(250 - 3.402)
    assert Image.open(tmp_path / "benchmark" / "image.png").getpixel((0, 0)) == (7, 20, 0)  # the row's seed and steps
    assert Image.open(tmp_path / "benchmark" / "image.png").size == SIZE[::-1]
    assert board.settings["host"] not in json.dumps(said)  # the page may be shown around
    assert [path.name for path in board.directory.iterdir()] == ["tiny"]


def test_each_graph_of_a_component_is_measured_and_the_component_is_beside_all_of_them(board, measure, tmp_path):
    manifest = write_bundle(tmp_path / "chain", model="chain", graphs=("down", "up"))
    shutil.copytree(manifest.parent, board.directory / "chain")

    said = measure(manifest=manifest)

    assert list(said["models"]) == ["text_encoder", "unet/down", "unet/up", "vae_encoder", "vae_decoder"]
    assert calls(board) == [f"{name}.axmodel" for name in said["models"]]
    assert said["models"]["unet/up"]["file"] == "unet/up.axmodel"
    drawn = said["drawings"]["20"]
    assert list(drawn["run_ms"]) == ["text_encoder", "unet", "vae_decoder"]
    assert drawn["beside_device_ms"]["unet"] == pytest.approx(250 - 2 * 3.402)


def test_a_hundred_repeats_bring_medians(measure):
    said = measure(repeats=100)

    assert said["models"]["unet"]["device_ms"]["median"] == 7.799
    assert said["models"]["unet"]["device_ms"]["99%"] == 7.929
    assert said["drawings"]["20"]["beside_device_ms"]["vae_decoder"] == pytest.approx(750 - 7.799)


def test_a_board_whose_own_chip_it_is_needs_no_axcl(board, measure):
    (board.programs / "axcl-smi").unlink()
    cat = board.programs / "cat"
    memory = board.programs.parent / "recorded" / "mem_cmm_info.txt"
    cat.write_text(
        f'#!/bin/sh\ncase "$1" in /proc/ax_proc/*) /bin/cat {memory}; echo 52300;; *) exec /bin/cat "$@";; esac\n'
    )
    cat.chmod(0o755)

    said = measure(kind="soc", device=0)

    assert len(calls(board, "ax_run_model")) == 4
    assert said["models"]["unet"]["device_ms"]["avg"] == 0.721
    assert said["models"]["unet"]["versions"]["engine"] == "2.3.0a"
    assert (said["board"]["cmm_mib"], said["board"]["temperature_c"]["start"]) == (10240, 52)


def test_a_card_that_somebody_else_uses_is_left_alone(board, measure):
    board.play("axcl-smi", recorded_smi(process=True))

    with pytest.raises(BusyCard, match=rf"/opt/bin/axcl/axcl_run_model \(process 763\) is using card {CARD}"):
        measure()

    assert calls(board) == []


def test_two_benchmarks_of_one_card_run_one_after_the_other(board, measure, caplog):
    caplog.set_level(logging.INFO)
    (board.programs / "axcl_run_model.wait").touch()
    said = {}
    threads = [threading.Thread(target=lambda name=name: said.update({name: measure(name)})) for name in ("one", "two")]
    for thread in threads:
        thread.start()

    assert within_deadline(lambda: "another benchmark is running there; waiting for it" in caplog.text)
    (board.programs / "axcl_run_model.wait").unlink()
    for thread in threads:
        thread.join()

    assert set(said) == {"one", "two"}
    assert len(calls(board)) == 8
    assert not (board.programs / "axcl_run_model.together").exists()


def test_a_benchmark_whose_host_dies_frees_the_card(board, manifest, measure, tmp_path):
    (board.programs / "axcl_run_model.wait").touch()
    outputs = f"benchmark=Path({str(tmp_path / 'b.json')!r}), image=Path({str(tmp_path / 'i.png')!r})"
    code = f"""
from pathlib import Path
from axbake.board.benchmark import benchmark_board
benchmark_board(manifest=Path({str(manifest)!r}), {outputs}, **{board.measuring!r})
"""
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)})
    running = board.programs / "axcl_run_model.running"
    assert within_deadline(running.exists)

    process.kill()
    process.wait()

    assert within_deadline(lambda: not running.exists())
    (board.programs / "axcl_run_model.wait").unlink()
    assert measure()["models"]
    assert not (board.programs / "axcl_run_model.together").exists()


def test_a_connection_that_breaks_ends_in_words_and_the_next_run_measures(board, measure):
    (board.programs / "axcl_run_model.cut").touch()

    with pytest.raises(
        ConnectionLost, match=r"the connection ended while it was at 'model:\w+' .*Run the same command"
    ):
        measure()

    (board.programs / "axcl_run_model.cut").unlink()
    assert within_deadline(lambda: not (board.programs / "axcl_run_model.running").exists())
    assert measure("again")["models"]


def test_output_that_cannot_be_read_ends_the_benchmark(board, measure):
    board.play("axcl_run_model", recorded("axcl_run_model.short.txt").replace("avg =   3.402 ms", "avg = fast"))

    with pytest.raises(UnreadableOutput, match=r"axcl_run_model printed: Run AxModel.*wanted avg = … ms"):
        measure()

    assert within_deadline(lambda: not (board.programs / "axcl_run_model.running").exists())


def test_a_model_that_does_not_load_is_quoted_and_is_no_lost_connection(board, measure):
    # 255 is also how ssh ends when the connection does.
    board.play("axcl_run_model", "[ERROR] Loading model {text_encoder.axmodel} failed.\n", status=255)

    with pytest.raises(
        FailedOnBoard, match=r"axcl_run_model failed on the \w+ \(status 255\): \[ERROR\] Loading model"
    ):
        measure()


def test_a_card_without_resources_is_told_what_to_do(board, measure):
    board.play("axcl_run_model", "axcl init fail, ret = 0x8006008a\n", status=255)

    with pytest.raises(
        FailedOnBoard, match=r"0x8006008a: the card has no resources left\. End the programs that use it"
    ):
        measure()


def test_what_was_changed_on_the_board_is_not_measured(board, measure):
    (board.directory / "tiny" / "unet.axmodel").write_bytes(b"\x08\x0a\x12\x07Pulsar2")

    with pytest.raises(
        FailedOnBoard, match=r"does not match what was copied there; delete results/tiny/board/deployment.json"
    ):
        measure()

    assert calls(board) == []


def test_a_bundle_that_is_gone_from_the_board_is_to_be_copied_anew(board, measure):
    shutil.rmtree(board.directory / "tiny")

    with pytest.raises(FailedOnBoard, match=r"no directory .*/tiny there; delete results/tiny/board/deployment.json"):
        measure()


def test_programs_that_are_missing_are_all_named(board, measure):
    for name in ("axcl-smi", "axcl_run_model"):
        (board.programs / name).unlink()

    with pytest.raises(MissingProgram, match=r"axcl_run_model, axcl-smi: axclhost, the card's driver package"):
        measure()


def python_that(board, does: str) -> str:
    """A python of the board that, given txt2img.py, does something else."""
    program = board.programs / "other-python"
    program.write_text(f'#!/bin/sh\ncase "$1" in txt2img.py) {does};; esac\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_packages_that_the_board_lacks_are_named(board, measure):
    program = board.programs / "bare-python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I "$@"\n')  # without PYTHONPATH, and so without axengine
    program.chmod(0o755)

    with pytest.raises(MissingProgram, match=r"bare-python lacks axengine \(ModuleNotFoundError.*pip install -r"):
        measure(python=str(program))
    with pytest.raises(FailedOnBoard, match=r"nowhere/python does not run \(board/python in config\)"):
        measure("other", python="/nowhere/python")

    assert calls(board) == []


def test_a_program_of_the_bundle_that_fails_is_quoted(board, measure):
    python = python_that(board, "echo 'BundleError: unet.axmodel: no device' >&2; exit 1")

    with pytest.raises(FailedOnBoard, match=r"txt2img.py failed at 20 steps \(status 1\): BundleError: unet.axmodel"):
        measure(python=python)


def test_timings_of_another_form_are_refused(board, measure):
    python = python_that(board, f"echo '{{}}' >{board.directory}/.measured-card-{CARD}/20.json; exit 0")

    with pytest.raises(UnreadableOutput, match=r"timings do not match docs/bundles.md: KeyError"):
        measure(python=python)


def test_an_emulated_model_is_refused_before_the_board_is_asked(measure, tmp_path):
    emulated = write_bundle(tmp_path / "emulated", head=EMULATOR)

    with pytest.raises(EmulatedModel, match="it runs on hosts, not on boards"):
        measure(manifest=emulated, host="nowhere.invalid")


def test_a_bundle_that_was_deployed_is_measured(board, measure, manifest, tmp_path):
    shutil.rmtree(board.directory)
    deploy_bundle(manifest=manifest, deployment=tmp_path / "deployment.json", **board.settings)

    assert (
        measure()["models"]["unet"]["sha256"]
        == json.loads((tmp_path / "deployment.json").read_text())["files"]["unet.axmodel"]
    )
