"""Recipes: the search on layers whose noises are known, a network in which 16 bits are not enough, and files that do not fit."""

import numpy as np
import pytest
from onnx import helper

from axbake.distance import sqnr
from axbake.emulator.graph import session
from axbake.emulator.ranges import record_ranges
from axbake.quality.assignment import FLOAT, NARROW, OUTPUT, WIDE, Layer, Model, Tensor
from axbake.quality.network import Network
from axbake.quality.recipe import RecipeError, read_recipe, recipe_of, with_recipe, write_recipe
from axbake.quality.records import model_of
from axbake.quality.search import cured, path, point, within
from axbake.quality.sensitivity import Samples, measure
from tests.double.arguments import check_build
from tests.unit.test_emulator import U16, build, outputs, save, save_samples

CONFIG = {"quant": {"layer_configs": U16}}


def chain(costs, multiplications):
    """Layers one after the other, each with what its input costs in 8 bits; in 16 bits nothing does."""
    layers = [
        Layer("net", (f"layer_{n}",), "Conv", count, {NARROW: 1.0, WIDE: 1.0})
        for n, count in enumerate(multiplications)
    ]
    tensors = [
        Tensor(f"t{n}", n - 1 if n else None, False, 10, (n,), {NARROW: np.array([[cost]]), WIDE: np.zeros((1, 1))})
        for n, cost in enumerate(costs)
    ]
    end = len(layers) - 1
    tensors.append(Tensor("y", end, False, 10, (OUTPUT,), {NARROW: np.zeros((1, 1)), WIDE: np.zeros((1, 1))}))
    return Model(1e6, layers, tensors)


def test_the_layer_that_saves_most_for_its_noise_goes_to_8_bits_first():
    model = chain([5.0, 1.0, 50.0], [1000, 1000, 100_000])

    assert [layer for layer, _ in path(model, [WIDE] * 3)] == [2, 1, 0]


def test_as_many_layers_as_the_budget_allows_are_in_8_bits():
    model = chain([5.0, 1.0, 50.0], [1000, 1000, 1000])
    for limit, wanted in ((3.5, []), (4.5, [1]), (9.5, [0, 1]), (60, [0, 1, 2])):  # the weights cost 3
        types = within(model, [WIDE] * 3, limit)
        assert [n for n, kind in enumerate(types) if kind == NARROW] == wanted
        assert model.noise(types) <= max(limit, model.least)


def test_a_layer_that_only_converts_more_than_it_multiplies_saves_nothing():
    """Two readers of a large tensor: the one that hardly multiplies would have it rounded again."""
    layers = [Layer("net", (name,), "MatMul", count, {}) for name, count in (("big", 10**7), ("small", 1000))]
    noise = {NARROW: np.eye(2), WIDE: np.zeros((2, 2))}
    model = Model(1e6, layers, [Tensor("x", None, False, 10**5, (0, 1), noise)])

    assert model.conversions([WIDE, WIDE]) == 10**5
    assert model.conversions([NARROW, WIDE]) == 2 * 10**5
    assert [layer for layer, _ in path(model, [WIDE, WIDE])] == [
        0,
        1,
    ]  # once `big` reads 8 bits, `small` saves conversions
    assert point(model, [NARROW, WIDE]).narrow_share == pytest.approx(10**7 / (10**7 + 1000))


@pytest.fixture(scope="module")
def peaked(tmp_path_factory):
    """A residual stream of which two channels are 10⁴ times the median, as transformers have them, between normalisations."""
    directory, rng = tmp_path_factory.mktemp("peaked"), np.random.default_rng(3)
    shift = np.zeros((16, 32), np.float32)  # of each token: no bias of the layer before it, which computes in integers
    shift[:, [5, 6]] = 1e4, -1e4
    constants = {name: (rng.standard_normal((32, 32)) / 6).astype(np.float32) for name in ("w0", "w1", "w2")}
    constants |= {"shift": shift, "gain": np.ones(32, np.float32), "zero": np.zeros(32, np.float32)}
    # As in a trained network they are of no use behind the normalisation, which scales the others up again.
    constants["gain"] *= np.float32(1e4 / 4)
    constants["gain"][[5, 6]] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="embed"),
        helper.make_node("Add", ["a", "shift"], ["stream"], name="stream"),
        helper.make_node("LayerNormalization", ["stream", "gain", "zero"], ["n0"], name="norm_0", epsilon=1e-6),
        helper.make_node("MatMul", ["n0", "w1"], ["m0"], name="mlp_0"),
        helper.make_node("Add", ["stream", "m0"], ["stream_1"], name="residual_0"),
        helper.make_node("LayerNormalization", ["stream_1", "gain", "zero"], ["n1"], name="norm_1", epsilon=1e-6),
        helper.make_node("MatMul", ["n1", "w2"], ["y"], name="out"),
    ]
    save(directory / "net.onnx", nodes, {"x": [16, 32]}, {"y": [16, 32]}, constants)
    samples = [{"x": rng.standard_normal((16, 32)).astype(np.float32)} for _ in range(6)]
    save_samples(directory / "samples.tar", samples)
    network = Network.load([directory / "net.onnx"])
    spans = record_ranges(network.graphs[0], samples).overall()
    directions = rng.standard_normal((3, 64, 16 * 32)).astype(np.float32)
    wanted = session(network.graphs[0].model, network.graphs[0].constants).run(["y"], samples[0])[0]
    found = measure(network, spans, Samples(samples[:3], directions, range(3)))
    return directory, samples[0], wanted, model_of(network, ["net"], found, 3 * float(np.sum(wanted**2.0)))


