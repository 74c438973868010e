"""LoRAs in the table: fused by the import of the components that they change, by content, and of those alone."""

import os

import pytest
import torch
from safetensors.torch import load_file

from tests import loras, tiny
from tests.workflow.project import ROW, Project

FILM, STYLE = "loras/film.safetensors", "loras/lcm-style.safetensors"
ROWS = {
    "tiny": {},
    "film": {"loras": f"{FILM}:0.9", "prompt": "a rocket <lora:film:0.5>, in the night <lora:grain:1>"},
    "both": {"loras": f"{FILM}:0.5, {STYLE}"},
}
TEXT_ENCODER, UNET = (f"results/{{}}/weights/{component}.safetensors" for component in ("text_encoder", "unet"))
TARGETS = [*map(TEXT_ENCODER.format, ROWS), UNET.format("film"), UNET.format("both")]


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> tuple[Project, str]:
    """A project with three models of one checkpoint, of which two have LoRAs, and what the run said that imported them."""
    directory = tmp_path_factory.mktemp("project")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    networks = tiny.sd1()
    loras.save(loras.kohya(loras.pairs(networks, ("unet",))), project.directory / FILM)
    loras.save(loras.peft(loras.pairs(networks)), project.directory / STYLE)
    project.write_rows(*(ROW | {"model": model} | row for model, row in ROWS.items()))
    return project, project.bake(*TARGETS)


def test_a_lora_is_in_the_weights_with_the_strength_that_the_prompt_says(run):
    project, _ = run
    networks = tiny.sd1()
    plain, film = networks.unet.state_dict(), load_file(project.directory / UNET.format("film"))
    pairs = {f"{module}.weight": factors for (_, module), factors in loras.pairs(networks, ("unet",)).items()}

    assert {name for name, tensor in film.items() if not tensor.equal(plain[name].half())} == set(pairs)
    for name, (down, up) in pairs.items():
        delta = (up.flatten(1) @ down.flatten(1)).reshape(plain[name].shape) * loras.ALPHA / loras.RANK
        torch.testing.assert_close(film[name], (plain[name] + 0.5 * delta).half(), rtol=1e-3, atol=1e-6)


def test_a_lora_that_changes_the_unet_alone_is_no_part_of_the_text_encoder(run):
    project, _ = run
    made = {model: (project.directory / TEXT_ENCODER.format(model)).read_bytes() for model in ROWS}
    settings = "results/{}/settings/import_text_encoder/model/settings.json"
    asked = {model: (project.directory / settings.format(model)).read_text() for model in ROWS}

    assert made["film"] == made["tiny"] != made["both"]
    assert asked["film"] == asked["tiny"] != asked["both"]


def test_what_does_not_count_is_told_once(run):
    _, said = run

    grain = "film: <lora:grain:1> in column prompt is not applied: it names no file of column loras (film)."
    assert said.count(grain) == 1
    assert said.count(f"both: {STYLE} is an LCM-LoRA, and the row has scheduler euler and guidance_scale 5") == 1


def test_another_strength_is_made_again_and_a_touched_file_is_not(run):
    project, _ = run
    os.utime(project.directory / FILM)
    project.edit("config/models.tsv", f"{FILM}:0.5, {STYLE}", f"{FILM}:0.5, {STYLE}:0.4")

    plan = project.plan(*TARGETS)
    assert plan.jobs == {"import_checkpoint": 1, "import_text_encoder": 1}
    assert all(" of both " in message for message in plan.messages)
