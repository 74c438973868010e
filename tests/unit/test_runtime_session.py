"""Kinds of models are recognised, loaded and fed as they ask."""

import numpy as np
import onnx
import pytest

from axbake.runtime.errors import BundleError
from axbake.runtime.session import EMULATOR, open_model, producer


def model_file(path, *, producer_name, external=False):
    """A graph that adds a constant, of dtype int32 in and out."""
    value = onnx.helper.make_tensor_value_info
    addend = onnx.numpy_helper.from_array(np.arange(600, dtype=np.int32), "addend")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "addend"], ["y"])],
        "add",
        [value("x", onnx.TensorProto.INT32, [600])],
        [value("y", onnx.TensorProto.INT32, [600])],
        [addend],
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, producer_name=producer_name, opset_imports=[opset], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    return path


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("suffix", [".onnx", ".axmodel"])
def test_an_emulated_axmodel_runs_as_an_onnx_graph_does(tmp_path, suffix, external):
    session = open_model(model_file(tmp_path / f"m{suffix}", producer_name=EMULATOR, external=external))

    assert session.run({"x": np.ones(600, dtype=np.int64)})["y"].tolist() == list(range(1, 601))
    assert len(session.seconds) == 1
    with pytest.raises(BundleError, match="x: found int64, wanted values of int32"):
        session.run({"x": np.full(600, 2**40)})


def test_an_axmodel_for_the_card_is_refused(tmp_path):
    path = model_file(tmp_path / "m.axmodel", producer_name="Pulsar2")

    assert producer(path) == "Pulsar2"
    with pytest.raises(BundleError, match="made by Pulsar2 runs only on the accelerator card"):
        open_model(path)


def test_an_axmodel_that_does_not_say_who_made_it_is_refused(tmp_path):
    path = model_file(tmp_path / "m.axmodel", producer_name="")

    assert producer(path) == ""
    with pytest.raises(BundleError, match="made by an unknown producer"):
        open_model(path)


def test_files_that_are_no_models_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("version https://example.org/pointer")
    (tmp_path / "empty.axmodel").write_bytes(b"")
    (tmp_path / "zeros.onnx").write_bytes(bytes(100))
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a\x12\x0fpytor")  # its producer's name has 15 letters
    (tmp_path / "endless.onnx").write_bytes(b"\x08" + b"\xff" * 100)
    (tmp_path / "huge.onnx").write_bytes(b"\x08\x0a\x12" + b"\xff" * 9 + b"\x01" + b"name")

    for name in ("text.onnx", "empty.axmodel", "zeros.onnx", "cut.onnx", "endless.onnx", "huge.onnx"):
        with pytest.raises(BundleError, match="does not begin as an ONNX model or axmodel does"):
            open_model(tmp_path / name)
    with pytest.raises(BundleError, match=r"no such file; wanted an \.onnx or \.axmodel"):
        open_model(tmp_path / "none.onnx")
