"""Ranges by percentiles and by least squared error, against values that are observed and searched one by one."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from axbake.emulator.__main__ import main
from axbake.emulator.calibration import BINS, Calibration, calibrate, least_error
from axbake.emulator.graph import GraphError, load_graph
from tests.unit.test_emulator import U16, build, config, outputs, record, rounded, save, save_samples, sqnr

U8 = [U16[0] | {"data_type": "U8"}]


@pytest.fixture
def net(tmp_path):
    """Three samples, of values with far outliers, through an Exp, a Transpose and a Relu."""
    rng = np.random.default_rng(11)
    nodes = [
        helper.make_node("Mul", ["x", "third"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["turned"], perm=[1, 0]),
        helper.make_node("Relu", ["turned"], ["cut"]),
        helper.make_node("Exp", ["cut"], ["out"]),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": [200, 325]}, {"out": [325, 200]}, {"third": np.array([1 / 3], np.float32)})
    samples = [{"x": rng.standard_t(4, (200, 325)).astype(np.float32)} for _ in range(3)]
    save_samples(tmp_path / "samples.tar", samples)
    return tmp_path, samples


def observed(path, samples):
    """Every float tensor of a plain run, by name: a list of arrays, one a sample."""
    model = onnx.load(path)
    made = [name for node in model.graph.node for name in node.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name != "out")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [dict(zip(made, session.run(made, sample), strict=True)) | sample for sample in samples]
    return {name: [run[name] for run in runs] for name in runs[0]}


def found(directory, samples, method):
    return calibrate(load_graph(directory / "net.onnx"), method, lambda: samples, lambda phase, done: None)


def test_minmax_takes_what_was_observed(net):
    directory, samples = net
    calibration = found(directory, samples, "MinMax")
    for name, values in observed(directory / "net.onnx", samples).items():
        assert calibration.span(name, "U8") == (np.min(values), np.max(values))
    assert not calibration.clipped


def test_percentile_takes_the_mean_of_each_samples_tails(net):
    directory, samples = net
    calibration = found(directory, samples, "Percentile")
    for name, values in observed(directory / "net.onnx", samples).items():
        flat = [torch.from_numpy(value).flatten() for value in values]
        # 65,000 values: 6 of them lie beyond either tail.
        low = np.mean([torch.kthvalue(value, 6 + 1).values for value in flat], dtype=np.float64)
        high = np.mean([torch.kthvalue(value, 65_000 - 6).values for value in flat], dtype=np.float64)
        for data_type in ("U8", "S16"):
            np.testing.assert_allclose(calibration.span(name, data_type), (low, high), rtol=1e-6)
        assert calibration.observed[name] == (np.min(values), np.max(values))


def test_a_percentile_of_few_values_is_their_largest(net):
    directory, _ = net
    save(directory / "net.onnx", [helper.make_node("Sin", ["x"], ["out"])], {"x": [7]}, {"out": [7]}, {})
    x = np.arange(7, dtype=np.float32) - 2
    assert found(directory, [{"x": x}, {"x": 3 * x}], "Percentile").span("x", "U8") == (-4, 8)


def brute_force(values, bits=8):
    """The least squared error of all ranges of the grid, each by rounding all *values*."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    width = (high - low) / 2048
    errors = [
        np.square(values - rounded(values, low + start * width, low + (start + 256 * step) * width, bits)).mean()
        for start in range(0, 2048, 64)
        for step in range(1, 9)
        if low + start * width <= 0 and start + 256 * step <= 2304
    ]
    return min(errors)


@pytest.mark.parametrize("name", ["x", "scaled", "turned", "cut", "out"])
def test_least_squares_finds_about_the_best_range(net, name):
    directory, samples = net
    calibration = found(directory, samples, "MSE")
    values = np.concatenate([value.ravel() for value in observed(directory / "net.onnx", samples)[name]])
    error = np.square(values - rounded(values, *calibration.span(name, "U8"), 8)).mean()
    assert error <= 1.03 * brute_force(values)
    whole = np.square(values - rounded(values, values.min(), values.max(), 8)).mean()
    assert error < 0.9 * whole if values.min() < -1 else error <= whole  # of the others the largest values decide
    assert calibration.span(name, "U16") == (values.min(), values.max())


def written_out(histogram, start, step):
    """Squared error of the range that begins at bin *start* and has 256 steps of *step* bins, bin by bin."""
    places, end = np.arange(BINS), start + 256 * step
    left = (places - start) % step
    right = step - 1 - left
    inner = np.where(left == right, left + 0.25, np.minimum(left, right) + 0.5)
    error = np.select([places < start, places > end], [start - places - 0.5, places - end + 0.5], inner)
    return float((histogram * error**2).sum())


@pytest.mark.parametrize("seed", range(16))
def test_the_error_of_a_range_is_what_its_steps_and_its_ends_leave(seed):
    rng = np.random.default_rng(seed)
    shape = np.exp(-np.square((np.arange(BINS) - rng.integers(300, 1900)) / (20 + 8 * seed)))
    histogram = (shape * 9e3 + rng.integers(0, 3, BINS) * (rng.random(BINS) < 0.02)).astype(np.int64)
    low, high = -18.44, 2.04  # 0 is where bin 1844 begins
    width = (high - low) / BINS
    ranges = [(start, step) for start in range(0, 1841, 8) for step in range(1, 9) if start + 256 * step <= BINS + 256]
    _, start, step = min((written_out(histogram, *choice), *choice) for choice in ranges)
    found = least_error(histogram, low, high)
    assert found == pytest.approx((low + start * width, low + (start + 256 * step) * width))


