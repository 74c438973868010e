"""Builds by a double of the compiler: models that are what was asked for, or words that say what failed and what to try."""

import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest

from axbake.judging import CompiledTooFar, judge
from axbake.toolchain.axmodel import read_axmodel
from axbake.toolchain.engines import REFUSALS
from axbake.toolchain.launch import Launch, WrongToolchain
from axbake.toolchain.pulsar2 import CompileError
from axbake.toolchain.reading import BuildLog
from tests.decoder import LAUNCH, check_decoder, compile_decoder, write_inputs
from tests.double.failures import KILLED, RAISED, SPOILT

ROOT = Path(__file__).parents[2]
FAILURES = [*RAISED, *SPOILT, "truncated", "out-of-memory"]
PAGE = (ROOT / "docs" / "pulsar2.md").read_text()


@pytest.fixture
def double(tmp_path, monkeypatch):
    """The double of pulsar2, put on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pulsar2").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.double "$@"\n')
    (programs / "pulsar2").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("decoder"))


def environment(place: Path) -> bytes:
    """A process's environment; none of one that has ended meanwhile."""
    try:
        return place.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def test_a_build_is_moved_to_its_place_with_a_record_of_what_made_it(double, inputs, tmp_path, caplog):
    caplog.set_level("INFO", logger="axbake")

    axmodel, record, _ = compile_decoder(tmp_path, inputs, "native").values()

    made, said = read_axmodel(axmodel), json.loads(record.read_text())
    assert (made.producer, made.version, made.hardware, made.npu_mode) == ("Pulsar2", "4.2", "AX650", "NPU3")
    assert (said["component"], said["toolchain"], said["emulated"]) == ("vae_decoder", "native", False)
    assert said["version"].startswith("version: 4.2")
    assert said["bytes"] == axmodel.stat().st_size
    assert (said["macs"], said["max_cycle"]) == (280262480, 450154)
    assert sorted(path.name for path in axmodel.parent.iterdir()) == ["vae_decoder.axmodel", "vae_decoder.json"]
    stages = [re.fullmatch(r"(.*), \d+:\d\d", message) for message in caplog.messages]
    told = [stage[1] for stage in stages if stage]
    assert told[0] == "reading samples"
    assert "calibrating 3 of 3" in told
    assert told[-1] == "fused"


def test_the_emulator_is_started_read_and_accepted_in_the_same_way(inputs, tmp_path, caplog):
    caplog.set_level("INFO", logger="axbake")

    axmodel, record, _ = compile_decoder(tmp_path, inputs, "emulator").values()

    assert json.loads(record.read_text())["emulated"] is True
    assert "emulat" in json.loads(record.read_text())["version"]
    assert read_axmodel(axmodel).npu_mode == "NPU3"
    assert any("calibrating 3 of 3" in message for message in caplog.messages)


def test_the_bar_counts_in_a_line_of_stdout_too(caplog):
    """As Docker's client gives the two, which a container writes at the same time."""
    caplog.set_level(logging.INFO)
    log = BuildLog()

    log.hear(
        "[12:00:01] AX Runtime Calibration Pass Running ... Calibration Progress(Phase 1):   0%|      | 0/3 [00:00<?]"
    )

    assert log.stage == "calibrating"
    assert caplog.messages[-1].startswith("calibrating 0 of 3, ")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_known_failure_is_told_as_the_documentation_says(double, inputs, failure, tmp_path, monkeypatch):
    monkeypatch.setenv("PULSAR2_DOUBLE_FAILS", failure)

    with pytest.raises(CompileError) as caught:
        compile_decoder(tmp_path, inputs, "native")

    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {failure} | ")]
    documented = line.split(" | ", 1)[1].removesuffix(" |")
    assert re.sub(r"\d+", "0", str(caught.value)) == re.sub(r"\d+", "0", documented)  # sizes and numbers of signals
    assert list((tmp_path / "made").glob("vae_decoder.*")) == []


def test_the_failures_in_the_documentation_are_those_of_the_double():
    table = PAGE.split("<!-- failures -->")[1]

    assert re.findall(r"^\| ([\w-]+) \| vae_decoder[:. ]", table, re.MULTILINE) == [*FAILURES, "hang"]
    assert set(KILLED) <= {*FAILURES, "hang"}


