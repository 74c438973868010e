"""What a compiled model says of itself: real ones of Pulsar2 7.0, cut short; and files that are none, or not whole."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from axbake.toolchain.axmodel import AxmodelError, Value, read_axmodel

DATA = Path(__file__).parents[1] / "data"
AX650, AX630C = DATA / "silero_vad_ax650.excerpt.axmodel", DATA / "silero_vad_ax630c.excerpt.axmodel"


def value(*shape):
    return Value(np.dtype("float32"), shape)


@pytest.mark.parametrize(("path", "hardware", "mode"), [(AX650, "AX650", "NPU3"), (AX630C, "AX620E", "NPU2")])
def test_a_real_model_says_what_made_it_and_for_what(path, hardware, mode):
    model = read_axmodel(path)

    assert (model.producer, model.version, model.commit) == ("Pulsar2", "7.0", "6b1bcdf8")
    assert (model.hardware, model.npu_mode) == (hardware, mode)
    assert model.inputs == {"data": value(1, 640), "state": value(2, 1, 128)}
    assert model.outputs == {"output": value(1, 1), "next_state": value(2, 1, 128)}
    assert model.blobs == {"npu_params": 32, "npu_dyn_params": 0, "subgraph_npu_0_b1_neu": 32}


def test_its_parts_are_those_that_onnx_reads():
    whole, found = onnx.load(AX650), read_axmodel(AX650)

    assert list(found.inputs) == [one.name for one in whole.graph.input]
    assert list(found.outputs) == [one.name for one in whole.graph.output]
    assert found.blobs == {one.name: len(one.raw_data) for one in whole.graph.initializer}


def test_a_model_cut_off_anywhere_is_refused(tmp_path):
    whole, cut = AX650.read_bytes(), tmp_path / "cut.axmodel"

    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(AxmodelError, match=r"^cut\.axmodel: "):
            read_axmodel(cut)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.graph.ClearField("initializer"), "0 bytes of blobs, wanted `neu mode` with its program"),
        (lambda model: setattr(model.graph.node[0], "op_type", "Conv"), r"holds nodes \['Conv'\]"),
        (
            lambda model: setattr(model, "producer_name", "onnxsim"),
            "made by 'onnxsim', wanted Pulsar2 or axbake-emulator",
        ),
        (lambda model: model.graph.initializer[0].dims.__setitem__(0, 99), "npu_params has 32 bytes, wanted 99"),
    ],
    ids=["a simplifier's", "a float graph", "another maker's", "a short blob"],
)
def test_a_container_without_its_parts_is_refused(change, words, tmp_path):
    model = onnx.load(AX650)
    change(model)
    (tmp_path / "other.axmodel").write_bytes(model.SerializeToString())

    with pytest.raises(AxmodelError, match=words):
        read_axmodel(tmp_path / "other.axmodel")


def test_what_is_no_model_at_all_is_refused(tmp_path):
    (tmp_path / "text.axmodel").write_text("no space left on device\n" * 9)

    with pytest.raises(AxmodelError, match=r"not a complete \.axmodel"):
        read_axmodel(tmp_path / "text.axmodel")
