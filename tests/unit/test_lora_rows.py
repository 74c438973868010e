"""LoRAs in the table: the column, and the marks in prompts."""

import time
from pathlib import Path

import pytest

from axbake.loras.rows import Lora, lcm_advice, lora_cells, lora_faults, row_loras, unknown_marks
from axbake.networks.component import DECODER, DENOISER, TEXT


@pytest.mark.parametrize(
    ("cell", "loras"),
    [
        ("", []),
        ("a/film.safetensors", [Lora("a/film.safetensors", 1, 1)]),
        ("a/film.safetensors:0.4", [Lora("a/film.safetensors", 0.4, 0.4)]),
        ("a/film.safetensors:.5:-1", [Lora("a/film.safetensors", 0.5, -1)]),
        ("a.safetensors:1, b.safetensors", [Lora("a.safetensors", 1, 1), Lora("b.safetensors", 1, 1)]),
    ],
)
def test_cells(cell, loras):
    assert lora_cells(cell) == loras


@pytest.mark.parametrize(
    ("prompts", "strengths"),
    [
        (["a cat", ""], (0.4, 0.4)),
        (["a cat <lora:film:0.7>", ""], (0.7, 0.7)),
        (["a cat", "<lora:film:0.7>"], (0.7, 0.7)),
        (["<lyco:film:0.7>", ""], (0.7, 0.7)),
        (["<lora:film>", ""], (1, 1)),
        (["<lora:film:0.5:0.8>", "<lora:film:0.5:0.8>"], (0.5, 0.8)),
        (["<lora:films:0.7>", ""], (0.4, 0.4)),
    ],
)
def test_a_mark_in_a_prompt_goes_before_the_column(prompts, strengths):
    (lora,) = row_loras("a/film.safetensors:0.4", prompts)

    assert (lora.strength(TEXT), lora.strength(DENOISER), lora.strength(DECODER)) == (*strengths, 0)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"loras": "film.ckpt"}, "'film.ckpt' is not the path of a .safetensors file"),
        ({"loras": "film.safetensors:strong"}, "'film.safetensors:strong' is not the path of a .safetensors file"),
        ({"loras": "film.safetensors:40"}, "a strength above 10"),
        ({"loras": "a/film.safetensors, b/film.safetensors"}, "'film' appears 2 times"),
        ({"loras": "film.safetensors", "prompt": "<lora:film:much>"}, "<lora:film:much>: wanted one strength, or two"),
        ({"loras": "film.safetensors", "prompt": "<lora:film:1> <lora:film:0.5>"}, "with strengths 0.5:0.5 and 1:1"),
    ],
)
def test_faults_are_told(row, fault):
    (said,) = lora_faults(row)

    assert fault in said


def test_marks_that_change_nothing_are_told():
    row = {
        "loras": [Lora("a/film.safetensors", 0.4, 0.4)],
        "prompt": "a cat <lora:film:0.4> <lora:grain:1>",
        "negative_prompt": "",
        "calibration_prompts": ["a dog <lora:film:0.4>", "a cow <lora:film:0.9>", "a hen <lora:feathers:1>"],
    }
    grain, film, feathers = unknown_marks(row)

    assert grain.startswith("<lora:grain:1> in column prompt is not applied: it names no file of column loras (film)")
    assert film.startswith("<lora:film:0.9> in a calibration prompt is not applied with this strength")
    assert feathers.startswith("<lora:feathers:1> in a calibration prompt is not applied")


@pytest.mark.parametrize(
    ("scheduler", "guidance_scale", "said"),
    [
        ("lcm", 1, ""),
        ("lcm", 2, ""),
        ("lcm", 7, "the row has guidance_scale 7"),
        ("dpmpp_2m_karras", 1, "the row has scheduler dpmpp_2m_karras"),
        ("euler", 7.5, "the row has scheduler euler and guidance_scale 7.5"),
    ],
)
def test_an_lcm_lora_wants_its_scheduler_and_guidance(scheduler, guidance_scale, said):
    advice = list(lcm_advice({"scheduler": scheduler, "guidance_scale": guidance_scale}, Path("lcm-lora.safetensors")))

    assert len(advice) == bool(said)
    assert all(said in sentence for sentence in advice)


@pytest.mark.parametrize(
    ("mark", "strengths"),
    [
        ("<lora:film:te=0.5:unet=0.8>", (0.5, 0.8)),
        ("<lora:film:unet=0.8:te=0.5>", (0.5, 0.8)),
        ("<lora:film:te=0.5>", (0.5, 0.5)),
        ("<lora:film:unet=0.9>", (1, 0.9)),
        ("<lora:film:0.7:unet=0.9>", (0.7, 0.9)),
        ("<lora:film:0.7:0.2:te = 0.1>", (0.1, 0.2)),
        ('<lora:"film":0.7>', (0.7, 0.7)),
        ("<lora: film : .5 >", (0.5, 0.5)),
    ],
)
def test_strengths_by_name_are_those_of_the_web_ui(mark, strengths):
    row = {"loras": "a/film.safetensors:0.4", "prompt": f"1girl {mark}", "negative_prompt": ""}

    assert list(lora_faults(row)) == []
    (lora,) = row_loras(row["loras"], [row["prompt"]])
    assert (lora.text_encoder, lora.unet) == strengths
    assert list(unknown_marks(row | {"loras": [lora], "calibration_prompts": [row["prompt"]]})) == []


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("<lora:film:1:1:lbw=IN02>", "block weights of an extension (lbw)"),
        ("<lora:film:1:dyn=64>", "a dynamic rank (dyn)"),
        ("<lora:film:1:1:64>", "found '64'"),
        ("<lora:film:te=much>", "found 'te=much'"),
        ("<lora:film:te=11>", "a strength above 10"),
        ("<lora:film:\x1b[2J>", r"found '\x1b[2J'"),
    ],
)
def test_what_a_mark_says_besides_is_named(mark, said):
    (fault,) = lora_faults({"loras": "a/film.safetensors", "prompt": mark, "negative_prompt": ""})

    assert said.replace("\\", "") in fault.replace("\\", "")
    assert fault.isprintable()


def test_a_cell_names_strengths_too():
    assert lora_cells("a/film.safetensors:te=0.5:unet=0.8") == [Lora("a/film.safetensors", 0.5, 0.8)]
    assert lora_cells("C:/film.safetensors") == [Lora("C:/film.safetensors", 1, 1)]


def test_marks_that_are_never_closed_are_looked_at_once():
    began = time.process_time()
    assert list(lora_faults({"loras": "a.safetensors", "prompt": "<lora:" * 100_000})) == []
    assert time.process_time() - began < 5  # s; minutes when the work grew with the square of the length