def test_no_code_of_the_package_knows_the_double():
    code = [*(ROOT / "axbake").rglob("*.py"), *(ROOT / "workflow").rglob("*.smk"), ROOT / "Snakefile"]

    assert not [
        path for path in code if "tests" in re.findall(r"^ *(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
    ]


def test_what_engines_refuse_is_told_as_the_documentation_says():
    for _, meaning in REFUSALS:
        assert f"| {meaning.format(engine='docker', image='pulsar2:4.2')} |" in PAGE


def test_a_build_that_hangs_is_ended_at_its_time_limit_with_all_that_it_started(double, inputs, tmp_path, monkeypatch):
    fields = {"compiler": {"check_tensor_black_list": ["double:hang"]}}
    monkeypatch.setenv("BUILD_OF_THIS_TEST", str(tmp_path))  # processes inherit it

    with pytest.raises(CompileError) as caught:
        compile_decoder(tmp_path, inputs, "native", fields=fields, minutes=0.05)

    # How far it comes in three seconds depends on the machine.
    assert re.sub(r"(?<=, while )[a-z ]+", "calibrating", str(caught.value)) in PAGE
    mark = f"BUILD_OF_THIS_TEST={tmp_path}".encode()
    assert not [one.parent.name for one in Path("/proc").glob("[0-9]*/environ") if mark in environment(one)]


@pytest.mark.parametrize("said", ["4.1", "4.20", "14.2", "3.4.2"])
def test_another_version_is_refused_before_anything_is_built(double, inputs, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PULSAR2_DOUBLE_VERSION", said)

    with pytest.raises(WrongToolchain) as caught:
        compile_decoder(tmp_path, inputs, "native")

    assert f"version: {said}" in str(caught.value)
    assert "config/config.yaml says 4.2. Correct pulsar2_version" in str(caught.value)
    assert list((tmp_path / "made").iterdir()) == []


def test_a_patch_of_the_version_is_that_version(double, monkeypatch):
    monkeypatch.setenv("PULSAR2_DOUBLE_VERSION", "4.2-patch1")

    assert "4.2-patch1" in Launch(**LAUNCH, toolchain="native").check()


@pytest.mark.parametrize("toolchain", ["native", "docker", "podman"])
def test_a_program_that_is_not_there_is_an_error_that_says_what_to_do(toolchain, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(Exception, match=rf"^toolchain {toolchain}: .* on the PATH.*, or .*toolchain: emulator"):
        Launch(**LAUNCH, toolchain=toolchain).check()


def test_a_field_that_pulsar2_does_not_know_is_told_with_its_own_words(double, inputs, tmp_path):
    with pytest.raises(CompileError, match=r"does not know a field or flag: .*no field named \"qualiti\""):
        compile_decoder(tmp_path, inputs, "native", fields={"quant": {"qualiti": 1}})


@pytest.mark.parametrize("toolchain", ["emulator", "native"])
def test_a_compiled_model_is_run_against_its_float_graph(double, inputs, toolchain, tmp_path):
    made = compile_decoder(tmp_path, inputs, toolchain)

    said = check_decoder(made, inputs, toolchain, tmp_path)

    assert (said["component"], said["emulated"], said["samples"]) == ("vae_decoder", toolchain == "emulator", 2)
    (distance,) = said["outputs"].values()
    assert 40 < distance["sqnr_db"] < 150  # S8 weights: near, and not the float graph itself
    assert distance["cosine"] > 0.9999
    assert "graphs" not in said  # there is one, and its outputs are said already
    assert "outputs" not in check_decoder(made, inputs, toolchain, tmp_path, samples=0)


def test_a_compiled_model_too_far_from_its_graph_is_measured_and_then_refused_with_what_to_try(inputs, tmp_path):
    made = compile_decoder(tmp_path, inputs, "emulator", precision="U8")
    check_decoder(made, inputs, "emulator", tmp_path)
    verdict = tmp_path / "verdict.json"

    with pytest.raises(CompiledTooFar) as caught:
        judge([], [tmp_path / "check.json"], min_psnr={}, min_sqnr={"vae_decoder": 60}, verdict=verdict)

    assert re.search(
        r"SQNR of sample [\d.]+ dB, below the 60 dB of config compiled/min_sqnr/vae_decoder", str(caught.value)
    )
    assert "precision/vae_decoder: U16" in str(caught.value)
    assert not verdict.exists()


def test_what_may_fail_is_said_before_the_build_begins(inputs, tmp_path, caplog):
    compile_decoder(tmp_path, inputs, "emulator", fields={"quant": {"device": "cuda:0"}})

    doubts = [record for record in caplog.records if record.levelname == "WARNING" and "cuda:0" in record.message]
    assert [record.name for record in doubts] == ["axbake.toolchain.pulsar2"]
    assert doubts[0].message.startswith("vae_decoder: quant/device cuda:0: a container sees a GPU only with")
