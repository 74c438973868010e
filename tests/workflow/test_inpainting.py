"""An inpainting model is baked from checkpoint to bundle, which draws on its own picture and on others."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from axbake.runtime.bundle import read_bundle
from axbake.runtime.errors import BundleError
from tests import tiny
from tests.workflow.project import ROW, Project

REPORT, BUNDLE = "results/paint/report.html", "results/paint/bundle/axbake/manifest.json"
SIMULATED = "results/paint/simulation/image.png"
CANVAS = {"image": "pictures/room.png", "mask": "pictures/sofa.png"}


@pytest.fixture(scope="module")
def baked(tmp_path_factory) -> Project:
    directory = tmp_path_factory.mktemp("paint")
    checkpoint = tiny.save(tiny.inpainting_sd1(), directory / "paint.safetensors")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    (project.directory / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 96)).save(project.directory / CANVAS["image"])
    _mask(project, 24)
    project.write_rows(ROW | {"model": "paint"} | CANVAS)
    project.bake(REPORT, BUNDLE)
    return project


def _mask(project, top):
    mask = np.zeros((96, 96), np.uint8)
    mask[top:] = 255
    Image.fromarray(mask).save(project.directory / CANVAS["mask"])


def said(project, name):
    return json.loads((project.directory / "results" / "paint" / name).read_text())


def run(project, place, program, *options):
    bundle = project.directory / "results" / "paint" / "bundle" / "axbake"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, bundle / program, *options], cwd=place, env=environment, capture_output=True, text=True
    )


def test_it_draws_nearly_the_reference_and_its_encoder_has_a_share(baked):
    assert said(baked, "parity/unet.json")["psnr_db"] > 100
    assert said(baked, "simulation/distance.json")["latent_psnr_db"] > 20
    quantised = said(baked, "simulation/attribution.json")["quantised"]
    assert quantised["none"]["latent_psnr_db"] > 60
    assert quantised["vae_encoder"]["latent_psnr_db"] < quantised["none"]["latent_psnr_db"]
    assert said(baked, "checkpoint.json")["variant"].endswith("for inpainting")


def test_the_bundle_draws_the_simulations_picture_and_others_on_other_pictures(baked, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")

    own = run(baked, tmp_path, "txt2img.py")
    other = run(
        baked,
        tmp_path,
        "txt2img.py",
        "--image",
        "red.png",
        "--mask",
        "all.png",
        "--strength",
        "0.5",
        "--output",
        "o.png",
    )

    assert own.returncode == other.returncode == 0, own.stderr + other.stderr
    pixels = [np.asarray(Image.open(path)) for path in (tmp_path / "image.png", baked.directory / SIMULATED)]
    assert np.array_equal(*pixels)
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "o.png")), pixels[0])
    assert said(baked, "bundle/axbake/manifest.json")["canvas"] == ["canvas/image.png", "canvas/mask.png"]


def test_image_to_image_and_published_layouts_are_refused(baked, tmp_path):
    done = run(baked, tmp_path, "img2img.py", "red.png")

    assert done.returncode == 1
    assert (
        "the models of this bundle draw on a picture in their own way. Use txt2img.py with --image and --mask"
        in done.stderr
    )
    assert "a UNet that draws on a picture, wanted one for text to image" in baked.refusal(
        "--dry-run", "results/paint/bundle/axera/manifest.json"
    )


def test_a_manifest_that_names_one_file_of_two_is_refused(baked, tmp_path):
    bundle = shutil.copytree(baked.directory / "results" / "paint" / "bundle" / "axbake", tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"canvas": manifest["canvas"][:1]}))

    with pytest.raises(BundleError, match="wanted a picture and a mask, or"):
        read_bundle(bundle)


def test_another_mask_draws_anew_and_calibrates_nothing_anew(baked, tmp_path):
    project = baked.copy(tmp_path)
    assert "Nothing to be done" in project.bake(REPORT)
    _mask(project, 48)

    jobs = project.plan(REPORT).jobs

    assert {"draw_reference", "simulate"} <= set(jobs)
    assert not {"record_trajectories", "compile_model", "export_onnx", "import_sd1"} & set(jobs)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (
            {"image": "", "mask": ""},
            "it is for inpainting, but the row has no picture and no mask. Fill in the columns image and mask",
        ),
        ({"mask": ""}, "it is for inpainting, but the row has a picture and no mask"),
        ({"image": ""}, "column image: empty, but column mask is not"),
        (
            {"image_guidance_scale": "2.5"},
            "column image_guidance_scale: 2.5, wanted an empty cell: only models for instructions",
        ),
        ({"mask": "pictures/none.png"}, "pictures/none.png: not there"),
    ],
)
def test_a_row_without_picture_or_mask_is_refused_at_once(baked, tmp_path, cells, text):
    project = baked.copy(tmp_path)
    project.write_rows(ROW | {"model": "paint"} | CANVAS | cells)

    found = project.refusal("--dry-run", REPORT)

    assert text in found and "Traceback" not in found


def test_a_row_with_a_mask_for_another_model_is_refused(baked, checkpoint, tmp_path):
    project = baked.copy(tmp_path)
    (project.directory / ROW["checkpoint"]).write_bytes(checkpoint.read_bytes())

    assert "it is for text to image, but the row has a picture and a mask. Empty the columns" in project.refusal(
        "--dry-run", REPORT
    )
