"""SmoothQuant, against the paper's formulas and quantisation by hand."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from axbake.emulator.config import Smoothing, build_config
from axbake.emulator.graph import load_graph, session
from axbake.emulator.precision import resolve_precision
from axbake.emulator.smoothing import smooth
from tests.unit.test_emulator import (
    U16,
    build,
    outputs,
    record,
    rounded,
    rounded_weight,
    save,
    save_samples,
    span,
    sqnr,
)

U8 = [U16[0] | {"data_type": "U8"}]
SMOOTH = {"enable_smooth_quant": True}
EVERY = Smoothing(threshold=1)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def gain(channels, rng):
    """An affine that makes two of its channels far larger than the others."""
    values = rng.uniform(0.8, 1.2, channels).astype(np.float32)
    values[[1, channels // 2]] *= 40
    return values


@pytest.fixture
def block(tmp_path, rng):
    """A LayerNormalization with two outliers among 16 channels, two projections that read it, and three samples."""
    constants = {
        "gain": gain(16, rng),
        "shift": rng.standard_normal(16).astype(np.float32),
        "query": rng.standard_normal((16, 24)).astype(np.float32),
        "key": rng.standard_normal((16, 8)).astype(np.float32) * 3,
        "key_bias": rng.standard_normal(8).astype(np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normed"]),
        helper.make_node("MatMul", ["normed", "query"], ["q"]),
        helper.make_node("MatMul", ["normed", "key"], ["product"]),
        helper.make_node("Add", ["product", "key_bias"], ["k"]),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [6, 16]}, {"q": [6, 24], "k": [6, 8]}, constants)
    samples = [{"x": rng.standard_normal((6, 16)).astype(np.float32)} for _ in range(3)]
    save_samples(tmp_path / "samples.tar", samples)
    return tmp_path, constants, samples


def smoothed(directory, samples, said=EVERY, layers=U8):
    """The graph of *directory* before smoothing and after."""
    graph = load_graph(directory / "net.onnx")
    quant = {"input_configs": [{"tensor_name": "DEFAULT", "calibration_dataset": "s.tar"}], "layer_configs": layers}
    precision = resolve_precision(graph, build_config({"input": "n", "output_dir": "o", "quant": quant}).layers)
    return graph, smooth(graph, samples, precision, said)


def values(graph, sample):
    """The outputs of a float *graph*."""
    names = [spec.name for spec in graph.outputs]
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return dict(zip(names, session(graph.model, graph.constants, level).run(names, sample), strict=True))


def normed(constants, x):
    """LayerNormalization as torch does it."""
    affine = [torch.from_numpy(constants[name]) for name in ("gain", "shift")]
    return torch.nn.functional.layer_norm(torch.from_numpy(x), (16,), *affine).numpy()


def factors(constants, samples, strength=0.6):
    """s_j of the paper, for the weights of both layers together."""
    activations = np.abs(np.concatenate([normed(constants, sample["x"]) for sample in samples])).max(axis=0)
    weights = np.abs(np.concatenate([constants["query"], constants["key"]], axis=1)).max(axis=1)
    return activations.astype(np.float64) ** strength / weights.astype(np.float64) ** (1 - strength)


@pytest.mark.parametrize("strength", [0.25, 0.6, 1.0])
def test_the_factors_are_the_papers(block, strength):
    directory, constants, samples = block
    _, result = smoothed(directory, samples, Smoothing(threshold=1, strength=strength))
    s = factors(constants, samples, strength)
    found = {name.partition("/")[0]: array for name, array in result.graph.constants.items()}
    np.testing.assert_allclose(found["gain"], constants["gain"] / s, rtol=1e-4)
    np.testing.assert_allclose(found["shift"], constants["shift"] / s, rtol=1e-4)
    np.testing.assert_allclose(found["query"], constants["query"] * s[:, None], rtol=1e-4)
    np.testing.assert_allclose(found["key"], constants["key"] * s[:, None], rtol=1e-4)
    largest = np.abs(np.concatenate([normed(constants, sample["x"]) for sample in samples])).max(axis=0)
    assert result.tensors["normed"] == pytest.approx(
        {"largest": largest.max(), "largest_after": (largest / s).max()}, rel=1e-4
    )


def test_a_smoothed_build_is_quantised_as_by_hand(block):
    directory, constants, samples = block
    path = build(directory, layers=U8, quant=SMOOTH | {"smooth_quant_strength": 0.5})
    s = factors(constants, samples, 0.5)
    affine = {name: (constants[name] / s).astype(np.float32) for name in ("gain", "shift")}
    every = np.concatenate([sample["x"] for sample in samples])
    x = rounded(samples[1]["x"], *span(every), 8)
    divided = rounded(normed(affine, x), *span(normed(affine, every)), 8)
    weight = rounded_weight((constants["query"] * s[:, None]).astype(np.float32), 1)
    exact = normed(constants, every) @ constants["query"]
    wanted = rounded(divided @ weight, *span(exact), 8)
    assert np.abs(outputs(path, **samples[1])[0] - wanted).max() <= np.ptp(exact) / 255 * 1.01
    assert list(record(directory)["smoothed"]) == ["normed"]


@pytest.mark.parametrize("method", ["MinMax", "MSE"])
def test_what_lies_beside_outliers_is_kept_better(block, method):
    directory, constants, samples = block
    quality = {}
    for name, quant in {"plain": {}, "smooth": SMOOTH}.items():
        path = build(directory, layers=U8, quant=quant | {"calibration_method": method})
        results = [outputs(path, **sample)[0] for sample in samples]
        wanted = [normed(constants, sample["x"]) @ constants["query"] for sample in samples]
        quality[name] = sqnr(np.array(wanted), np.array(results))
    assert quality["smooth"] > quality["plain"] + 1  # dB


def network(*lines):
    """Nodes, written `MatMul x weight > out`; attributes follow as `transB=1`."""
    found = []
    for line in lines:
        left, _, right = line.partition(" > ")
        (kind, *inputs), (result, *said) = left.split(), right.split()
        attributes = {
            name: float(value) if "." in value else int(value) for name, value in (pair.split("=") for pair in said)
        }
        found.append(helper.make_node(kind, inputs, [result], **attributes))
    return found


def chain(directory, nodes, shape, constants, out):
    """Save a graph with one sample."""
    used = {name for node in nodes for name in node.input}
    kept = {name: value for name, value in constants.items() if name in used}
    save(directory / "net.onnx", nodes, {"x": shape}, {"out": out}, kept)
    return [{"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}]


def numbers(rng):
    """Constants of the networks below: for pictures (1, 3, 4, 4) and tables (7, 5)."""
    shapes = {
        **{"kernel": (6, 3, 1, 1), "bias": (6,), "second": (4, 6, 1, 1), "up": (3, 6, 1, 1), "down": (6, 4, 1, 1)},
        **{"gain": (6, 1, 1), "shift": (1, 6, 1, 1), "one": (3,), "two": (3,), "three": (3,), "narrow": (4, 3, 1, 1)},
        **{"matrix": (5, 6), "turned": (6, 5), "last": (6, 4), "last_turned": (4, 6), "square": (5, 5), "row": (5,)},
        **{"end": (4, 4), "half": ()},
    }
    floats = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    fixed = {"ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32), "variance": np.ones(3, np.float32)}
    return floats | fixed | {"groups": np.array([1, 2, 48]), "picture": np.array([1, 6, 4, 4])}


GROUP_NORMALIZATION = (
    "Conv x kernel bias > a",
    "Reshape a groups > b",
    "InstanceNormalization b ones zeros > c",
    "Reshape c picture > d",
    "Mul d gain > e",
    "Add shift e > t",
    "Conv t second > out",
)
# Each way in which an activation `t` can be divided.
PICTURES = {
    "Conv": ("Conv x kernel bias > t", "Conv t second > out"),
    "Conv without bias, Relu": ("Conv x kernel > a", "Relu a > t", "Conv t second > out"),
    "ConvTranspose": ("ConvTranspose x up bias > t", "ConvTranspose t down > out"),
    "GroupNormalization as exporters write it": GROUP_NORMALIZATION,
    "BatchNormalization": ("BatchNormalization x one two three variance > t", "Conv t narrow > out"),
}
TABLES = {
    "MatMul and Add": ("MatMul x matrix > a", "Add a bias > t", "MatMul t last > out"),
    "Gemm": ("Gemm x turned bias > t transB=1 alpha=0.5 beta=2.0", "Gemm t last_turned > out transB=1"),
    "Mul by one number": ("Mul x half > a", "MatMul a matrix > t", "MatMul t last > out"),
    "two in a row": ("MatMul x matrix > t", "MatMul t last > u", "MatMul u end > out"),
}


@pytest.mark.parametrize("way", PICTURES | TABLES)
def test_a_smoothed_graph_computes_the_same_in_float(tmp_path, rng, way):
    shape, out = ([1, 3, 4, 4], [1, 4, 4, 4]) if way in PICTURES else ([7, 5], [7, 4])
    nodes = network(*(PICTURES | TABLES)[way])
    samples = chain(tmp_path, nodes, shape, numbers(rng), out)
    before, result = smoothed(tmp_path, samples)
    assert set(result.tensors) == {"two in a row": {"t", "u"}, "Mul by one number": {"a", "t"}}.get(way, {"t"})
    wanted, found = (values(graph, samples[0])["out"] for graph in (before, result.graph))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in result.graph.nodes] == [node.op_type for node in before.nodes]


# Activations that cannot be divided, or must not be.
LEFT_ALONE = {
    "an input of the graph": ("MatMul x square > out",),
    "behind a Sigmoid": ("MatMul x matrix > t", "Sigmoid t > u", "MatMul u last > out"),
    "a product of two": ("MatMul x matrix > t", "Mul t t > u", "MatMul u last > out"),
    "a sum of two": ("MatMul x matrix > t", "MatMul x matrix > s", "Add t s > u", "MatMul u last > out"),
    "read by a sum too": ("Sin x > a", "Mul a row > t", "MatMul t square > b", "Add b t > out"),
    "a sum with what cannot": ("Sin x > a", "Add a row > t", "MatMul t square > out"),
    "made of what is read elsewhere": ("MatMul x square > a", "Add a row > t", "MatMul t square > b", "Add b a > out"),
}


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_cannot_be_divided_is_left_alone(tmp_path, rng, what):
    nodes = network(*LEFT_ALONE[what])
    out = [7, 4] if "last" in {name for node in nodes for name in node.input} else [7, 5]
    samples = chain(tmp_path, nodes, [7, 5], numbers(rng), out)
    before, result = smoothed(tmp_path, samples)
    assert result.tensors == {} and result.graph is before


def test_an_output_of_the_graph_is_left_alone(block):
    directory, constants, samples = block
    nodes = load_graph(directory / "net.onnx").nodes[:2]
    kept = {name: constants[name] for name in ("gain", "shift", "query")}
    save(directory / "net.onnx", nodes, {"x": [6, 16]}, {"q": [6, 24], "normed": [6, 16]}, kept)
    assert smoothed(directory, samples)[1].tensors == {}


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 0), (0.02, 0), (0.2, 1), (1.0, 2)])
def test_a_larger_threshold_involves_more_activations(tmp_path, rng, threshold, count):
    """The median channel of `t` reaches 1/40 of its largest; that of `u`, which has no outliers, more than half."""
    constants = {
        "gain": gain(16, rng),
        "none": rng.uniform(0.9, 1.1, 16).astype(np.float32),
        "first": np.eye(16, dtype=np.float32),
        "second": rng.standard_normal((16, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["t"]),
        helper.make_node("MatMul", ["t", "first"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "none"], ["b"]),
        helper.make_node("LayerNormalization", ["x", "none"], ["u"]),
        helper.make_node("MatMul", ["u", "second"], ["out"]),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [400, 16]}, {"out": [400, 4], "b": [400, 16]}, constants)
    samples = [{"x": rng.standard_normal((400, 16)).astype(np.float32)}]
    plain = build(tmp_path, samples=samples, layers=U8).read_bytes()
    path = build(tmp_path, layers=U8, quant=SMOOTH | {"smooth_quant_threshold": threshold})
    assert len(record(tmp_path).get("smoothed", {})) == count
    assert (path.read_bytes() == plain) == (count == 0)


@pytest.mark.parametrize(
    "layers", [[*U8, {"op_type": "MatMul", "data_type": "FP32"}], [U8[0] | {"weight_data_type": "FP32"}]]
)
def test_layers_in_float_need_no_smoothing(block, layers):
    directory, _, samples = block
    assert smoothed(directory, samples, layers=layers)[1].tensors == {}


def test_a_channel_that_is_always_zero_keeps_its_weights(tmp_path, rng):
    constants = {"gain": gain(16, rng), "query": rng.standard_normal((16, 24)).astype(np.float32)}
    constants["gain"][3] = 0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["t"]),
        helper.make_node("MatMul", ["t", "query"], ["out"]),
    ]
    samples = chain(tmp_path, nodes, [6, 16], constants, [6, 24])
    _, result = smoothed(tmp_path, samples)
    found = {name.partition("/")[0]: array for name, array in result.graph.constants.items()}
    assert np.array_equal(found["query"][3], constants["query"][3])
    assert not np.array_equal(found["query"][2], constants["query"][2])


def test_a_matrix_that_two_layers_share_is_scaled_for_each(tmp_path, rng):
    constants = {
        "one": gain(6, rng),
        "two": gain(6, rng)[::-1].copy(),
        "shared": rng.standard_normal((6, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["t"]),
        helper.make_node("Mul", ["x", "two"], ["u"]),
        helper.make_node("MatMul", ["t", "shared"], ["a"]),
        helper.make_node("MatMul", ["u", "shared"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["out"]),
    ]
    samples = chain(tmp_path, nodes, [9, 6], constants, [9, 4])
    before, result = smoothed(tmp_path, samples)
    assert set(result.tensors) == {"t", "u"}
    assert [name for name in result.graph.constants if name == "shared"] == []  # both have their own
    np.testing.assert_allclose(
        values(result.graph, samples[0])["out"], values(before, samples[0])["out"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("opset", [17, 18])
def test_channels_are_seen_at_every_opset(tmp_path, rng, opset):
    constants = {"gain": gain(8, rng).reshape(8, 1, 1), "kernel": rng.standard_normal((4, 8, 1, 1)).astype(np.float32)}
    nodes = [helper.make_node("Mul", ["x", "gain"], ["t"]), helper.make_node("Conv", ["t", "kernel"], ["out"])]
    save(tmp_path / "net.onnx", nodes, {"x": [1, 8, 3, 2]}, {"out": [1, 4, 3, 2]}, constants, opset=opset)
    samples = [{"x": rng.standard_normal((1, 8, 3, 2)).astype(np.float32)} for _ in range(2)]
    _, result = smoothed(tmp_path, samples)
    product = np.abs(np.concatenate([sample["x"] * constants["gain"] for sample in samples])).max()
    assert result.tensors["t"]["largest"] == pytest.approx(product)


def test_the_log_and_the_record_say_what_was_smoothed(block, capsys):
    build(block[0], layers=U8, quant=SMOOTH)
    log = capsys.readouterr().out
    assert "SmoothQuant: moved outliers of 1 activations into the weights that read them" in log
    assert "Calibration Progress(Phase 1): 100%" in log and "Calibration Progress(Phase 2): 100%" in log
    build(block[0], layers=U8)
    assert "smoothed" not in json.loads((block[0] / "out/quant/quant_axmodel.json").read_text())
