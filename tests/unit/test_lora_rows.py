"""LoRAs in the table: the column, and the marks in prompts."""

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
        ({"loras": "film.ckpt"}, "'film.ckpt' is no path of a .safetensors file"),
        ({"loras": "film.safetensors:strong"}, "'film.safetensors:strong' is no path of a .safetensors file"),
        ({"loras": "film.safetensors:40"}, "a strength beyond 10"),
        ({"loras": "a/film.safetensors, b/film.safetensors"}, "'film' stands 2 times"),
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
