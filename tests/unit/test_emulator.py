"""The emulator's quantisation, against computations by hand."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from axbake.emulator import PRODUCER
from axbake.emulator.__main__ import main
from axbake.emulator.encoding import BIAS_LIMIT, encode_range, quantise
from axbake.emulator.graph import GraphError, load_graph
from axbake.emulator.ranges import record_ranges
from axbake.emulator.run import bin_name
from axbake.emulator.writer import ModelWriter, TooLargeError, written_beside

U16 = [{"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}]


def save(path: Path, nodes, inputs, outputs, constants, opset=18, **saving):
    """Save a graph; *inputs* and *outputs* are name: shape (float32) or name: (shape, element type)."""

    def values(specs):
        pairs = ((name, spec if isinstance(spec, tuple) else (spec, TensorProto.FLOAT)) for name, spec in specs.items())
        return [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in pairs]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path, **saving)
    return path


def save_samples(path: Path, samples):
    """A tar of NumpyObject members."""

    with tarfile.open(path, "w") as archive:
        for index, sample in enumerate(samples):
            packed = io.BytesIO()
            np.save(packed, sample)
            member = tarfile.TarInfo(f"samples/{index}.npy")
            member.size = packed.tell()
            packed.seek(0)
            archive.addfile(member, packed)
    return path


def config(directory: Path, layers=(), quant=(), **top):
    values = {
        "quant": {
            "input_configs": [
                {
                    "tensor_name": "DEFAULT",
                    "calibration_dataset": str(directory / "samples.tar"),
                    "calibration_format": "NumpyObject",
                    "calibration_size": -1,
                }
            ],
            "layer_configs": list(layers),
            **dict(quant),
        },
        **top,
    }
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return path


def build(directory: Path, *flags, samples=None, layers=U16, **settings):
    """Build net.onnx in *directory*; the path of the result."""
    if samples is not None:
        save_samples(directory / "samples.tar", samples)
    arguments = ["--input", directory / "net.onnx", "--config", config(directory, layers, **settings)]
    code = main(["build", *map(str, arguments), "--output_dir", str(directory / "out"), *flags])
    assert code == 0
    return directory / "out" / "compiled.axmodel"


def outputs(path: Path, **inputs):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)


def record(directory: Path):
    return json.loads((directory / "out/quant/quant_axmodel.json").read_text())


def sqnr(wanted, found):
    """Signal to quantisation noise, dB."""
    return 10 * np.log10(np.square(wanted).mean() / np.square(wanted - found).mean())


def rounded(values, low, high, bits):
    """Asymmetric fake quantisation, written down independently."""
    low, high = min(low, 0), max(high, 0)
    scale = np.float32((high - low) / (2**bits - 1))
    zero = np.round(-low / scale)
    return ((np.clip(np.round(values / scale) + zero, 0, 2**bits - 1) - zero) * scale).astype(np.float32)


def rounded_weight(values, axis):
    others = tuple(index for index in range(values.ndim) if index != axis)
    scale = (np.abs(values).max(axis=others, keepdims=True) / 127).astype(np.float32)
    return (np.round(values / scale) * scale).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def matmul(tmp_path, rng):
    """out = x @ weight + bias, with three samples."""
    constants = {
        "weight": rng.standard_normal((8, 5)).astype(np.float32),
        "bias": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="project"),
        helper.make_node("Add", ["product", "bias"], ["out"], name="shift"),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [3, 8]}, {"out": [3, 5]}, constants)
    samples = [{"x": rng.standard_normal((3, 8)).astype(np.float32)} for _ in range(3)]
    save_samples(tmp_path / "samples.tar", samples)
    return tmp_path, constants, samples


@pytest.mark.parametrize(("data_type", "bits"), [("U8", 8), ("U16", 16)])
def test_a_matmul_is_quantised_as_by_hand(matmul, data_type, bits):
    directory, constants, samples = matmul
    path = build(directory, layers=[{"op_types": ["MatMul", "Add"], "data_type": data_type}])

    x = samples[1]["x"]
    inputs = np.concatenate([sample["x"] for sample in samples])
    results = inputs @ constants["weight"] + constants["bias"]
    product = rounded(x, inputs.min(), inputs.max(), bits) @ rounded_weight(constants["weight"], 1)
    wanted = rounded(product + constants["bias"], results.min(), results.max(), bits)

    step = (results.max() - results.min()) / (2**bits - 1)
    assert np.abs(outputs(path, x=x)[0] - wanted).max() <= step * 1.01  # a tie may fall to the other side


def test_a_convolution_is_quantised_per_output_channel(tmp_path, rng):
    kernel = rng.standard_normal((6, 3, 3, 3)).astype(np.float32) * np.logspace(-3, 0, 6).reshape(6, 1, 1, 1)
    kernel, bias = kernel.astype(np.float32), rng.standard_normal(6).astype(np.float32)
    node = helper.make_node("Conv", ["x", "kernel", "bias"], ["out"], pads=[1, 1, 1, 1])
    shape = [1, 3, 8, 8]
    save(tmp_path / "net.onnx", [node], {"x": shape}, {"out": [1, 6, 8, 8]}, {"kernel": kernel, "bias": bias})
    x = rng.standard_normal(shape).astype(np.float32)
    path = build(tmp_path, samples=[{"x": x}])

    def convolved(values, weight):
        tensors = [torch.from_numpy(array) for array in (values, weight, bias)]
        return torch.nn.functional.conv2d(*tensors, padding=1).numpy()

    exact = convolved(x, kernel)
    wanted = convolved(rounded(x, x.min(), x.max(), 16), rounded_weight(kernel, 0))
    wanted = rounded(wanted, exact.min(), exact.max(), 16)
    assert np.abs(outputs(path, x=x)[0] - wanted).max() <= (exact.max() - exact.min()) / 65535 * 1.01


def test_sixteen_bits_with_float_weights_are_nearly_exact(matmul):
    directory, constants, samples = matmul
    path = build(directory, layers=[{**U16[0], "weight_data_type": "FP32"}])
    wanted = samples[0]["x"] @ constants["weight"] + constants["bias"]
    assert sqnr(wanted, outputs(path, **samples[0])[0]) > 75
    assert "weight" in record(directory)["float_tensors"]


def test_sixteen_bits_with_integer_weights_lose_what_the_weights_lose(matmul):
    directory, constants, samples = matmul
    wanted = samples[0]["x"] @ constants["weight"] + constants["bias"]
    assert 35 < sqnr(wanted, outputs(build(directory), **samples[0])[0]) < 60


def test_a_bias_that_would_overflow_widens_its_channel(tmp_path, rng):
    weight = np.full((4, 2), 1e-7, np.float32)
    weight[:, 1] = 1
    bias = np.array([50, 50], np.float32)
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["out"])
    save(tmp_path / "net.onnx", [node], {"x": [2, 4]}, {"out": [2, 2]}, {"weight": weight, "bias": bias})
    x = rng.standard_normal((2, 4)).astype(np.float32) / 10
    path = build(tmp_path, samples=[{"x": x}])

    assert record(tmp_path)["weights"]["weight"]["widened_channels"] == 1
    assert np.abs(outputs(path, x=x)[0] - (x @ weight + bias)).max() < 2e-2
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert BIAS_LIMIT * 0.99 < stored["bias/S32"][0] <= BIAS_LIMIT


def test_the_bias_stays_float_if_the_configuration_says_so(matmul):
    directory, _, _ = matmul
    path = build(directory, quant={"conv_bias_data_type": "FP32"})
    assert "bias" in record(directory)["float_tensors"]
    assert "bias" in {tensor.name for tensor in onnx.load(path).graph.initializer}


def test_a_transposed_convolution_and_a_transposed_constant(tmp_path, rng):
    kernel = rng.standard_normal((4, 6, 2, 2)).astype(np.float32)
    stored = rng.standard_normal((5, 8)).astype(np.float32)
    nodes = [
        helper.make_node("ConvTranspose", ["x", "kernel", "bias"], ["up"], strides=[2, 2], group=2),
        helper.make_node("Transpose", ["stored"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["up", "turned"], ["out"]),
    ]
    constants = {"kernel": kernel, "bias": rng.standard_normal(12).astype(np.float32), "stored": stored}
    save(tmp_path / "net.onnx", nodes, {"x": [1, 4, 4, 4]}, {"out": [1, 12, 8, 5]}, constants)
    x = rng.standard_normal((1, 4, 4, 4)).astype(np.float32)
    path = build(tmp_path, samples=[{"x": x}])
    assert sqnr(outputs(tmp_path / "net.onnx", x=x)[0], outputs(path, x=x)[0]) > 35
    assert record(tmp_path)["weights"]["turned"]["axis"] == 1
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "Transpose"]


def test_operators_that_move_values_round_nothing_anew(tmp_path, rng):
    nodes = [
        helper.make_node("Sin", ["x"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        helper.make_node("Concat", ["t", "t"], ["out"], axis=0),
    ]
    constants = {"shape": np.array([2, 6], np.int64)}
    save(tmp_path / "net.onnx", nodes, {"x": [3, 4]}, {"out": [12, 2]}, constants)
    path = build(tmp_path, samples=[{"x": rng.standard_normal((3, 4)).astype(np.float32)}])
    assert [node.op_type for node in onnx.load(path).graph.node].count("QuantizeLinear") == 2  # x and s
    assert set(record(tmp_path)["activations"]) == {"x", "s"}


def test_a_relu_is_rounded_with_the_layer_before_it(tmp_path, rng):
    nodes = [helper.make_node("Add", ["x", "x"], ["sum"]), helper.make_node("Relu", ["sum"], ["out"])]
    save(tmp_path / "net.onnx", nodes, {"x": [9]}, {"out": [9]}, {})
    build(tmp_path, samples=[{"x": rng.standard_normal(9).astype(np.float32)}])
    assert set(record(tmp_path)["activations"]) == {"x", "out"}


def test_masks_with_extreme_values_and_normalisation_stay_float(tmp_path, rng):
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"]),
        helper.make_node("LayerNormalization", ["weights", "gain", "shift"], ["out"]),
    ]
    constants = {"mask": mask, "gain": np.ones(4, np.float32), "shift": np.zeros(4, np.float32)}
    save(tmp_path / "net.onnx", nodes, {"x": [4, 4]}, {"out": [4, 4]}, constants)
    x = rng.standard_normal((4, 4)).astype(np.float32)
    path = build(tmp_path, samples=[{"x": x}])
    assert set(record(tmp_path)["float_tensors"]) == {"mask", "masked", "gain", "shift"}
    assert sqnr(outputs(tmp_path / "net.onnx", x=x)[0], outputs(path, x=x)[0]) > 60


def test_an_embedding_table_is_encoded_like_its_layers_activations(tmp_path, rng):
    table = rng.standard_normal((20, 6)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("Sin", ["rows"], ["out"])]
    save(tmp_path / "net.onnx", nodes, {"ids": ([1, 3], TensorProto.INT64)}, {"out": [1, 3, 6]}, {"table": table})
    ids = np.array([[1, 19, 4]])
    path = build(tmp_path, samples=[{"ids": ids}], input_processors=[{"tensor_name": "ids", "src_dtype": "U32"}])
    assert record(tmp_path)["constants"]["table"]["data_type"] == "U16"
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == TensorProto.UINT32
    assert np.abs(outputs(path, ids=ids.astype(np.uint32))[0] - np.sin(table[ids])).max() < 1e-3


def test_the_compiled_model_normalises_pixels_itself(matmul):
    directory, _, samples = matmul
    processor = {"tensor_name": "x", "mean": [2.0], "std": [0.5]}
    plain = outputs(build(directory), **samples[0])[0]
    normalising = build(directory, input_processors=[processor])
    assert np.abs(outputs(normalising, x=samples[0]["x"] * np.float32(0.5) + 2)[0] - plain).max() < 1e-3


def test_a_mean_of_plain_arrays_normalises_the_run_times_input_alone(matmul):
    directory, _, samples = matmul
    plain = outputs(build(directory), **samples[0])[0]
    entry = {"tensor_name": "DEFAULT", "calibration_dataset": str(directory / "samples.tar"), "calibration_size": -1}
    entry |= {"calibration_format": "NumpyObject", "calibration_mean": [2], "calibration_std": [0.5]}
    normalising = build(directory, quant={"input_configs": [entry]})
    assert np.abs(outputs(normalising, x=samples[0]["x"] * np.float32(0.5) + 2)[0] - plain).max() < 1e-3
    nothing = build(directory, quant={"input_configs": [entry | {"calibration_mean": [0], "calibration_std": [1]}]})
    assert np.array_equal(outputs(nothing, **samples[0])[0], plain)


@pytest.mark.parametrize(("model", "run_time"), [("NCHW", "NHWC"), ("NHWC", "NCHW"), ("NHWC", "NHWC")])
def test_the_run_times_layout_is_turned_into_the_models_own(tmp_path, rng, model, run_time):
    """`places` is different everywhere, so that an axis in the wrong place shows."""
    shape = [1, 3, 4, 5] if model == "NCHW" else [1, 4, 5, 3]
    places = rng.uniform(1, 2, shape).astype(np.float32)
    node = helper.make_node("Mul", ["x", "places"], ["out"])
    save(tmp_path / "net.onnx", [node], {"x": shape}, {"out": shape}, {"places": places})
    x = rng.standard_normal(shape).astype(np.float32)
    mean = np.float32([1, 2, 3])
    layouts = {"tensor_layout": model, "src_layout": run_time}
    processor = {"tensor_name": "x", **layouts, "mean": mean.tolist(), "std": [1, 1, 1]}
    path = build(tmp_path, samples=[{"x": x}], input_processors=[processor])

    pixels = x + (mean if model == "NHWC" else mean[:, None, None])
    order = {"NCHWNHWC": (0, 2, 3, 1), "NHWCNCHW": (0, 3, 1, 2)}.get(model + run_time, (0, 1, 2, 3))
    found = outputs(path, x=np.ascontiguousarray(pixels.transpose(order)))[0]
    assert np.abs(found - x * places).max() < 1e-3
    taken = [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert taken == [shape[axis] for axis in order]


def test_layer_name_goes_before_op_type_before_subgraph(tmp_path, rng):
    names = ["a", "b", "c", "d"]
    nodes = [
        helper.make_node("Sin", [before], [after], name=f"layer_{after}")
        for before, after in zip(["x", *names], names, strict=False)
    ]
    nodes.append(helper.make_node("Cos", ["d"], ["out"], name="last"))
    save(tmp_path / "net.onnx", nodes, {"x": [5]}, {"out": [5]}, {})
    layers = [
        *U16,
        {"start_tensor_names": ["b"], "end_tensor_names": ["d"], "data_type": "S16"},
        {"op_type": "Cos", "data_type": "S8"},
        {"layer_name": "layer_d", "data_type": "FP32"},
    ]
    build(tmp_path, samples=[{"x": rng.standard_normal(5).astype(np.float32)}], layers=layers)
    kinds = {name: entry["data_type"] for name, entry in record(tmp_path)["activations"].items()}
    assert kinds == {"x": "U16", "a": "U16", "b": "U16", "c": "S16", "d": "S8", "out": "S8"}


def test_entries_of_equal_rank_that_differ_are_refused(matmul, capsys):
    directory, _, _ = matmul
    layers = [{"op_type": "Add", "data_type": kind} for kind in ("U8", "U16")]
    assert main(["build", "--input", str(directory / "net.onnx"), "--output_dir", str(directory), "--config",
                 str(config(directory, layers))]) == 1  # fmt: skip
    assert "layer_configs[0] U8 and quant.layer_configs[1] U16 are of equal priority" in capsys.readouterr().err


def test_everything_is_eight_bits_if_nothing_is_said(matmul):
    directory, _, _ = matmul
    build(directory, layers=())
    assert {entry["data_type"] for entry in record(directory)["activations"].values()} == {"U8"}


def test_signed_types_and_an_empty_range():
    assert encode_range(0, 0, "U16").scale == 1
    encoding = encode_range(-1, 3, "S8")
    assert quantise(np.array([-1, 0, 3, 9], np.float32), encoding).tolist() == [-128, encoding.zero_point, 127, 127]


def test_the_same_inputs_give_the_same_bytes_in_any_directory(matmul, tmp_path_factory):
    directory, _, samples = matmul
    other = tmp_path_factory.mktemp("elsewhere")
    (other / "net.onnx").write_bytes((directory / "net.onnx").read_bytes())
    one, two = build(directory), build(other, samples=samples)
    assert one.read_bytes() == two.read_bytes()


def test_scalar_constants_and_inputs_stay_scalar(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "two"], ["out"])]
    save(tmp_path / "net.onnx", nodes, {"x": []}, {"out": []}, {"two": np.array(2, np.float32)})
    path = build(tmp_path, samples=[{"x": np.array(3, np.float32)}])
    assert outputs(path, x=np.array(3, np.float32))[0] == pytest.approx(6, abs=1e-3)


def test_weights_outside_the_model_stay_there(matmul, rng):
    directory, _, samples = matmul
    inline = build(directory).read_bytes()
    large = {"weight": rng.standard_normal((8, 500)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["out"])]
    outside = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 0}
    save(directory / "net.onnx", nodes, {"x": [3, 8]}, {"out": [3, 500]}, large, **outside)
    graph = load_graph(directory / "net.onnx")
    assert isinstance(graph.constants["weight"], np.memmap)
    path = build(directory)
    assert path.read_bytes() != inline
    assert sqnr(samples[0]["x"] @ large["weight"], outputs(path, **samples[0])[0]) > 35
    (directory / "net.onnx.data").write_bytes(b"short")
    with pytest.raises(GraphError, match="5 bytes, wanted 16000 for weight"):
        load_graph(directory / "net.onnx")


def test_the_result_says_that_it_is_emulated(matmul, capsys):
    directory, _, _ = matmul
    model = onnx.load(build(directory, "--npu_mode", "NPU3"))
    lines = capsys.readouterr().out.splitlines()
    assert "emulated" in lines[0] and "emulated" in lines[-1]
    assert model.producer_name == PRODUCER and "cannot run on a board" in model.doc_string
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["npu_mode"] == "NPU3" and properties["target_hardware"] == "AX650"
    onnx.checker.check_model(model)
    context = json.loads((directory / "out/build_context.json").read_text())
    assert (context["code"], context["npu_mode_str"]) == ("Success", "NPU3")
    assert context["io_info"] == "x:[3,8],FP32;out:[3,5],FP32"


def test_the_log_has_pulsar2s_marks(matmul, capsys):
    build(matmul[0])
    log = capsys.readouterr().out
    marks = ["Building onnx", "Quantization calibration will be executed on cpu", "Network Quantization Finished."]
    assert all(mark in log for mark in [*marks, "quant.axmodel export success:", "fuse 1 subgraph(s)"])
    progress = re.findall(r"Calibration Progress\(Phase \d+\):\s+(\d+)%\|[^|]*\|\s*(\d+)/(\d+)", log)
    assert progress == [("33", "1", "3"), ("66", "2", "3"), ("100", "3", "3")]


def test_ranges_are_recorded_for_each_sample(matmul):
    directory, constants, samples = matmul
    ranges = record_ranges(load_graph(directory / "net.onnx"), samples)
    assert ranges.names == ("x", "product", "out") and ranges.low.shape == (3, 3)
    for index, sample in enumerate(samples):
        product = sample["x"] @ constants["weight"]
        assert np.allclose(ranges.low[index, :2], [sample["x"].min(), product.min()], rtol=1e-5)
        assert np.allclose(ranges.high[index, :2], [sample["x"].max(), product.max()], rtol=1e-5)


def test_tensors_that_only_reorder_values_have_their_ranges_too(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["shaped"]),
        helper.make_node("Transpose", ["shaped"], ["turned"], perm=[1, 0]),
        helper.make_node("Mul", ["turned", "two"], ["doubled"]),
        helper.make_node("Slice", ["doubled", "start", "end"], ["part"]),
        helper.make_node("Flatten", ["part"], ["out"]),
    ]
    numbers = {"shape": [2, 6], "start": [3], "end": [6]}
    constants = {name: np.array(values) for name, values in numbers.items()} | {"two": np.float32([2])}
    save(tmp_path / "net.onnx", nodes, {"x": [3, 4]}, {"out": [3, 2], "shaped": [2, 6]}, constants)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    part = 2 * x.reshape(2, 6).T[3:6]

    ranges = record_ranges(load_graph(tmp_path / "net.onnx"), [{"x": x}]).overall()

    wanted = {"x": x, "shaped": x, "turned": x, "doubled": 2 * x, "part": part, "out": part}
    assert ranges == {name: (float(values.min()), float(values.max())) for name, values in wanted.items()}
    chosen = record_ranges(load_graph(tmp_path / "net.onnx"), [{"x": x}], ["turned", "part"])
    assert chosen.names == ("turned", "part") and chosen.overall() == {name: ranges[name] for name in chosen.names}


def test_outputs_are_handed_on_while_ranges_are_recorded(tmp_path):
    torch.manual_seed(0)
    block, inputs = Block().eval(), torch.randn(3, 1, 4, 6, 5)
    export = {"dynamo": True, "opset_version": 18, "input_names": ["sample"], "verbose": False}
    torch.onnx.export(block, (inputs[0],), tmp_path / "net.onnx", **export)
    model = onnx.load(tmp_path / "net.onnx")
    reshaped = next(node for node in model.graph.node if node.op_type == "Reshape").output[0]  # no bounds of its own
    model.graph.output.append(onnx.ValueInfoProto(name=reshaped))
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, tmp_path / "net.onnx")
    graph, samples = load_graph(tmp_path / "net.onnx"), [{"sample": sample.numpy()} for sample in inputs]

    heard, done = [], []
    ranges = record_ranges(
        graph, samples, on_outputs=heard.append, on_sample=lambda count: done.append((count, len(heard)))
    )

    without = record_ranges(graph, samples)
    assert ranges.names == without.names
    assert np.array_equal(ranges.low, without.low) and np.array_equal(ranges.high, without.high)
    assert done == [(1, 1), (2, 2), (3, 3)]
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), plain, providers=["CPUExecutionProvider"])
    for sample, found in zip(samples, heard, strict=True):
        wanted = {output.name: session.run([output.name], sample)[0] for output in session.get_outputs()}
        assert list(found) == list(wanted) and len(wanted) == 2
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])
    chosen = record_ranges(graph, samples, [reshaped], on_outputs=heard.append)
    assert np.array_equal(heard[3][reshaped], heard[0][reshaped]) and chosen.names == (reshaped,)


def test_a_float_model_that_gives_nan_is_an_error_that_names_the_tensor(tmp_path, capsys):
    save(tmp_path / "net.onnx", [helper.make_node("Sqrt", ["x"], ["out"])], {"x": [2]}, {"out": [2]}, {})
    save_samples(tmp_path / "samples.tar", [{"x": -np.ones(2, np.float32)}])
    paths = ["--input", str(tmp_path / "net.onnx"), "--config", str(config(tmp_path)), "--output_dir", str(tmp_path)]
    assert main(["build", *paths]) == 1
    assert "out: range [nan, nan]" in capsys.readouterr().err


def test_a_failed_build_leaves_a_context_and_no_model(matmul, capsys):
    directory, _, _ = matmul
    (directory / "samples.tar").write_bytes(b"not an archive")
    target = directory / "fresh"
    paths = ["--input", str(directory / "net.onnx"), "--config", str(config(directory)), "--output_dir", str(target)]
    assert main(["build", *paths]) == 1
    context = json.loads((target / "build_context.json").read_text())
    assert context["code"] == "UnknownError" and "samples.tar" in context["error_msg"]
    assert [path.name for path in target.iterdir() if path.is_file()] == ["build_context.json"]
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x08no model", "is not an ONNX model"), (None, "cannot be read")],
)
def test_a_model_that_is_none_is_refused(matmul, capsys, content, message):
    directory, _, _ = matmul
    (directory / "net.onnx").unlink()
    if content:
        (directory / "net.onnx").write_bytes(content)
    paths = ["--input", str(directory / "net.onnx"), "--config", str(config(directory)), "--output_dir", str(directory)]
    assert main(["build", *paths]) == 1
    assert message in capsys.readouterr().err


def test_an_unfixed_dimension_and_half_precision_are_refused(tmp_path):
    node = helper.make_node("Relu", ["x"], ["out"])
    save(tmp_path / "loose.onnx", [node], {"x": ["batch", 4]}, {"out": ["batch", 4]}, {})
    with pytest.raises(GraphError, match="x: batch not fixed"):
        load_graph(tmp_path / "loose.onnx")
    half = ([4], TensorProto.FLOAT16)
    save(tmp_path / "half.onnx", [node], {"x": half}, {"out": half}, {})
    with pytest.raises(GraphError, match=r"x \(float16\)"):
        load_graph(tmp_path / "half.onnx")


def test_quantised_and_branching_models_are_refused(matmul, tmp_path):
    directory, _, _ = matmul
    with pytest.raises(GraphError, match="already quantised by the emulator"):
        load_graph(build(directory))
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "b", [], [helper.make_empty_tensor_value_info("y")]
    )
    node = helper.make_node("If", ["c"], ["out"], name="choose", then_branch=branch, else_branch=branch)
    save(tmp_path / "if.onnx", [node], {"x": [1], "c": ([], TensorProto.BOOL)}, {"out": [1]}, {})
    with pytest.raises(GraphError, match=r"choose \(If\)"):
        load_graph(tmp_path / "if.onnx")


def test_an_output_that_is_read_inside_too_keeps_its_name(tmp_path, rng):
    nodes = [
        helper.make_node("Sin", ["x"], ["mid"]),
        helper.make_node("Reshape", ["mid", "shape"], ["moved"]),
        helper.make_node("Cos", ["mid"], ["out"]),
    ]
    shapes = {"mid": [4], "moved": [2, 2], "out": [4]}
    save(tmp_path / "net.onnx", nodes, {"x": [4]}, shapes, {"shape": np.array([2, 2], np.int64)})
    x = rng.standard_normal(4).astype(np.float32)
    path = build(tmp_path, samples=[{"x": x}])
    assert [value.name for value in onnx.load(path).graph.output] == ["mid", "moved", "out"]
    mid, moved, out = outputs(path, x=x)
    assert np.array_equal(mid, moved.reshape(4)) and np.abs(out - np.cos(np.sin(x))).max() < 1e-4


def chain(directory, *kinds, size=64):
    """A graph of unary operators of these types, each named after its type, its result and its place: `Sin_0`."""
    nodes = [
        helper.make_node(kind, [f"t{place}" if place else "x"], [f"t{place + 1}"], name=f"{kind}_{place}")
        for place, kind in enumerate(kinds)
    ]
    nodes[-1].output[0] = "out"
    save(directory / "net.onnx", nodes, {"x": [size]}, {"out": [size]}, {})


def types(directory):
    """The data type that each activation is rounded to."""
    return {name: entry["data_type"] for name, entry in record(directory)["activations"].items()}


def span(values):
    return values.min(), values.max()


def test_a_result_is_rounded_once_in_the_type_that_its_reader_takes(tmp_path, rng):
    chain(tmp_path, "Sin", "Cos", "Neg")
    x = rng.standard_normal(64).astype(np.float32)
    layers = [*U16, {"op_type": "Cos", "data_type": "U8"}]
    found = outputs(build(tmp_path, samples=[{"x": x}], layers=layers), x=x)[0]
    assert types(tmp_path) == {"x": "U16", "t1": "U8", "t2": "U16", "out": "U16"}
    mid = np.sin(x)
    assert np.abs(found + np.cos(rounded(mid, *span(mid), 8))).max() < 1e-4


def test_of_two_readers_the_one_of_fewer_bits_rounds_anew(tmp_path, rng):
    nodes = [
        helper.make_node("Sin", ["x"], ["mid"]),
        helper.make_node("Cos", ["mid"], ["out"]),
        helper.make_node("Neg", ["mid"], ["less"]),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [64]}, {"out": [64], "less": [64]}, {})
    x = rng.standard_normal(64).astype(np.float32)
    layers = [{"op_types": ["Sin", "Cos"], "data_type": "U8"}, {"op_type": "Neg", "data_type": "U16"}]
    out, less = outputs(build(tmp_path, samples=[{"x": x}], layers=layers), x=x)
    assert types(tmp_path) == {"x": "U8", "mid": "U16", "out": "U8", "less": "U16"}
    mid = np.sin(rounded(x, *span(x), 8))
    assert np.abs(less + mid).max() < 1e-4
    cosine = np.cos(rounded(mid, *span(np.sin(x)), 8))
    assert np.abs(out - rounded(cosine, *span(np.cos(np.sin(x))), 8)).max() < 1e-2 / 2  # a step is 0.0018


def test_an_output_keeps_its_layers_type_although_it_is_read_in_fewer_bits(tmp_path, rng):
    nodes = [
        helper.make_node("Sin", ["x"], ["mid"]),
        helper.make_node("Reshape", ["mid", "shape"], ["moved"]),
        helper.make_node("Cos", ["moved"], ["out"]),
    ]
    shapes = {"moved": [4, 16], "out": [4, 16]}
    save(tmp_path / "net.onnx", nodes, {"x": [64]}, shapes, {"shape": np.array([4, 16])})
    x = rng.standard_normal(64).astype(np.float32)
    layers = [*U16, {"op_type": "Cos", "data_type": "U8"}]
    moved, _ = outputs(build(tmp_path, samples=[{"x": x}], layers=layers), x=x)
    assert np.abs(moved.ravel() - np.sin(x)).max() < 1e-4
    assert types(tmp_path) == {"x": "U16", "mid": "U16", "moved": "U8", "out": "U8"}


@pytest.mark.parametrize("data_type", ["U8", "FP32"])
def test_an_operator_that_moves_values_has_the_type_of_what_reads_it(tmp_path, rng, data_type):
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["shaped"]),
        helper.make_node("Transpose", ["shaped"], ["turned"], perm=[1, 0]),
        helper.make_node("Sin", ["turned"], ["mid"]),
        helper.make_node("Flatten", ["mid"], ["out"], axis=0),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [6, 4]}, {"out": [1, 24]}, {"shape": np.array([3, 8])})
    samples = [{"x": rng.standard_normal((6, 4)).astype(np.float32)}]
    plain = build(tmp_path, samples=samples).read_bytes()
    movers = {"op_types": ["Reshape", "Transpose", "Flatten"], "data_type": data_type}
    assert build(tmp_path, layers=[*U16, movers]).read_bytes() == plain
    assert build(tmp_path, layers=[{"op_type": "Sin", "data_type": "U16"}]).read_bytes() == plain


ONE_LAYER = [
    {"layer_name": "Mul_1"},
    {"layer_names": ["Mul_1"]},
    {"op_type": "Mul"},
    {"op_types": ["Mul", "Softmax"]},
    {"start_tensor_names": ["t1"], "end_tensor_names": ["t2"]},
]


@pytest.mark.parametrize("selector", ONE_LAYER, ids=lambda selector: next(iter(selector)))
def test_a_layer_in_float_computes_in_float_and_rounds_nothing(tmp_path, rng, selector):
    nodes = [
        helper.make_node("Sin", ["x"], ["t1"], name="Sin_0"),
        helper.make_node("Mul", ["t1", "t1"], ["t2"], name="Mul_1"),
        helper.make_node("Mul", ["t2", "three"], ["t3"], name="Mul_2"),
        helper.make_node("Cos", ["t3"], ["out"], name="Cos_3"),
    ]
    if "op_type" in selector or "op_types" in selector:
        nodes[2] = helper.make_node("Add", ["t2", "three"], ["t3"], name="Add_2")
    three = np.linspace(-3, 3, 64, dtype=np.float32)
    save(tmp_path / "net.onnx", nodes, {"x": [64]}, {"out": [64]}, {"three": three})
    x = rng.standard_normal(64).astype(np.float32)
    layers = [U16[0] | {"data_type": "U8"}, selector | {"data_type": "FP32"}]
    found = outputs(build(tmp_path, samples=[{"x": x}], layers=layers), x=x)[0]

    def combined(values):
        return values + three if nodes[2].op_type == "Add" else values * three

    exact = [np.sin(x)]
    exact += [exact[0] ** 2]
    exact += [combined(exact[1])]
    t1 = rounded(np.sin(rounded(x, *span(x), 8)), *span(exact[0]), 8)
    three = rounded(three, *span(three), 8)
    t3 = rounded(combined(rounded(t1 * t1, *span(exact[1]), 8)), *span(exact[2]), 8)
    wanted = rounded(np.cos(t3), *span(np.cos(exact[2])), 8)
    assert record(tmp_path)["float_tensors"]["t2"] == "float, as its layer's data type or input is"
    assert np.abs(found - wanted).max() < 1.01 * np.ptp(np.cos(exact[2])) / 255


def test_all_but_the_convolutions_may_be_float(tmp_path, rng):
    """The example of `advanced_build_guides.md`."""
    kernel, bias = rng.standard_normal((6, 3, 3, 3)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    nodes = [
        helper.make_node("Sin", ["x"], ["sine"]),
        helper.make_node("Conv", ["sine", "kernel", "bias"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["convolved"], ["out"]),
    ]
    constants = {"kernel": kernel, "bias": bias}
    save(tmp_path / "net.onnx", nodes, {"x": [1, 3, 8, 8]}, {"out": [1, 6, 8, 8]}, constants)
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    layers = [
        {"op_type": "Conv", "data_type": "U8", "output_data_type": "FP32"},
        U16[0] | {"data_type": "FP32"},
    ]
    found = outputs(build(tmp_path, samples=[{"x": x}], layers=layers), x=x)[0]
    sine = np.sin(x)
    operands = [rounded(sine, *span(sine), 8), rounded_weight(kernel, 0), bias]
    convolved = torch.nn.functional.conv2d(*map(torch.from_numpy, operands), padding=1)
    assert np.abs(found - torch.sigmoid(convolved).numpy()).max() < 1e-4  # the bias is S32
    assert types(tmp_path) == {"sine": "U8"}


def test_an_output_type_that_is_said_is_obeyed_although_a_relu_could_be_fused(tmp_path, rng):
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["made"]), helper.make_node("Relu", ["made"], ["out"])]
    constants = {"kernel": rng.standard_normal((4, 3, 1, 1)).astype(np.float32)}
    save(tmp_path / "net.onnx", nodes, {"x": [1, 3, 8, 8]}, {"out": [1, 4, 8, 8]}, constants)
    samples = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}]
    said = {"op_type": "Conv", "data_type": "U8", "output_data_type": "U16"}
    build(tmp_path, samples=samples, layers=[U16[0] | {"data_type": "U8"}, said])
    assert types(tmp_path) == {"x": "U8", "made": "U16", "out": "U8"}
    build(tmp_path, layers=[U16[0] | {"data_type": "U8"}])
    assert types(tmp_path) == {"x": "U8", "out": "U8"}


def test_an_output_type_acts_on_convolutions_alone_and_is_told_elsewhere(tmp_path, rng, capsys):
    chain(tmp_path, "Sin", "Cos")
    samples = [{"x": rng.standard_normal(64).astype(np.float32)}]
    plain = build(tmp_path, samples=samples).read_bytes()
    layers = [*U16, {"op_type": "Cos", "output_data_type": "U8", "data_type": "U16"}]
    assert build(tmp_path, layers=layers).read_bytes() == plain
    assert "quant.layer_configs[1].output_data_type: without effect, since Pulsar2 takes it" in capsys.readouterr().out


def test_onnxsim_runs_first_if_asked_for(tmp_path, rng):
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Mul", ["x", "two"], ["out"]),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [4]}, {"out": [4]}, {"one": np.ones(4, np.float32)})
    x = rng.standard_normal(4).astype(np.float32)
    path = build(tmp_path, "--onnx_opt.enable_onnxsim", samples=[{"x": x}])
    assert "Add" not in {node.op_type for node in onnx.load(path).graph.node}
    assert np.allclose(outputs(path, x=x)[0], 2 * x, atol=1e-3)


def test_a_model_beyond_the_limit_of_protobuf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("axbake.emulator.writer.MOST", 1000)
    with (tmp_path / "spool").open("w+b") as spool, pytest.raises(TooLargeError, match="exceed the 1000 bytes"):
        ModelWriter(tmp_path / "net", spool).add("weight", np.zeros(1000, np.int8))


def test_a_file_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), written_beside(tmp_path / "result") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


class Block(torch.nn.Module):
    """What a UNet is made of, small."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(4, 8)
        self.query, self.key = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)

    def forward(self, sample):
        hidden = torch.nn.functional.silu(self.norm(self.convolution(sample)))
        tokens = hidden.flatten(2).transpose(1, 2)
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).transpose(1, 2), -1)
        return weights @ tokens + tokens


