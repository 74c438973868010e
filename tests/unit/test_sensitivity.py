"""What layers cost, against errors that are made one at a time; and ONNX's operators in torch, against ONNX Runtime."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from axbake.emulator.graph import load_graph, session
from axbake.emulator.ranges import record_ranges
from axbake.quality.assignment import FLOAT, NARROW, OUTPUT, WIDE
from axbake.quality.directions import drawing_directions, guidance_weights, important_steps
from axbake.quality.network import Network
from axbake.quality.operators import OPERATORS, NoGradient, compute
from axbake.quality.passes import Passes
from axbake.quality.records import model_of, read_model, write_model
from axbake.quality.sensitivity import Samples, measure
from axbake.runtime.sampler import Schedule
from tests.unit.test_emulator import rounded, rounded_weight, save

DIRECTIONS = 400  # so many that an estimate is within a tenth, but for one time in ten thousand


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def block(tmp_path, rng):
    """A projection that two others read, one of them with a bias; their sum. It is linear: so errors act as is assumed."""
    constants = {name: rng.standard_normal((12, 12)).astype(np.float32) for name in ("first", "left", "right")}
    constants["bias"] = rng.standard_normal(12).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="first"),
        helper.make_node("Reshape", ["h", "shape"], ["moved"], name="move"),
        helper.make_node("MatMul", ["moved", "left"], ["product"], name="left"),
        helper.make_node("Add", ["product", "bias"], ["l"], name="left_bias"),
        helper.make_node("MatMul", ["moved", "right"], ["r"], name="right"),
        helper.make_node("Add", ["l", "r"], ["y"], name="sum"),
    ]
    constants["shape"] = np.array([8, 12], np.int64)
    save(tmp_path / "net.onnx", nodes, {"x": [8, 12]}, {"y": [8, 12]}, constants)
    feeds = [{"x": rng.standard_normal((8, 12)).astype(np.float32)} for _ in range(3)]
    return tmp_path / "net.onnx", constants, feeds


def measured(path, feeds, rng):
    network = Network.load([path])
    spans = record_ranges(network.graphs[0], feeds).overall()
    outputs = sum(network.sizes[name] for name in network.outputs)
    directions = rng.standard_normal((len(feeds), DIRECTIONS, outputs)).astype(np.float32)
    samples = Samples(feeds, directions, range(len(feeds)))
    return network, spans, model_of(network, ["net"], measure(network, spans, samples), signal=1.0)


def layer(model, name):
    return next(number for number, one in enumerate(model.layers) if name in one.names)


def power(errors):
    return sum(float(np.sum(error.astype(np.float64) ** 2)) for error in errors)


def test_a_layers_cost_is_that_of_its_input_rounded_for_it_alone_and_of_its_weights(block, rng):
    path, constants, feeds = block
    _, spans, model = measured(path, feeds, rng)
    for name in ("left", "right"):
        inputs = [feed["x"] @ constants["first"] for feed in feeds]
        wrong = rounded_weight(constants[name], 1) - constants[name]
        weights = power([one @ wrong for one in inputs])
        found = model.noise_alone(layer(model, name), FLOAT)
        assert found == pytest.approx(weights, rel=0.25)
        for kind, bits in ((NARROW, 8), (WIDE, 16)):
            errors = [(rounded(one, *spans["h"], bits) - one) @ constants[name] for one in inputs]
            cost = model.noise_alone(layer(model, name), kind) - found
            assert cost == pytest.approx(power(errors), rel=0.25)


def test_errors_of_one_tensor_add_up_before_they_are_squared(block, rng):
    """Both projections read one rounded tensor, so what it costs is not the sum of what it costs each."""
    path, constants, feeds = block
    _, spans, model = measured(path, feeds, rng)
    (place,) = (place for place, one in enumerate(model.tensors) if one.name == "h")
    together = constants["left"] + constants["right"]
    inputs = [feed["x"] @ constants["first"] for feed in feeds]
    errors = [(rounded(one, *spans["h"], 8) - one) @ together for one in inputs]
    types = [NARROW] * len(model.layers)

    assert model.noise_of(place, types) == pytest.approx(power(errors), rel=0.25)
    for number in (layer(model, "left"), layer(model, "right")):
        types[number] = WIDE
    assert model.noise_of(place, types) < power(errors) / 10_000


def test_a_projection_and_its_bias_are_one_layer_and_moves_are_none(block):
    path, *_ = block
    network = Network.load([path])
    names = [[network.nodes[node].name for node in nodes] for nodes in network.layers]

    assert names == [["first"], ["left", "left_bias"], ["right"], ["sum"]]
    assert [sum(map(network.multiplications, nodes)) for nodes in network.layers] == [8 * 12 * 12] * 3 + [0]


def test_a_tensor_is_rounded_once_for_readers_of_its_type_and_anew_for_narrower_ones(block, rng):
    path, _, feeds = block
    _, _, model = measured(path, feeds, rng)
    (place,) = (place for place, one in enumerate(model.tensors) if one.name == "h")
    types = [WIDE] * len(model.layers)

    assert model.conversions_of(place, types) == 0
    types[layer(model, "left")] = NARROW
    assert model.conversions_of(place, types) == 8 * 12  # `right` still reads 16 bits
    types[layer(model, "right")] = NARROW
    assert model.conversions_of(place, types) == 0  # `first` gives 8 bits, whatever its own type
    output = next(one for one in model.tensors if OUTPUT in one.readers)
    assert (output.name, output.readers) == ("y", (OUTPUT,))


def test_a_file_says_again_what_was_measured(block, rng, tmp_path):
    path, _, feeds = block
    _, _, model = measured(path, feeds, rng)
    write_model(tmp_path / "net.json", model, {"component": "net"})
    again = read_model(tmp_path / "net.json")

    types = [NARROW, WIDE, NARROW, WIDE]
    assert again.noise(types) == pytest.approx(model.noise(types), rel=1e-3)
    assert again.narrow_share(types) == model.narrow_share(types) == pytest.approx(2 / 3)
    said = json.loads((tmp_path / "net.json").read_text())
    assert said["layers"][1]["names"] == ["left", "left_bias"] and said["component"] == "net"
    assert said["kinds"]["MatMul"]["layers"] == 3
    assert said["kinds"]["MatMul"]["db"]["U8"] < said["layers"][2]["db"]["U8"] < said["layers"][2]["db"]["U16"]


def test_an_operator_without_a_gradient_is_an_error_that_names_it(tmp_path):
    node = helper.make_node("LpNormalization", ["x"], ["y"], name="norm")
    with pytest.raises(NoGradient, match="norm: operator LpNormalization has no gradient"):
        compute(node, [torch.zeros(2, 3)], {"x": 1, "y": 1}, 18)


@pytest.mark.parametrize("component", ["unet", "vae_decoder", "text_encoder"])
def test_a_graph_in_torch_gives_what_onnx_runtime_gives(graph_of, component, rng):
    """All operators of the tiny model's graphs: in parts, as for gradients."""
    path = graph_of(component)
    network = Network.load([path])
    graph = network.graphs[0]
    feed = {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32)
        if spec.dtype == np.float32
        else rng.integers(0, 100, spec.shape).astype(spec.dtype)
        for spec in graph.inputs
    }
    _, found = Passes(network).forward(feed)
    names = [spec.name for spec in graph.outputs]
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = session(graph.model, graph.constants, level).run(names, feed)

    np.testing.assert_allclose(found, np.concatenate([one.ravel() for one in wanted]), atol=2e-4, rtol=1e-3)


