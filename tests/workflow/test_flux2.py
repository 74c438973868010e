"""FLUX.2 [klein] is baked from checkpoint to bundle: a language model on host or card, a transformer in five graphs."""

import json
import os
import subprocess
import sys

import pytest

from axbake.families import FAMILIES
from tests import tiny_flux2
from tests.workflow.project import ROW, Project

REPORT, BUNDLE = "results/klein/report.html", "results/klein/bundle/axbake/manifest.json"
CELLS = {
    "model": "klein",
    "width": "96",
    "scheduler": "euler",
    "steps": "4",
    "guidance_scale": "4",
    "negative_prompt": "",
}
CELLS |= {"tokenizer": "checkpoints"}


@pytest.fixture(scope="module")
def baked(tmp_path_factory) -> Project:
    directory = tmp_path_factory.mktemp("klein")
    checkpoint = tiny_flux2.save(tiny_flux2.klein(), directory / "klein.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    (directory / "tokenizer.json").rename(project.directory / "checkpoints" / "tokenizer.json")
    project.write_rows(ROW | CELLS)
    project.bake(REPORT, BUNDLE)
    return project


def said(project, name):
    return json.loads((project.directory / "results" / "klein" / name).read_text())


def test_a_transformer_in_five_graphs_draws_nearly_the_reference(baked):
    family = FAMILIES["flux2_klein"]
    facts = said(baked, "report.json")

    assert facts["family"] == family.title
    assert {name: part["graphs"] for name, part in facts["components"].items()} == {
        one.name: len(one.graphs) for one in family.components
    }
    assert said(baked, "parity/transformer.json")["psnr_db"] > 100
    assert said(baked, "parity/text_encoder.json")["psnr_db"] > 100
    assert said(baked, "simulation/attribution.json")["quantised"]["none"]["latent_psnr_db"] > 60
    assert said(baked, "simulation/distance.json")["latent_psnr_db"] > 30


def test_the_host_runs_the_text_encoder_with_weights_in_eight_bits(baked):
    results = baked.directory / "results" / "klein"

    assert not list(results.glob("text_encoder/*.axmodel")) and len(list(results.glob("text_encoder/*.onnx"))) == 4
    assert said(baked, "build/text_encoder/layers_0.json")["version"].endswith("weights in 8 bits")
    assert said(baked, "check/text_encoder.json")["outputs"]["prompt_embeds"]["sqnr_db"] > 30
    assert said(baked, "bundle/axbake/manifest.json")["models"]["text_encoder"]["host"] is True


def test_preflight_finds_no_error_in_its_graphs(baked):
    findings = said(baked, "preflight.json")["findings"]

    assert [one for one in findings if one["level"] == "error"] == []


def drawn_by(project, place, *arguments):
    """Runs txt2img.py of the project's bundle in *place*."""
    bundle = project.directory / "results" / "klein" / "bundle" / "axbake"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}  # as many threads as the project's bakes have
    command = [sys.executable, bundle / "txt2img.py", *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (place / "image.png").read_bytes()


def test_the_bundle_draws_the_simulations_picture_to_the_byte(baked, tmp_path):
    wanted = (baked.directory / "results" / "klein" / "simulation" / "image.png").read_bytes()

    assert drawn_by(baked, tmp_path) == wanted
    assert drawn_by(baked, tmp_path, "--timings", "times.json") == wanted

    runs = json.loads((tmp_path / "times.json").read_text())["pictures"][0]["runs"]
    assert len(runs["transformer"]) == 8 and not runs.get("text_encoder")  # both prompts are remembered


@pytest.fixture(scope="module")
def moved(baked, tmp_path_factory) -> Project:
    """The same project, its text encoder moved to the card."""
    project = baked.copy(tmp_path_factory.mktemp("card"))
    project.write_rows(ROW | CELLS | {"text_encoder_place": "card"})
    return project


def test_a_text_encoder_that_moves_to_the_card_is_built_in_layers_and_nothing_else_is_compiled(moved):
    wanted = {"build_text_encoder_of_flux2_klein", "check_text_encoder_of_flux2_klein", "simulate", "judge"}
    wanted |= {"preflight", "write_report", "write_bundle"}

    assert dict(moved.plan(REPORT, BUNDLE).jobs) == dict.fromkeys(wanted, 1)
    moved.edit("config/config.yaml", "toolchain: emulator", "toolchain: native")
    jobs = moved.plan(REPORT, BUNDLE).jobs
    assert (jobs["build_text_encoder_of_flux2_klein"], jobs["emulate_text_encoder_of_flux2_klein"]) == (1, 1)
    moved.edit("config/config.yaml", "toolchain: native", "toolchain: emulator")


def test_a_bundle_with_the_text_encoder_on_the_card_draws_the_simulations_picture_to_the_byte(moved, tmp_path):
    moved.bake(REPORT, BUNDLE)

    folder = moved.directory / "results" / "klein" / "bundle" / "axbake"
    assert len(list(folder.glob("text_encoder/layer_*.axmodel"))) == 27 and not list(folder.glob("text_encoder/*.onnx"))
    told = said(moved, "bundle/axbake/manifest.json")["models"]["text_encoder"]
    assert "host" not in told and told["files"][:2] == ["text_encoder/language.json", "text_encoder/embed_tokens.bin"]
    assert said(moved, "check/text_encoder.json")["outputs"]["prompt_embeds"]["sqnr_db"] > 30
    assert said(moved, "report.json")["components"]["text_encoder"]["graphs"] == 27
    assert any(
        one["component"] == "text_encoder" and "27 layers" in one["text"]
        for one in said(moved, "preflight.json")["findings"]
    )
    simulation = moved.directory / "results" / "klein" / "simulation" / "image.png"
    assert drawn_by(moved, tmp_path, "--timings", "times.json") == simulation.read_bytes()
    times = json.loads((tmp_path / "times.json").read_text())
    assert times["load_seconds"]["text_encoder"] > 0 and not times["pictures"][0]["runs"].get("text_encoder")
    assert drawn_by(moved, tmp_path) == simulation.read_bytes()
    assert len(list(folder.glob("prompts/*.npz"))) == 2