def test_a_stream_with_peaks_is_found_named_and_cured_with_few_layers_in_float(peaked):
    directory, sample, wanted, model = peaked
    plain = point(model, [WIDE] * len(model.layers))
    types = cured(model, 2 * model.least)
    floating = [model.layers[n].names[0] for n, kind in enumerate(types) if kind == FLOAT]

    peaks = {tensor.name: tensor.peak for tensor in model.tensors}
    assert peaks["stream"] > 1e4 and peaks["stream_1"] > 1e3 and max(peaks["n0"], peaks["x"]) < 1e2
    assert {"stream", "norm_0", "residual_0", "norm_1"} == set(floating)
    recipe = recipe_of(model.layers, types)
    config = with_recipe(CONFIG, recipe, "net", directory / "net.onnx")
    (before,) = outputs(build(directory), x=sample["x"])
    (after,) = outputs(build(directory, layers=config["quant"]["layer_configs"]), x=sample["x"])
    assert sqnr(wanted, after) > sqnr(wanted, before) + 15
    assert sqnr(wanted, before) == pytest.approx(plain.sqnr_db, abs=3)
    assert sqnr(wanted, after) == pytest.approx(point(model, types).sqnr_db, abs=3)


def test_a_config_with_a_recipe_is_as_documented(peaked, tmp_path):
    """By the double's own table of fields, and every layer is in the graph."""
    directory, _, _, model = peaked
    types = within(model, cured(model, 2 * model.least), 4 * model.least)
    recipe = recipe_of(model.layers, types)
    write_recipe(tmp_path / "recipe.yaml", recipe, "for a test")
    again = read_recipe(tmp_path / "recipe.yaml")
    assert again == recipe and (tmp_path / "recipe.yaml").read_text().startswith("# for a test\nbase: U16\n")
    archive = str(directory / "samples.tar")
    inputs = [{"tensor_name": "DEFAULT", "calibration_dataset": archive, "calibration_format": "NumpyObject"}]
    whole = {"model_type": "ONNX", "quant": {"input_configs": inputs, "layer_configs": U16}}
    config = with_recipe(whole, again, "net", directory / "net.onnx")

    check_build(config | {"input": "net.onnx", "output_dir": "out"})  # raises what it refuses
    named = {name for entry in config["quant"]["layer_configs"][1:] for name in entry["layer_names"]}
    assert named == {
        name for layer, kind in zip(model.layers, types, strict=True) if kind != WIDE for name in layer.names
    }
    assert config["quant"]["layer_configs"][0] == U16[0]  # what the rest has stays


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("layers: {}", "holds no layers"),
        ("base: U8\nlayers: {net: {U8: [a]}}", "base: 'U8'"),
        ("layers: {net: {U4: [a]}}", "layers/net/U4: unknown type"),
        ("layers: {net: {U8: a}}", "layers/net/U8: not a list of names"),
        ("layers: {net: {U8: [a, b], FP32: [b]}}", "layers/net: b: named twice"),
        ("layer: {net: {U8: [a]}}\nlayers: {net: {U8: [a]}}", "layer: unknown"),
        ("{", "recipe.yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_what_is_wrong(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "wanted" in str(caught.value).lower()


def test_a_recipe_of_another_graph_is_refused_with_the_nearest_name(peaked, tmp_path):
    graph = peaked[0] / "net.onnx"
    (tmp_path / "recipe.yaml").write_text("layers: {net: {U8: [mlp_1]}, other: {U8: [a]}}")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"net: the graph has no layers mlp_1 \(did you mean mlp_0\?\)"):
        with_recipe(CONFIG, recipe, "net", graph)
    with pytest.raises(RecipeError, match="unet: the recipe has no graph of this name, only net, other"):
        with_recipe(CONFIG, recipe, "unet", graph)