def test_an_exported_block_stays_close_to_torch(tmp_path):
    torch.manual_seed(0)
    block, samples = Block().eval(), torch.randn(4, 1, 4, 6, 5)
    export = {"dynamo": True, "opset_version": 18, "input_names": ["sample"], "verbose": False}
    torch.onnx.export(block, (samples[0],), tmp_path / "net.onnx", **export)
    path = build(tmp_path, samples=[{"sample": sample.numpy()} for sample in samples])
    kept = record(tmp_path)["float_tensors"]
    assert sum(reason == "affine of a GroupNormalization" for reason in kept.values()) == 2
    assert len(record(tmp_path)["weights"]) == 3
    assert sqnr(block(samples[0]).detach().numpy(), outputs(path, sample=samples[0].numpy())[0]) > 35


def test_run_reads_and_writes_raw_files(matmul, capsys):
    directory, _, samples = matmul
    path = build(directory)
    for name in ("first", "second"):
        (directory / "in" / name).mkdir(parents=True)
        samples[name == "second"]["x"].tofile(directory / "in" / name / "x.bin")
    (directory / "list.txt").write_text("first\nsecond\n")
    capsys.readouterr()
    arguments = [
        "--input_dir",
        directory / "in",
        "--output_dir",
        directory / "results",
        "--list",
        directory / "list.txt",
    ]
    assert main(["run", "--model", str(path), *map(str, arguments)]) == 0
    found = np.fromfile(directory / "results/second/out.bin", np.float32).reshape(3, 5)
    assert (found == outputs(path, **samples[1])[0]).all()
    log = capsys.readouterr().out
    assert ">>> [first] start" in log and f"write [out] to [{directory}/results/second/out.bin] successfully" in log
    assert "emulated" in log.splitlines()[0] and "emulated" in log.splitlines()[-1]


