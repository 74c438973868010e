"""Kinds of models are recognised, loaded and fed as they ask."""

import numpy as np
import onnx
import onnxruntime
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


@pytest.mark.parametrize("in_float", [True, False])
def test_quantised_weights_are_computed_when_the_model_is_loaded_or_in_each_run(in_float, tmp_path, monkeypatch):
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    random, domain = np.random.default_rng(0), {"domain": "com.microsoft"}
    constants = {
        "weight": random.integers(-127, 128, (8, 4)).astype(np.int8),
        "scale": np.float32(0.02),
        "none": np.int8(0),
        "fine": np.float32(0.001),
        "zero": np.uint16(32768),
    }
    graph = onnx.helper.make_graph(
        [
            make("DequantizeLinear", ["weight", "scale", "none"], ["w"], **domain),
            make("MatMul", ["x", "w"], ["product"]),
            make("QuantizeLinear", ["product", "fine", "zero"], ["rounded"], **domain),
            make("DequantizeLinear", ["rounded", "fine", "zero"], ["y"], **domain),
        ],
        "quantised",
        [value("x", onnx.TensorProto.FLOAT, [2, 8])],
        [value("y", onnx.TensorProto.FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(np.array(array), name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, producer_name=EMULATOR, opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "m.axmodel")

    class Noted(onnxruntime.InferenceSession):
        def __init__(self, path, options, **how):
            options.optimized_model_filepath = str(tmp_path / "run.onnx")
            super().__init__(path, options, **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Noted)
    x = random.standard_normal((2, 8)).astype(np.float32)
    found = open_model(tmp_path / "m.axmodel", in_float=in_float).run({"x": x})["y"]

    wanted = x @ (constants["weight"] * constants["scale"])
    assert np.abs(found - wanted).max() <= 0.0006  # half a step of the rounding, which stays
    assert len(set(np.unique(np.rint(found / 0.001) - found / 0.001).round(3))) == 1
    nodes = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert nodes.count("DequantizeLinear") == (1 if in_float else 2) and nodes.count("QuantizeLinear") == 1
