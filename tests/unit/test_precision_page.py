"""The error along a network, of an emulated build against its float graph; and what the page of a model shows of precision."""

import json

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from axbake.emulator.graph import load_graph, session
from axbake.pages.html import environment
from axbake.pages.plots import HEIGHT, WIDTH
from axbake.pages.precision import read_along, read_trade
from axbake.quality.nodes import _Pair
from tests.unit.test_emulator import U16, build, save, save_samples, sqnr

POINT = {
    "conversions": 0,
    "layers": {"U8": 1, "U16": 2, "FP32": 1},
    "rounding_db": 50,
    "image_psnr_db": 40,
    "image_ssim": 0.99,
}


@pytest.fixture
def compared(tmp_path):
    """Two projections, the second in 8 bits; a sample whose values leave what was calibrated."""
    rng = np.random.default_rng(2)
    constants = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("w0", "w1")}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Sigmoid", ["h"], ["s"], name="gate"),
        helper.make_node("MatMul", ["s", "w1"], ["y"], name="second"),
    ]
    graph = save(tmp_path / "net.onnx", nodes, {"x": [8, 16]}, {"y": [8, 16]}, constants)
    save_samples(tmp_path / "samples.tar", [{"x": rng.standard_normal((8, 16)).astype(np.float32)} for _ in range(4)])
    model = build(tmp_path, layers=[*U16, {"layer_names": ["second"], "data_type": "U8"}])
    sample = {"x": 1.5 * rng.standard_normal((8, 16)).astype(np.float32)}
    pair = _Pair(graph, model, ["h", "s", "y"])
    found = {name: (wanted, made) for name, wanted, made in pair.run([sample, sample], ["h", "s", "y"])}
    return graph, model, sample, pair, found


def test_each_layers_result_is_compared_as_the_next_one_reads_it(compared):
    graph, _, sample, pair, found = compared
    loaded = load_graph(graph)
    exact = session(loaded.model, loaded.constants).run(["y"], sample)[0]

    np.testing.assert_allclose(found["y"][0], exact, rtol=1e-5)
    assert sqnr(*found["s"]) < sqnr(*found["h"]) + 10
    assert len(np.unique(found["s"][1])) <= 256  # rounded to 8 bits, as its reader takes it
    assert [sorted(one) for one in pair.outputs] == [["y"], ["y"]]
    np.testing.assert_array_equal(pair.outputs[1]["y"], found["y"][1])


def test_in_parts_the_same_is_compared_and_the_models_stay_as_they_were(compared):
    graph, model, sample, whole, found = compared
    pair = _Pair(graph, model, ["h", "s", "y"])

    parts = {name: rest for names in (["h"], ["s", "y"]) for name, *rest in pair.run([sample, sample], names)}

    for name, (wanted, made) in found.items():
        np.testing.assert_array_equal(parts[name], [wanted, made])
    np.testing.assert_array_equal(pair.outputs[1]["y"], whole.outputs[1]["y"])
    assert [[value.name for value in one.graph.output] for one, _ in pair.models] == [["y"], ["y"]]


def test_the_share_of_clipped_values_is_that_outside_the_encoded_range(compared):
    *_, pair, found = compared
    wanted, made = found["h"]
    said = pair.clipping("h", wanted)

    assert said["type"] == "U16" and said["low"] == pytest.approx(made.min(), rel=1e-3)
    assert said["clipped"] == pytest.approx(np.mean((wanted < made.min()) | (wanted > made.max())), abs=0.02)
    assert said["clipped"] > 0 and pair.clipping("s", found["s"][0])["type"] == "U8"


def test_the_page_has_the_curve_the_pictures_and_each_layer(tmp_path):
    points = {
        "U16": POINT | {"narrow_share": 0.0, "latent_psnr_db": 50.0, "forecast_db": 50.0},
        "recipe": POINT | {"narrow_share": 0.7, "latent_psnr_db": 49.5, "forecast_db": 49.4},
        "U8": POINT | {"narrow_share": 1.0, "latent_psnr_db": 41.0, "forecast_db": 42.0},
    }
    curve = [{"narrow_share": share, "forecast_db": decibels} for share, decibels in ((0, 50), (0.5, 49.8), (1, 45))]
    floating = [{"names": ["residual"], "operator": "Add", "peak": 12345.6}]
    said = {"component": "unet", "points": points, "curve": curve, "float32": floating}
    said |= {"quality_db": 1, "lost_db": 0.5, "within": True}
    files = [tmp_path / name for name in ("unet.json", "a.png", "b.png", "c.png")]
    files[0].write_text(json.dumps(said))
    for path in files[1:]:
        Image.new("RGB", (4, 4)).save(path)
    layers = [
        {
            "graph": "unet",
            "layer": f"l{n}",
            "operator": "Conv",
            "sqnr_db": decibels,
            "type": "U16",
            "low": -1.0,
            "high": 2.0,
        }
        | {"clipped": 0.25}
        for n, decibels in enumerate((200, 40.0, 31.0))
    ]
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps({"component": "unet", "step": 3, "worst": [2, 1], "layers": layers}))
    trade, along = read_trade(files), read_along(nodes)

    assert trade.plot.points == [(0.0, 0.0), (150.0, pytest.approx(HEIGHT * 0.2 / 10)), (300.0, HEIGHT / 2)]
    assert [name for name, *_ in trade.marks] == ["all layers in 16 bits", "the recipe", "all layers in 8 bits"]
    assert trade.marks[1][1] == 0.7 * WIDTH
    assert [one["layer"] for one in along.worst] == ["l2", "l1"]
    assert along.layers[2][2] == "l2 (Conv): 31.0 dB; U16, -1.0 to 2.0, 25 % clipped"
    assert read_trade([]) is None
    template = environment().from_string(
        '{% from "precision.html.j2" import trade_section, along_section %}{{ trade_section(trade) }}{{ along_section(along) }}'
    )
    html = template.render(trade=trade, along=along)
    for text in ("70.0 %", "residual", "12,346 times", "recipe/unet.yaml", "<title>l2 (Conv)", "forecast were 49.4 dB"):
        assert text in html
