"""LoRAs and recipes in the table: fused and merged by content, and LoRAs for the components alone that they change."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file

from axbake.jobs.identity import read_steps
from tests import loras, tiny
from tests.workflow.project import ROW, Project

FILM, STYLE = "loras/film.safetensors", "loras/lcm-style.safetensors"
ROWS = {
    "tiny": {},
    "film": {"loras": f"{FILM}:0.9", "prompt": "a rocket <lora:film:0.5>, in the night <lora:grain:1>"},
    "both": {"loras": f"{FILM}:0.5, {STYLE}"},
    "mix": {"checkpoint": "recipes/mix.yaml"},
}
RECIPE = """
checkpoints:
  a: {{path: checkpoints/tiny.safetensors, sha256: {a}}}
  b: {{path: checkpoints/other.safetensors, sha256: {b}}}
steps:
  - {{method: weighted_sum, a: a, b: b, alpha: 0.25}}
"""
TEXT_ENCODER, UNET = (f"results/{{}}/weights/{component}.safetensors" for component in ("text_encoder", "unet"))
TARGETS = [*map(TEXT_ENCODER.format, ("tiny", "film", "both")), *map(UNET.format, ("film", "both", "mix"))]


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> tuple[Project, str]:
    """A project with four models, of which two have LoRAs and one is a merge, and what the run said that imported them."""
    directory = tmp_path_factory.mktemp("project")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    networks = tiny.small_sd1()
    loras.save(loras.kohya(loras.pairs(networks, ("unet",))), project.directory / FILM)
    loras.save(loras.peft(loras.pairs(networks)), project.directory / STYLE)
    other = tiny.small_sd1()
    other.unet.conv_out.bias.data += 0.5
    digests = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in (
            ("a", checkpoint),
            ("b", tiny.save(other, project.directory / "checkpoints/other.safetensors")),
        )
    }
    (project.directory / "recipes").mkdir()
    (project.directory / "recipes/mix.yaml").write_text(RECIPE.format(**digests))
    project.write_rows(*(ROW | {"model": model} | row for model, row in ROWS.items()))
    return project, project.bake(*TARGETS)


def test_a_lora_is_in_the_weights_with_the_strength_that_the_prompt_says(run):
    project, _ = run
    networks = tiny.small_sd1()
    plain, film = networks.unet.state_dict(), load_file(project.directory / UNET.format("film"))
    pairs = {f"{module}.weight": factors for (_, module), factors in loras.pairs(networks, ("unet",)).items()}

    assert {name for name, tensor in film.items() if not tensor.equal(plain[name].half())} == set(pairs)
    for name, (down, up) in pairs.items():
        delta = (up.flatten(1) @ down.flatten(1)).reshape(plain[name].shape) * loras.ALPHA / loras.RANK
        torch.testing.assert_close(film[name], (plain[name] + 0.5 * delta).half(), rtol=1e-3, atol=1e-6)


def test_a_lora_that_changes_the_unet_alone_is_no_part_of_the_text_encoder(run):
    project, _ = run
    models = ("tiny", "film", "both")
    made = {model: (project.directory / TEXT_ENCODER.format(model)).read_bytes() for model in models}
    settings = "results/{}/settings/import_model/model/settings.json"
    steps = {model: read_steps(project.directory / settings.format(model)) for model in models}
    asked = {model: [step for step in steps[model] if step.component == "text_encoder"] for model in models}

    assert made["film"] == made["tiny"] != made["both"]
    assert asked["film"] == asked["tiny"] != asked["both"]
    assert [step.function for step in asked["tiny"]] == ["axbake.weights.importing.import_text_encoder"]


def test_what_does_not_count_is_told_once(run):
    _, said = run

    grain = "film: <lora:grain:1> in column prompt is not applied: it names no file of column loras (film)."
    assert said.count(grain) == 1
    assert said.count(f"both: {STYLE} is an LCM-LoRA, and the row has scheduler euler and guidance_scale 5") == 1


def test_a_merge_is_a_checkpoint_that_a_job_makes(run):
    project, _ = run
    found, networks = load_file(project.directory / UNET.format("mix")), tiny.small_sd1()

    wanted = networks.unet.state_dict()["conv_out.bias"] + 0.125
    torch.testing.assert_close(found["conv_out.bias"], wanted.half(), atol=1e-4, rtol=1e-3)  # rounded to half a step
    assert (project.directory / "results/mix/checkpoint.safetensors").is_file()


def test_other_strengths_and_shares_are_made_again_and_a_touched_file_is_not(run):
    project, _ = run
    os.utime(project.directory / FILM)
    project.edit("config/models.tsv", f"{FILM}:0.5, {STYLE}", f"{FILM}:0.5, {STYLE}:0.4")
    project.edit("recipes/mix.yaml", "alpha: 0.25", "alpha: 0.5")

    plan = project.plan(*TARGETS)
    assert plan.jobs == {"convert_checkpoint": 1, "import_sd1": 2}
    assert not [message for message in plan.messages if message.startswith(("Importing film", "Importing tiny"))]

    project.edit("recipes/mix.yaml", "checkpoints/other", "checkpoints/gone")
    assert "checkpoints/b: checkpoints/gone.safetensors is not there" in project.refusal(
        "--dry-run", UNET.format("mix")
    )
