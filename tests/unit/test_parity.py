"""Graphs are compared with their network, and one that is not it is far from it; what is near enough is judged elsewhere."""

import json
import shutil

import numpy as np
import onnx
import pytest

from axbake.graphs.parity import measure_parity
from axbake.judging import ParityError, hold_parity
from tests.builds import COLUMNS
from tests.unit.conftest import SD1, tensors_of


def measure(model, component, graph, parity):
    """What the check reports of *graph* against the network of *component*."""
    part = model.family.component(component)
    measure_parity(
        model.weights[component],
        [graph],
        [tensors_of(graph)],
        component=component,
        build=part.build,
        pieces=part.graphs,
        example=part.example,
        columns={name: COLUMNS[name] for name in part.columns},
        parity=parity,
    )
    return json.loads(parity.read_text())


@pytest.mark.parametrize("component", SD1.names)
def test_a_right_graph_passes_and_says_how_near_it_is(model, graph_of, component, tmp_path):
    said = measure(model, component, graph_of(component), tmp_path / "parity.json")

    hold_parity(tmp_path / "parity.json", min_psnr=60)
    graph = onnx.load(graph_of(component), load_external_data=False).graph
    assert said["component"] == component
    assert said["output"] == graph.output[0].name
    assert "graphs" not in said  # there is one, and it is the whole
    assert 80 < said["psnr_db"] <= 200
    assert 0 <= said["largest_error"] < 1e-3


def perturbed(graph, directory, name, factor=1.05):
    """A copy of *graph* in *directory* whose initialiser *name* is *factor* times as large."""
    copy = directory / graph.name
    for suffix in (".onnx", ".onnx.data"):
        shutil.copy(graph.with_suffix(suffix), copy.with_suffix(suffix))
    (tensor,) = (t for t in onnx.load(graph, load_external_data=False).graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    with copy.with_suffix(".onnx.data").open("r+b") as file:
        file.seek(int(place["offset"]))
        values = np.frombuffer(file.read(int(place["length"])), np.float32) * np.float32(factor)
        file.seek(int(place["offset"]))
        file.write(values.tobytes())
    return copy


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("text_encoder", "encoder.layers.1.mlp.fc2.weight.T"),
        ("unet", "conv_out.weight"),
        ("vae_encoder", "encoder.conv_out.weight"),
        ("vae_decoder", "decoder.conv_out.weight"),
    ],
)
def test_one_wrong_weight_is_measured_and_stops_what_comes_next(model, graph_of, component, name, tmp_path):
    parity = tmp_path / "parity.json"
    said = measure(model, component, perturbed(graph_of(component), tmp_path, name), parity)

    with pytest.raises(ParityError) as caught:
        hold_parity(parity, min_psnr=60)

    assert str(caught.value).startswith(f"{component}: onnx against torch is {said['psnr_db']:.1f} dB, ")
    assert f"below the 60 dB of config parity/min_psnr/{component}; output: {said['output']}." in str(caught.value)


def test_the_threshold_decides(model, graph_of, tmp_path):
    graph = perturbed(graph_of("unet"), tmp_path, "conv_out.weight", factor=1.001)
    said = measure(model, "unet", graph, tmp_path / "parity.json")

    with pytest.raises(ParityError):
        hold_parity(tmp_path / "parity.json", min_psnr=100)
    hold_parity(tmp_path / "parity.json", min_psnr=40)

    assert 40 < said["psnr_db"] < 100


def test_the_same_graph_gives_the_same_figures(model, graph_of, tmp_path):
    for name in ("first", "second"):
        measure(model, "unet", graph_of("unet"), tmp_path / name)

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
