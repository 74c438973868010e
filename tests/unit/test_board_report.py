"""The page of a benchmark: its own times, those that were published, and no doubt on which machine it was measured."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from axbake.board.errors import UnreadableOutput
from axbake.board.published import PUBLISHED
from axbake.board.report import parts_of, plot_of_steps, write_board_report
from axbake.units import in_words

SECONDS = {"median": 0.4021, "min": 0.4, "max": 0.41, "count": 38}
DRAWN = {
    "pictures": 2,
    "load_seconds": {"text_encoder": 1.0, "unet": 9.0, "vae_decoder": 1.0},
    "text_embedding_seconds": SECONDS,
    "step_seconds": SECONDS,
    "decode_seconds": SECONDS,
    "total_seconds": {"median": 9.51, "min": 9.5, "max": 9.6, "count": 2},
    "seconds_of_each_step": [[0.4, 0.41], [0.4, 0.4]],
    "run_ms": {"unet": {"median": 201.5, "min": 200, "max": 202, "count": 38}},
}
MODEL = {"file": "unet.axmodel", "sha256": "0" * 64, "bytes": 921_000_000}
HOST = {
    "machine": "aarch64",
    "system": "Linux",
    "processor": "",
    "cores": 4,
    "python": "3.11",
    "packages": {"numpy": "2.0"},
}
ROWS = ("unet", "unet/down", "unet/up")
ON_BOARD = {
    "repeat": 100,
    "cores": "3 Core",
    "cmm_bytes": 981 * 2**20,
    "versions": {"axclrt": "1.0.0", "pulsar2": "4.2 played"},
    "device_ms": {"min": 199.9, "avg": 200.2, "max": 201.0, "median": 200.1},
}


def benchmark(ran_on, emulated=False):
    """What was found on a board, or on a host; all figures are made up."""
    on_board = ran_on == "board"
    board = {"name": "Raspberry Pi 5 <played>", "kind": "card", "card": "AX650N", "firmware": "V3", "driver": "V3"}
    board |= {"cmm_mib": 7040, "cmm_used_mib": {"start": 18}, "temperature_c": {"start": 41, "unet": 60}}
    drawn = DRAWN | {"beside_device_ms": {"unet": 1.4} if on_board else {}}
    return {
        "ran_on": ran_on,
        "emulated": emulated,
        "measured": "2026-01-01T00:00:00+00:00",
        "model": "tiny",
        "settings": {"height": 480, "width": 320, "scheduler": "dpmpp_2m_karras", "steps": 20, "guidance_scale": 7},
        "board": board if on_board else {"name": "a laptop"},
        "host": HOST,
        "warmup": 3,
        "models": {"unet": MODEL | (ON_BOARD if on_board else {})},
        "drawings": {"20": drawn, "10": drawn},
    }


@pytest.fixture
def page_of(tmp_path):
    """A function that gives the page of a benchmark, and the distances written beside it."""
    noise = np.random.default_rng(1)
    pictures = {name: tmp_path / f"{name}.png" for name in ("image", "reference", "simulation")}
    for path in pictures.values():
        Image.fromarray(noise.integers(0, 255, (16, 24, 3), np.uint8)).save(path)

    def write(found):
        (tmp_path / "benchmark.json").write_text(json.dumps(found))
        (tmp_path / "simulated.json").write_text(json.dumps({"emulated": True}))
        write_board_report(
            benchmark=tmp_path / "benchmark.json",
            simulated=tmp_path / "simulated.json",
            distance=tmp_path / "distance.json",
            page=tmp_path / "report.html",
            **pictures,
        )
        return (tmp_path / "report.html").read_text(), json.loads((tmp_path / "distance.json").read_text())

    write.pictures = pictures
    return write


def test_the_page_of_a_board_has_its_times_beside_those_that_were_published(page_of):
    page, distance = page_of(benchmark("board"))

    for said in (
        "tiny on a board",
        "402 ms",
        "9.51 s",
        "× 2",
        "200.100 ms",
        "201.500 ms",
        "1.400 ms",
        "981 MiB",
        "41 to 60 °C",
    ):
        assert said in page
    for published in PUBLISHED:
        assert published.name in page and published.source in page
    assert "Raspberry Pi 5 &lt;played&gt;" in page
    assert page.count("<polyline") == 2
    assert set(distance) == {"reference", "simulation"} and 0 < distance["reference"]["psnr_db"] < 20
    for path in page_of.pictures.values():
        assert base64.b64encode(path.read_bytes()).decode() in page
    assert "Not measured on a board" not in page and '<body class="board">' in page


@pytest.mark.parametrize("emulated", [True, False])
def test_the_page_of_a_host_cannot_be_taken_for_a_boards(page_of, emulated):
    page, _ = page_of(benchmark("host", emulated))

    assert "Not measured on a board" in page and '<body class="host">' in page
    assert page.count("on this host, no board") == 2  # each row of the table
    assert ("emulated models that no board" in page) == emulated
    assert 'http-equiv="Content-Security-Policy"' in page and "prefers-color-scheme: dark" in page
    assert "Device alone" not in page and "measured here" not in page


def test_graphs_of_a_component_have_rows_below_its_own(page_of):
    found = benchmark("board")
    found["models"] = {f"unet/{name}": MODEL | ON_BOARD for name in ("down", "up")}
    page, _ = page_of(found)

    assert parts_of(["text_encoder", "unet/down", "unet/up"]) == ["text_encoder", "unet", "unet/down", "unet/up"]
    component, down, up = (page.partition(f"<tr><td>{in_words(name)}</td>")[2].partition("</tr>")[0] for name in ROWS)
    assert "201.500 ms" in component and "200.100 ms" not in component and "MiB" not in component
    for graph in (down, up):
        assert "200.100 ms" in graph and "981 MiB" in graph and "201.500 ms" not in graph


def test_pictures_of_two_sizes_are_an_error(page_of):
    Image.new("RGB", (8, 8)).save(page_of.pictures["reference"])

    with pytest.raises(UnreadableOutput, match=r"image.png is 24x16 pixels, .*reference.png is 8x8"):
        page_of(benchmark("board"))


def test_steps_are_plotted_from_zero_in_a_line_a_picture():
    plot = plot_of_steps([[0.5, 0.25], [1.0]])

    assert plot["lines"] == [[(140.0, 100.0), (420.0, 150.0)], [(140.0, 0.0)]]
    assert plot["seconds"][0] == ("0", 200.0) and plot["seconds"][-1] == ("1", 0.0)


def test_published_parts_sum_to_the_published_totals_but_for_rounding():
    for found in PUBLISHED:
        if found.total is not None:
            parts = found.text_embedding + found.steps * found.step + found.decode
            assert parts == pytest.approx(found.total, abs=0.2)