CASES = {
    "AveragePool": ([(1, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "ConvTranspose": (
        [(1, 3, 5, 5), (3, 4, 3, 3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "DepthToSpace": ([(1, 8, 3, 3)], {"blocksize": 2}),
    "Elu": ([(3, 4)], {}),
    "Expand": ([(3, 1)], {}, np.array([2, 3, 4])),
    "Flatten": ([(2, 3, 4)], {"axis": 2}),
    "Gather": ([(5, 4)], {"axis": 0}, np.array([[1, -1], [0, 2]])),
    "Gelu": ([(3, 4)], {"approximate": "tanh"}),
    "LayerNormalization": ([(2, 6), (6,), (6,)], {"axis": -1}),
    "LeakyRelu": ([(3, 4)], {"alpha": 0.2}),
    "MaxPool": ([(1, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "Pad": ([(2, 3)], {}, np.array([0, 1, 2, 0])),
    "ReduceMax": ([(3, 4)], {"keepdims": 0}, np.array([1])),
    "ReduceMean": ([(3, 4)], {}, np.array([-1])),
    "Slice": ([(6, 5)], {}, np.array([1]), np.array([6]), np.array([0]), np.array([2])),
    "Softmax": ([(3, 4)], {"axis": 0}),
    "Split": ([(4, 6)], {"axis": 1}, np.array([2, 4])),
    "Squeeze": ([(1, 3, 1)], {}, np.array([0])),
    "Tile": ([(2, 3)], {}, np.array([2, 1])),
    "Transpose": ([(2, 3, 4)], {"perm": [2, 0, 1]}),
    "Unsqueeze": ([(2, 3)], {}, np.array([0, -1])),
}


@pytest.mark.parametrize("operator", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(operator, rng, tmp_path):
    shapes, attributes, *constants = CASES[operator]
    values = {f"x{place}": rng.standard_normal(shape).astype(np.float32) for place, shape in enumerate(shapes)}
    fixed = {f"c{place}": value.astype(np.int64) for place, value in enumerate(constants)}
    outputs = ["y0", "y1"] if operator == "Split" else ["y0"]
    node = helper.make_node(operator, [*values, *fixed], outputs, **attributes)
    made = compute(node, [*map(torch.from_numpy, values.values()), *fixed.values()], dict.fromkeys(outputs, 1), 20)
    shapes_made = {name: list(one.shape) for name, one in zip(outputs, made, strict=True)}
    save(tmp_path / "one.onnx", [node], {n: list(v.shape) for n, v in values.items()}, shapes_made, fixed, opset=20)
    graph = load_graph(tmp_path / "one.onnx")
    wanted = session(graph.model, graph.constants).run(outputs, values)

    for one, other in zip(made, wanted, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-5)
    assert operator in OPERATORS


def test_directions_go_back_through_guidance_sampler_and_later_steps(tmp_path, rng):
    """Against differences: a change of one step's output, and what it makes of the last latent of a drawing."""
    weight = (rng.standard_normal((3, 3, 1, 1)) * 0.3).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["sample", "weight"], ["c"], name="c"),
        helper.make_node("Tanh", ["c"], ["t"], name="t"),
        helper.make_node("Mul", ["t", "text"], ["out"], name="out"),
    ]
    shape = [1, 3, 2, 2]
    save(tmp_path / "net.onnx", nodes, {"sample": shape, "text": [1]}, {"out": shape}, {"weight": weight})
    network = Network.load([tmp_path / "net.onnx"])
    passes, steps, scale = Passes(network), 3, 4.0
    coefficients = np.tril(rng.standard_normal((steps, 1 + 2 * steps)), 1)
    coefficients[:, 1 + steps :] = 0
    schedule = Schedule(
        scheduler="euler",
        timesteps=np.arange(steps)[::-1].astype(np.float32),
        input_scale=np.array([0.5, 0.7, 0.9]),
        time_embedding=np.zeros((steps, 1), np.float32),
        init_noise_sigma=1.0,
        coefficients=coefficients,
        draws_noise=np.zeros(steps, bool),
        picture_scale=np.ones(steps),
        noise_scale=np.ones(steps),
        late_coefficients=np.zeros(0),
        guidance_embedded=False,
    )
    texts, first = (np.float32([1.0]), np.float32([0.4])), rng.standard_normal(shape)

    def draw(changed=None, change=0.0):
        latents, outputs, feeds = [first], [], {}
        for step in range(steps):
            made = []
            for branch in (0, 1):
                feeds[step, branch] = {
                    "sample": (latents[-1] * schedule.input_scale[step]).astype(np.float32),
                    "text": texts[branch],
                }
                made.append(passes.forward(feeds[step, branch])[1].reshape(shape).astype(np.float64))
                if (step, branch) == changed:
                    made[-1] = made[-1] + change
            outputs.append(scale * made[0] + (1 - scale) * made[1])
            row = coefficients[step]
            latents.append(row[0] * first + sum(row[1 + i] * one for i, one in enumerate(outputs)))
        return latents[-1], feeds

    last, feeds = draw()
    scales = guidance_weights(2, scale, None)
    weights = {(step, branch): scales[branch] for step, branch in feeds}
    found = drawing_directions(passes, feeds, schedule, weights, latent="sample", shape=tuple(shape), count=2, seed=5)
    taken = np.random.default_rng(5).standard_normal((2, *shape[1:]))
    for place, direction in found.items():
        change = rng.standard_normal(shape) * 1e-3
        moved = (draw(place, change)[0] - last)[0]
        np.testing.assert_allclose(
            direction @ change.ravel(), np.sum(taken * moved, axis=(1, 2, 3)), rtol=0.02, atol=2e-5
        )


def test_guidance_weighs_branches_as_the_sampler_does():
    assert guidance_weights(1, 7.0, None) == [1.0]
    assert guidance_weights(2, 7.0, None) == [7.0, -6.0]
    assert guidance_weights(3, 7.0, 1.5) == [7.0, -5.5, -0.5]


def test_steps_that_matter_are_looked_at_and_stand_for_all():
    power = dict.fromkeys(range(20), 1.0) | {18: 30.0, 19: 200.0}

    found = important_steps(power, 8)

    assert len(found) == 8 and found[18] == found[19] == 1.0
    assert sum(power[step] * weight for step, weight in found.items()) == pytest.approx(sum(power.values()))
    small = [step for step in found if step < 18]
    assert np.diff(small).tolist() == [3] * 5  # spread evenly where all matter alike
    assert important_steps({0: 1.0, 1: 2.0}, 8) == {0: 1.0, 1: 1.0}
    assert sum(important_steps(dict.fromkeys(range(28), 0.0), 8).values()) == pytest.approx(28)
