"""Builds by a double of the compiler: models that are what was asked for, or words that say what failed and what to try."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from axbake.axmodel import read_axmodel
from axbake.build_config import configure_build
from axbake.calibration import calibrate_vae_decoder
from axbake.pulsar2 import CompileError, compile_model
from axbake.toolchain.launch import Launch, WrongToolchain
from tests.double.failures import KILLED, RAISED, SPOILT

ROOT = Path(__file__).parents[2]
LAUNCH = {"version": "4.2", "minutes": 0, "image": "", "network": "none", "user": "root", "options": []}
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
    """A VAE decoder of one convolution, with its tensors in a file beside it, and three samples."""
    directory = tmp_path_factory.mktemp("decoder")
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((3, 4, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "weights"], ["sample"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "decoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 3, 8, 8])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(
        model,
        directory / "vae_decoder.onnx",
        save_as_external_data=True,
        location="vae_decoder.onnx.data",
        size_threshold=0,
    )
    latents = generator.standard_normal((3, 1, 4, 8, 8)).astype(np.float32)
    np.save(directory / "latents.npy", latents)
    calibrate_vae_decoder(directory / "latents.npy", archive=directory / "vae_decoder.tar")
    return {
        "graph": directory / "vae_decoder.onnx",
        "tensors": directory / "vae_decoder.onnx.data",
        "archive": directory / "vae_decoder.tar",
    }


def build(directory, inputs, toolchain="native", fields=None, **launch):
    """What compiling leaves in *directory*: model and record."""
    axmodel, record = directory / "made" / "vae_decoder.axmodel", directory / "made" / "vae_decoder.json"
    axmodel.parent.mkdir(exist_ok=True)
    config = directory / "vae_decoder.config.json"
    chip = {"target_hardware": "AX650", "npu_mode": "NPU3"}
    configure_build(component="vae_decoder", precision="U16", **chip, fields=fields or {}, config=config)
    compiler = {} if toolchain == "emulator" else {"pulsar2": "4.2"}
    how = LAUNCH | {"toolchain": toolchain} | launch
    compile_model(**inputs, config=config, compiler=compiler, launch=how, axmodel=axmodel, record=record)
    return axmodel, record


def test_a_build_is_moved_to_its_place_with_a_record_of_what_made_it(double, inputs, tmp_path, caplog):
    caplog.set_level("INFO", logger="axbake")

    axmodel, record = build(tmp_path, inputs)

    made, said = read_axmodel(axmodel), json.loads(record.read_text())
    assert (made.producer, made.version, made.hardware, made.npu_mode) == ("Pulsar2", "4.2", "AX650", "NPU3")
    assert (said["component"], said["toolchain"], said["emulated"]) == ("vae_decoder", "native", False)
    assert said["version"].startswith("version: 4.2")
    assert said["bytes"] == axmodel.stat().st_size
    assert (said["macs"], said["max_cycle"]) == (280262480, 450154)
    assert sorted(path.name for path in axmodel.parent.iterdir()) == ["vae_decoder.axmodel", "vae_decoder.json"]
    stages = [re.match(r"vae_decoder: (.*), \d+:\d\d", message) for message in caplog.messages]
    told = [stage[1] for stage in stages if stage]
    assert told[0] == "reading samples"
    assert "calibrating 3 of 3" in told
    assert told[-1] == "fused"


def test_the_emulator_is_started_read_and_accepted_in_the_same_way(inputs, tmp_path, caplog):
    caplog.set_level("INFO", logger="axbake")

    axmodel, record = build(tmp_path, inputs, toolchain="emulator")

    assert json.loads(record.read_text())["emulated"] is True
    assert "emulat" in json.loads(record.read_text())["version"]
    assert read_axmodel(axmodel).npu_mode == "NPU3"
    assert any("calibrating 3 of 3" in message for message in caplog.messages)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_known_failure_is_told_as_the_documentation_says(double, inputs, failure, tmp_path, monkeypatch):
    monkeypatch.setenv("PULSAR2_DOUBLE_FAILS", failure)

    with pytest.raises(CompileError) as caught:
        build(tmp_path, inputs)

    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {failure} |")]
    documented = line.split(" | ", 1)[1].removesuffix(" |")
    assert re.sub(r"\d+ bytes|of \d+|, \d+ left", "…", str(caught.value)) == re.sub(
        r"\d+ bytes|of \d+|, \d+ left", "…", documented
    )
    assert list((tmp_path / "made").glob("vae_decoder.*")) == []


def test_the_failures_in_the_documentation_are_those_of_the_double():
    table = PAGE.split("<!-- failures -->")[1]

    assert re.findall(r"^\| ([\w-]+) \| vae_decoder", table, re.MULTILINE) == [*FAILURES, "hang"]
    assert set(KILLED) <= {*FAILURES, "hang"}


def test_a_build_that_hangs_is_ended_at_its_time_limit_with_all_that_it_started(double, inputs, tmp_path):
    fields = {"compiler": {"check_tensor_black_list": ["double:hang"]}}

    with pytest.raises(CompileError) as caught:
        build(tmp_path, inputs, fields=fields, minutes=0.05)

    assert str(caught.value) in PAGE
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if "tests.double build" in line and "vae_decoder" in line]


@pytest.mark.parametrize("said", ["4.1", "4.20", "14.2", "3.4.2"])
def test_another_version_is_refused_before_anything_is_built(double, inputs, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PULSAR2_DOUBLE_VERSION", said)

    with pytest.raises(WrongToolchain) as caught:
        build(tmp_path, inputs)

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
        build(tmp_path, inputs, fields={"quant": {"qualiti": 1}})
