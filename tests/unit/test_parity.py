"""A graph that is not its network stops the build; one that is says how near it is."""

import json
import shutil

import numpy as np
import onnx
import pytest

from axbake.families import COMPONENTS
from axbake.graphs.parity import ParityError, check_parity
from tests.unit.conftest import tensors_of


def compare(model, component, graph, **options):
    check_parity(model.weights[component], graph, tensors_of(graph), **size_of(component), **options)


def size_of(component):
    return {} if component == "text_encoder" else {"height": 64, "width": 64}


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_right_graph_passes_and_says_how_near_it_is(model, graph_of, component, tmp_path):
    parity = tmp_path / "parity.json"

    compare(model, component, graph_of(component), min_psnr=60, parity=parity)

    said = json.loads(parity.read_text())
    graph = onnx.load(graph_of(component), load_external_data=False).graph
    assert said["component"] == component
    assert said["output"] == graph.output[0].name
    assert said["min_psnr_db"] == 60
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
def test_one_wrong_weight_is_an_error_and_no_file(model, graph_of, component, name, tmp_path):
    parity = tmp_path / "parity.json"
    graph = perturbed(graph_of(component), tmp_path, name)

    with pytest.raises(ParityError) as caught:
        compare(model, component, graph, min_psnr=60, parity=parity)

    assert f"{component}: onnx against torch is " in str(caught.value)
    assert f"below the 60 dB of config parity/min_psnr/{component}; output:" in str(caught.value)
    assert not parity.exists()


def test_the_threshold_decides(model, graph_of, tmp_path):
    graph = perturbed(graph_of("unet"), tmp_path, "conv_out.weight", factor=1.001)
    options = {"parity": tmp_path / "parity.json"}

    with pytest.raises(ParityError):
        compare(model, "unet", graph, min_psnr=100, **options)
    compare(model, "unet", graph, min_psnr=40, **options)

    assert 40 < json.loads((tmp_path / "parity.json").read_text())["psnr_db"] < 100


def test_the_same_graph_gives_the_same_verdict(model, graph_of, tmp_path):
    for name in ("first", "second"):
        compare(model, "unet", graph_of("unet"), min_psnr=60, parity=tmp_path / name)

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
