"""Configs that the compiler takes, and builds that end in a model of the right maker or in words that say why not."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from axbake.emulator.config import build_config, merged, read_config
from axbake.families import COMPONENTS
from axbake.pulsar2 import CompileError, WrongToolchain, check_toolchain, compile_model, configure_build
from tests.unit.test_preflight import SOUND, archive_of, saved

PRECISIONS = ["U8", "U16", "S16"]
# A file that begins as Pulsar2's does: ModelProto's fields 1, IR version 8, and 2, the producer's name.
PULSAR2_MODEL = r"\010\010\022\007Pulsar2"
OTHER_MODEL = r"\010\010\022\007pytorch"


def configured(directory, component, precision="U16"):
    config = directory / f"{component}.config.json"
    configure_build(
        component=component,
        precision=precision,
        target_hardware="AX650",
        npu_mode="NPU3",
        config=config,
    )
    return config


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_the_config_of_every_component_is_one_that_the_compiler_takes(component, precision, tmp_path):
    values = read_config(configured(tmp_path, component, precision))
    built = build_config(merged(values, {"input": "graph.onnx", "output_dir": "out"}))

    assert (built.target_hardware, built.npu_mode) == ("AX650", "NPU3")
    (layer,) = built.layers
    assert layer.data_type == precision
    assert (layer.start_tensors, layer.end_tensors) == (("DEFAULT",), ("DEFAULT",))
    (calibration,) = built.inputs
    assert calibration.dataset == Path(f"{component}.tar")
    assert calibration.size == -1
    assert values["quant"]["calibration_method"] == "MinMax"
    assert str(tmp_path) not in json.dumps(values)


def test_the_formats_are_those_of_the_archives_and_of_the_programs_on_boards(tmp_path):
    built = {
        component: build_config(
            merged(read_config(configured(tmp_path, component)), {"input": "g.onnx", "output_dir": "out"})
        )
        for component in COMPONENTS
    }

    assert {name: config.inputs[0].format for name, config in built.items()} == {
        "text_encoder": "Numpy",
        "unet": "NumpyObject",
        "vae_encoder": "Image",
        "vae_decoder": "NumpyObject",
    }
    (ids,), (picture,) = built["text_encoder"].processors, built["vae_encoder"].processors
    assert ids.src_dtype == "U32"
    # Pictures of 0 to 255 become -1 to 1 while calibrating; on the board the program has done so already.
    assert (built["vae_encoder"].inputs[0].mean, built["vae_encoder"].inputs[0].std) == ((127.5,) * 3, (127.5,) * 3)
    assert (picture.tensor_format, picture.mean, picture.std) == ("RGB", (0.0,) * 3, (1.0,) * 3)
    assert not built["unet"].processors and not built["vae_decoder"].processors


def test_the_same_settings_give_the_same_bytes(tmp_path):
    (tmp_path / "other").mkdir()

    assert configured(tmp_path, "unet").read_bytes() == configured(tmp_path / "other", "unet").read_bytes()


@pytest.fixture
def pulsar2(tmp_path, monkeypatch):
    """A function that puts a shell script called pulsar2, which runs *build* when asked to build, on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def install(build="exit 0", version="version: 4.2\ncommit: 1a2b3c4d"):
        program = programs / "pulsar2"
        program.write_text(
            f"""#!/bin/sh
if [ "$1" = version ]; then echo '{version}'; exit 0; fi
while [ $# -gt 1 ]; do
  case "$1" in --output_dir) out="$2";; --output_name) name="$2";; --config) config="$2";; --input) input="$2";; esac
  shift
done
mkdir -p "$out"
{build}
"""
        )
        program.chmod(0o755)

    return install


def build(directory, version="4.2"):
    """What compiling with the native toolchain leaves in *directory*: model and record."""
    axmodel, record = directory / "made" / "unet.axmodel", directory / "made" / "unet.json"
    axmodel.parent.mkdir(exist_ok=True)
    inputs = {"graph": "unet.onnx", "tensors": "unet.onnx.data", "archive": "unet.tar"}
    paths = {name: directory / file for name, file in inputs.items()}
    saved(directory, SOUND, "unet")
    archive_of(paths["archive"], sample={"x": np.ones((1, 4, 8, 8), np.float32)})
    paths["tensors"].touch()
    how = {"toolchain": "native", "compiler": {"pulsar2": version}}
    compile_model(**paths, config=configured(directory, "unet"), **how, axmodel=axmodel, record=record)
    return axmodel, record


def test_a_build_is_moved_to_its_place_with_a_record_of_what_made_it(pulsar2, tmp_path):
    context = '{"code": "Success", "macs": 12345, "io_info": "x:[1]"}'
    pulsar2(build=f"printf '{PULSAR2_MODEL}' > \"$out/$name\"; echo '{context}' > \"$out/build_context.json\"")

    axmodel, record = build(tmp_path)

    said = json.loads(record.read_text())
    assert axmodel.read_bytes().endswith(b"Pulsar2")
    assert said["component"] == "unet"
    assert said["toolchain"] == "native"
    assert said["emulated"] is False
    assert "4.2" in said["version"]
    assert said["bytes"] == axmodel.stat().st_size
    assert said["macs"] == 12345
    assert said["pulsar2_config"] == json.loads(configured(tmp_path, "unet").read_text())


