"""FLUX.2 [klein] is baked from checkpoint to bundle: a language model on the host, a transformer in five graphs."""

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


def test_the_bundle_draws_the_simulations_picture_to_the_byte(baked, tmp_path):
    bundle = baked.directory / "results" / "klein" / "bundle" / "axbake"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}  # as many threads as the project's bakes have

    done = subprocess.run(
        [sys.executable, bundle / "txt2img.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    wanted = baked.directory / "results" / "klein" / "simulation" / "image.png"
    assert (tmp_path / "image.png").read_bytes() == wanted.read_bytes()

    again = subprocess.run(
        [sys.executable, bundle / "txt2img.py", "--timings", "times.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert again.returncode == 0, again.stderr
    assert (tmp_path / "image.png").read_bytes() == wanted.read_bytes()
    runs = json.loads((tmp_path / "times.json").read_text())["pictures"][0]["runs"]
    assert len(runs["transformer"]) == 8 and not runs.get("text_encoder")  # both prompts are remembered