def test_run_makes_random_inputs_and_runs_float_models(matmul):
    directory, _, _ = matmul
    arguments = ["--input_dir", directory / "random", "--output_dir", directory / "results", "--random_input"]
    assert main(["run", "--model", str(directory / "net.onnx"), *map(str, arguments)]) == 0
    x = np.fromfile(directory / "random/x.bin", np.float32).reshape(3, 8)
    found = np.fromfile(directory / "results/out.bin", np.float32).reshape(3, 5)
    assert np.array_equal(found, outputs(directory / "net.onnx", x=x)[0])


def test_raw_files_are_named_as_documented():
    assert bin_name("/down_blocks.0/act_1/Mul_output_0") == "_down_blocks_0_act_1_Mul_output_0.bin"


def test_run_refuses_what_it_cannot_do(matmul, capsys):
    directory, _, _ = matmul
    neu = helper.make_node("neu mode", ["x"], ["out"])
    save(directory / "board.axmodel", [neu], {"x": [1]}, {"out": [1]}, {})
    places = ["--input_dir", str(directory), "--output_dir", str(directory)]
    assert main(["run", "--model", str(directory / "board.axmodel"), *places]) == 1
    assert main(["run", "--model", str(directory / "net.onnx"), *places, "--batch_size", "4"]) == 1
    assert main(["run", "--model", str(directory / "net.onnx"), *places]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "compiled for a board" in errors[0] and "--batch_size" in errors[1] and "x.bin: no such file" in errors[2]


def test_version_says_what_it_is():
    command = [sys.executable, "-m", "axbake.emulator", "version"]
    root = Path(__file__).parents[2]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert found.startswith("axbake emulator") and "emulated; its models run on hosts only" in found