def test_the_compilers_progress_is_told_with_its_total(pulsar2, tmp_path, caplog):
    bar = "Calibration Progress(Phase 1): 100%|██████████| 4/4 [00:06<00:00,  1.52s/it]"  # Pulsar2's own
    pulsar2(build=f"echo '{bar}'; printf '{PULSAR2_MODEL}' > \"$out/$name\"; echo '{{}}' > \"$out/build_context.json\"")
    caplog.set_level("INFO", logger="axbake")

    build(tmp_path)

    assert "calibrating: 4 of 4" in caplog.messages


def test_a_unet_that_takes_the_timestep_is_compiled_for_whole_ones(tmp_path):
    how = {"precision": "U16", "target_hardware": "AX650", "npu_mode": "NPU3", "config": tmp_path / "config.json"}
    found = {}
    for program in ("axera", "euler"):
        configure_build(component="unet", program=program, **how)
        found[program] = json.loads((tmp_path / "config.json").read_text()).get("input_processors")

    assert found == {"axera": None, "euler": [{"tensor_name": "t", "src_dtype": "S32"}]}


def test_the_compiler_is_given_the_graph_and_the_config(pulsar2, tmp_path):
    pulsar2(
        build='test -f "$input" && test -f "$input.data" && test -f unet.tar && test -f "$config" || exit 9; exit 3'
    )

    with pytest.raises(CompileError, match="status 3"):
        build(tmp_path)


@pytest.mark.parametrize("said", ["version: 4.1", "version: 4.20", "version: 14.2", "version: 3.4.2"])
def test_another_version_is_refused_before_anything_is_built(pulsar2, said, tmp_path):
    pulsar2(build=f"touch {tmp_path}/started", version=said)

    with pytest.raises(WrongToolchain) as caught:
        build(tmp_path)

    assert said in str(caught.value)
    assert "config/config.yaml says 4.2" in str(caught.value)
    assert "Correct pulsar2_version" in str(caught.value)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("said", ["4.2", "version: 4.2", "v4.2", "version: 4.2\ncommit: 4.1", "Pulsar2 4.2-patch1"])
def test_the_version_is_found_in_what_the_program_prints(pulsar2, said):
    pulsar2(version=said)

    assert check_toolchain("native", {"pulsar2": "4.2"}) == said


def test_a_failing_build_is_an_error_with_the_compilers_own_words(pulsar2, tmp_path):
    context = '{"code": "QuantError", "error_msg": "op type GroupNorm is not supported"}'
    pulsar2(build=f"echo '{context}' > \"$out/build_context.json\"; exit 7")

    with pytest.raises(CompileError) as caught:
        build(tmp_path)

    assert "unet: native ended with status 7: op type GroupNorm is not supported" in str(caught.value)
    assert "log" in str(caught.value)
    assert list((tmp_path / "made").glob("unet.*")) == []


@pytest.mark.parametrize("context", ["", '{"code": '], ids=["empty", "cut off"])
def test_a_build_that_died_while_it_wrote_its_context_is_an_error_all_the_same(pulsar2, context, tmp_path):
    pulsar2(build=f"printf '{context}' > \"$out/build_context.json\"; exit 137")

    with pytest.raises(CompileError, match="status 137"):
        build(tmp_path)


def test_a_build_that_says_it_went_well_but_made_no_model_is_an_error(pulsar2, tmp_path):
    pulsar2(build="exit 0")

    with pytest.raises(CompileError, match="unet: native ended with status 0: no word of why"):
        build(tmp_path)


def test_a_model_of_another_maker_is_refused(pulsar2, tmp_path):
    pulsar2(build=f"printf '{OTHER_MODEL}' > \"$out/$name\"")

    with pytest.raises(CompileError) as caught:
        build(tmp_path)

    assert "made a model of producer 'pytorch', wanted 'Pulsar2'" in str(caught.value)
    assert list((tmp_path / "made").glob("unet.*")) == []


def test_a_file_that_is_no_model_is_refused(pulsar2, tmp_path):
    pulsar2(build='echo "no space left on device" > "$out/$name"')

    with pytest.raises(Exception, match=r"unet\.axmodel: does not begin as an ONNX model or axmodel does"):
        build(tmp_path)


def test_a_program_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(WrongToolchain) as caught:
        check_toolchain("native", {"pulsar2": "4.2"})

    assert "`pulsar2 version` does not run" in str(caught.value)
    assert "put it on the PATH, or set toolchain: emulator" in str(caught.value)


def test_the_emulator_says_that_it_is_one():
    assert "emulat" in check_toolchain("emulator", {})
