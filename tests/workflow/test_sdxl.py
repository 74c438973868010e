"""Stable Diffusion XL is baked from checkpoint to bundle; what was distilled from it is planned beside it."""

import json
import os
import subprocess
import sys

import pytest

from axbake.families import FAMILIES
from tests import tiny_xl
from tests.workflow.project import ROW, Project

GRAPHS = ["unet/down", "unet/mid", "unet/up"]
REPORT, BUNDLE = "results/xl/report.html", "results/xl/bundle/axbake/manifest.json"


@pytest.fixture(scope="module")
def baked(tmp_path_factory) -> Project:
    directory = tmp_path_factory.mktemp("xl")
    checkpoint = tiny_xl.save(tiny_xl.sdxl(), directory / "xl.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    project.write_rows(
        ROW | {"model": "xl", "width": "96", "vae_tile": "64", "original_size": "832x1216", "crop": "16,8"}
    )
    project.bake(REPORT, BUNDLE)
    return project


def said(project, name):
    return json.loads((project.directory / "results" / "xl" / name).read_text())


def test_both_text_encoders_and_three_graphs_of_the_unet_draw_nearly_the_reference(baked):
    family = FAMILIES["sdxl"]
    facts = said(baked, "report.json")

    assert facts["family"] == family.title
    assert {name: part["graphs"] for name, part in facts["components"].items()} == {
        one.name: len(one.graphs) for one in family.components
    }
    assert facts["settings"]["sizes"] == [832, 1216, 16, 8, 64, 96]
    assert said(baked, "parity/unet.json")["psnr_db"] > 100
    assert list(said(baked, "parity/unet.json")["graphs"]) == ["down", "mid", "up"]
    assert set(said(baked, "check/text_encoder_2.json")["outputs"]) == {"hidden_states", "text_embeds"}
    assert said(baked, "simulation/distance.json")["latent_psnr_db"] > 35
    assert said(baked, "simulation/attribution.json")["quantised"]["none"]["latent_psnr_db"] > 60


def test_its_decoder_is_compiled_for_a_tile_and_what_tiles_cost_is_reported(baked):
    found = said(baked, "simulation/distance.json")["seams"]
    page = (baked.directory / REPORT).read_text()

    assert said(baked, "bundle/axbake/manifest.json")["models"]["vae_decoder"]["inputs"]["x"]["shape"] == [1, 4, 8, 8]
    assert (found["tile"], found["tiles"]) == (64, 2)
    assert "in 2 tiles of 64 × 64 pixels" in page and f"{found['largest_in_overlaps']} of 255" in page


def test_the_bundle_carries_what_prompts_add_and_draws_the_simulations_picture_to_the_byte(baked, tmp_path):
    bundle = baked.directory / "results" / "xl" / "bundle" / "axbake"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}  # as many threads as the project's bakes have

    done = subprocess.run(
        [sys.executable, bundle / "txt2img.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    wanted = baked.directory / "results" / "xl" / "simulation" / "image.png"
    assert (tmp_path / "image.png").read_bytes() == wanted.read_bytes()
    assert "added_embedding.npz" in said(baked, "bundle/axbake/manifest.json")["files"]


def test_a_published_layout_that_knows_one_text_encoder_is_refused(baked):
    text = baked.refusal("--dry-run", "results/xl/bundle/axera/manifest.json")

    assert "LayoutError: xl: cannot make the layout axera" in text
    assert "Traceback" not in text


def test_what_was_distilled_from_it_has_fewer_graphs_and_as_many_as_the_config_asks_for(tmp_path):
    checkpoint = tiny_xl.save(tiny_xl.ssd1b(), tmp_path / "xl.safetensors")
    project = Project.lay_out(tmp_path / "project", tmp_path / "cache", checkpoint)

    jobs = project.plan("results/tiny/report.html").jobs

    assert jobs["compile_model"] == 4 + len(FAMILIES["ssd1b"].denoiser.graphs)
    assert sum(jobs.values()) <= 28

    project.edit("config/config.yaml", "graph_weights: 880", "graph_weights: 500")
    assert project.plan("results/tiny/report.html").jobs["compile_model"] == 4 + 3
    project.edit("config/config.yaml", "graph_weights: 500", "graph_weights: 300")
    assert "config graph_weights: 300 million, but" in project.refusal("--dry-run")