def test_a_range_spans_zero_though_no_value_is_near_it():
    histogram = np.zeros(BINS, np.int64)
    histogram[1500:1600] = 7
    assert least_error(histogram, 0.0, 2048.0) == (0.0, 1792.0)  # 7 bins a step, the least that reach so far


@pytest.mark.parametrize("method", ["Percentile", "MSE"])
def test_a_build_encodes_the_ranges_that_the_method_finds(net, method):
    directory, samples = net
    calibration = found(directory, samples, method)
    path = build(directory, layers=U8, quant={"calibration_method": method})
    for name, entry in record(directory)["activations"].items():
        assert (entry["low"], entry["high"]) == calibration.span(name, "U8")
    x = samples[0]["x"]
    scaled = rounded(rounded(x, *calibration.span("x", "U8"), 8) / 3, *calibration.span("scaled", "U8"), 8)
    out = np.exp(np.maximum(scaled.T, 0))
    wanted = rounded(out, *calibration.span("out", "U8"), 8)
    low, high = calibration.span("out", "U8")
    assert (np.abs(outputs(path, x=x)[0] - wanted) > 1.01 * (high - min(low, 0)) / 255).mean() < 1e-3


def test_outliers_cost_less_where_they_are_clipped(net):
    directory, samples = net
    # A Transpose alone, so that the output is the input, rounded once.
    turn = helper.make_node("Transpose", ["x"], ["out"])
    save(directory / "net.onnx", [turn], {"x": [200, 325]}, {"out": [325, 200]}, {})
    quality, typical = {}, {}
    for method in ("MinMax", "Percentile", "MSE"):
        path = build(directory, layers=U8, quant={"calibration_method": method})
        results = [(sample["x"].T, outputs(path, **sample)[0]) for sample in samples]
        quality[method] = sqnr(*map(np.array, zip(*results, strict=True)))
        typical[method] = np.median([np.abs(wanted - got) for wanted, got in results])
    assert quality["MSE"] > max(quality["MinMax"], quality["Percentile"]) + 0.5  # dB
    assert typical["Percentile"] < 0.6 * typical["MinMax"]  # at the price of the few that are clipped


def test_sixteen_bits_of_least_squares_are_those_of_minmax(net):
    directory, _ = net
    plain = build(directory, layers=U16).read_bytes()
    assert build(directory, layers=U16, quant={"calibration_method": "MSE"}).read_bytes() == plain


def test_a_tensor_that_is_nearly_always_zero_keeps_what_was_observed(tmp_path):
    x = np.zeros(50_000, np.float32)
    x[:2] = -1, 3
    save(tmp_path / "net.onnx", [helper.make_node("Sin", ["x"], ["out"])], {"x": [50_000]}, {"out": [50_000]}, {})
    assert found(tmp_path, [{"x": x}], "Percentile").span("x", "U8") == (-1, 3)


@pytest.mark.parametrize("method", ["Percentile", "MSE"])
def test_nan_is_still_an_error_that_names_the_tensor(tmp_path, capsys, method):
    save(tmp_path / "net.onnx", [helper.make_node("Sqrt", ["x"], ["out"])], {"x": [2]}, {"out": [2]}, {})
    save_samples(tmp_path / "samples.tar", [{"x": np.array([-1, 4], np.float32)}])
    path = config(tmp_path, quant={"calibration_method": method})
    arguments = ["--input", tmp_path / "net.onnx", "--config", path, "--output_dir", tmp_path]
    assert main(["build", *map(str, arguments)]) == 1
    assert "out: range [nan, nan]" in capsys.readouterr().err


def test_a_mask_stays_float_whatever_the_method(tmp_path):
    x = np.zeros(50_000, np.float32)
    x[:2], x[9] = (-1, 3), -3.4e38  # so few that a percentile would not see it
    save(tmp_path / "net.onnx", [helper.make_node("Identity", ["x"], ["out"])], {"x": [50_000]}, {"out": [50_000]}, {})
    for method in ("Percentile", "MSE"):
        path = build(tmp_path, samples=[{"x": x}], layers=U8, quant={"calibration_method": method})
        assert np.array_equal(outputs(path, x=x)[0], x)


def test_an_early_opset_has_no_histogram(net):
    directory, samples = net
    model = onnx.load(directory / "net.onnx")
    model.opset_import[0].version = 13
    onnx.save(model, directory / "net.onnx")
    with pytest.raises(GraphError, match="of opset 13, wanted 16 or later"):
        found(directory, samples, "MSE")
    assert isinstance(found(directory, samples, "Percentile"), Calibration)


def test_both_passes_show_how_far_they_are(net, capsys):
    build(net[0], quant={"calibration_method": "MSE"})
    log = capsys.readouterr().out
    assert "Calibration Progress(Phase 1): 100%" in log and "Calibration Progress(Phase 2):  33%" in log
