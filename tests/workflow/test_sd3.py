"""Stable Diffusion 3.5 medium is baked from checkpoint to bundle: a transformer in three graphs, two text encoders."""

import json
import os
import subprocess
import sys

import pytest

from axbake.families import FAMILIES
from tests import tiny_sd3
from tests.workflow.project import ROW, Project

REPORT, BUNDLE = "results/flow/report.html", "results/flow/bundle/axbake/manifest.json"
CELLS = {"model": "flow", "width": "96", "scheduler": "euler", "steps": "4", "guidance_scale": "4.5"}


@pytest.fixture(scope="module")
def baked(tmp_path_factory) -> Project:
    directory = tmp_path_factory.mktemp("flow")
    checkpoint = tiny_sd3.save(tiny_sd3.sd35_medium(), directory / "flow.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    project.write_rows(ROW | CELLS)
    project.bake(REPORT, BUNDLE)
    return project


def said(project, name):
    return json.loads((project.directory / "results" / "flow" / name).read_text())


def test_a_transformer_in_three_graphs_draws_nearly_the_reference(baked):
    family = FAMILIES["sd35_medium"]
    facts = said(baked, "report.json")

    assert facts["family"] == family.title
    assert {name: part["graphs"] for name, part in facts["components"].items()} == {
        one.name: len(one.graphs) for one in family.components
    }
    assert said(baked, "parity/transformer.json")["psnr_db"] > 100
    assert list(said(baked, "parity/transformer.json")["graphs"]) == ["blocks_0", "blocks_1", "blocks_2"]
    assert said(baked, "simulation/attribution.json")["quantised"]["none"]["latent_psnr_db"] > 60
    assert said(baked, "simulation/distance.json")["latent_psnr_db"] > 35


def test_preflight_finds_no_error_in_its_graphs(baked):
    findings = said(baked, "preflight.json")["findings"]

    assert [one for one in findings if one["level"] == "error"] == []


def test_the_bundle_draws_the_simulations_picture_to_the_byte(baked, tmp_path):
    bundle = baked.directory / "results" / "flow" / "bundle" / "axbake"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}  # as many threads as the project's bakes have

    done = subprocess.run(
        [sys.executable, bundle / "txt2img.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    wanted = baked.directory / "results" / "flow" / "simulation" / "image.png"
    assert (tmp_path / "image.png").read_bytes() == wanted.read_bytes()


def test_a_sampler_of_other_families_is_refused_before_anything_is_built(baked):
    baked.write_rows(ROW | CELLS | {"scheduler": "ddim"})

    assert "column scheduler: ddim, wanted euler, dpmpp_2m or unipc" in baked.refusal("--dry-run", REPORT)
