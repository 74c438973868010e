"""Models that draw on a picture, for inpainting and for instructions, are baked to bundles, which draw on it and on others.

Text encoder and VAE are those of the tiny model that is baked for all tests: what was made of them is stored.
"""

import json
import os
import re
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

IMAGE, MASK = "pictures/room.png", "pictures/sofa.png"
ROWS = {
    "paint": ROW | {"model": "paint", "checkpoint": "checkpoints/paint.safetensors", "image": IMAGE, "mask": MASK},
    "edit": ROW | {"model": "edit", "checkpoint": "checkpoints/edit.safetensors", "image": IMAGE, "mask": ""},
}
every_model = pytest.mark.parametrize("model", ROWS)


@pytest.fixture(scope="module")
def drawn(baked, tmp_path_factory) -> Project:
    """A project with a model of each kind, baked to bundle and simulation."""
    project = baked.copy(tmp_path_factory.mktemp("canvas"))
    tiny.save(tiny.inpainting_sd1(), project.directory / ROWS["paint"]["checkpoint"])
    tiny.save(tiny.instruct_sd1(), project.directory / ROWS["edit"]["checkpoint"])
    (project.directory / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 96)).save(project.directory / IMAGE)
    _mask(project, 24)
    project.write_rows(*ROWS.values())
    project.bake(
        *(f"results/{name}/{end}" for name in ROWS for end in ("bundle/axbake/manifest.json", "simulation/image.png"))
    )
    return project


def _mask(project, top):
    mask = np.zeros((96, 96), np.uint8)
    mask[top:] = 255
    Image.fromarray(mask).save(project.directory / MASK)


def said(project, model, name):
    return json.loads((project.directory / "results" / model / name).read_text())


def run(project, model, place, program, *options):
    bundle = project.directory / "results" / model / "bundle" / "axbake"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, bundle / program, *options], cwd=place, env=environment, capture_output=True, text=True
    )


@every_model
def test_it_draws_nearly_the_reference_and_its_encoder_has_a_share(model, drawn):
    assert said(drawn, model, "parity/unet.json")["psnr_db"] > 100
    assert said(drawn, model, "simulation/distance.json")["latent_psnr_db"] > 20
    quantised = said(drawn, model, "simulation/attribution.json")["quantised"]
    assert quantised["none"]["latent_psnr_db"] > 60
    assert quantised["vae_encoder"]["latent_psnr_db"] < quantised["none"]["latent_psnr_db"]
    kind = {"paint": "for inpainting", "edit": "for instructions (InstructPix2Pix)"}[model]
    assert said(drawn, model, "checkpoint.json")["variant"].endswith(kind)


def test_graphs_of_networks_that_another_model_has_too_are_stored(drawn):
    for model in ROWS:
        for component in ("text_encoder", "vae_encoder", "vae_decoder"):
            log = drawn.directory / "logs" / model / "onnx" / f"{component}.log"
            assert " building " not in log.read_text()


@pytest.mark.parametrize(
    ("model", "options", "canvas"),
    [
        (
            "paint",
            ["--image", "red.png", "--mask", "all.png", "--strength", "0.5"],
            ["canvas/image.png", "canvas/mask.png"],
        ),
        ("edit", ["--image", "red.png", "--image-guidance-scale", "1.2"], ["canvas/image.png"]),
    ],
)
def test_the_bundle_draws_the_simulations_picture_and_others_on_other_pictures(model, options, canvas, drawn, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")

    own = run(drawn, model, tmp_path, "txt2img.py")
    other = run(drawn, model, tmp_path, "txt2img.py", *options, "--output", "other.png")

    assert own.returncode == other.returncode == 0, own.stderr + other.stderr
    simulated = drawn.directory / "results" / model / "simulation" / "image.png"
    pixels = [np.asarray(Image.open(path)) for path in (tmp_path / "image.png", simulated)]
    assert np.array_equal(*pixels)
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "other.png")), pixels[0])
    assert said(drawn, model, "bundle/axbake/manifest.json")["canvas"] == canvas


def test_image_to_image_and_published_layouts_are_refused(drawn, tmp_path):
    done = run(drawn, "paint", tmp_path, "img2img.py", "red.png")

    assert done.returncode == 1
    assert (
        "the models of this bundle draw on a picture in their own way. Use txt2img.py with --image and --mask"
        in done.stderr
    )
    assert "a UNet that draws on a picture, wanted one for text to image" in drawn.refusal(
        "--dry-run", "results/paint/bundle/axera/manifest.json"
    )


def test_a_manifest_that_names_one_file_of_two_is_refused(drawn, tmp_path):
    bundle = shutil.copytree(drawn.directory / "results" / "paint" / "bundle" / "axbake", tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"canvas": manifest["canvas"][:1]}))

    with pytest.raises(BundleError, match="wanted a picture and a mask, or"):
        read_bundle(bundle)


def test_another_mask_draws_anew_and_calibrates_nothing_anew(drawn, tmp_path):
    project = drawn.copy(tmp_path)
    _mask(project, 48)

    jobs = project.plan("results/paint/simulation/image.png", "results/edit/simulation/image.png").jobs

    assert jobs == {"draw_reference": 1, "simulate": 1}


def test_rows_without_what_their_models_draw_on_are_left_out_with_their_reasons(drawn, tmp_path):
    project = drawn.copy(tmp_path)
    paint, edit = ROWS.values()
    wrong = {
        "it is for inpainting, but the row has no picture and no mask. Fill in the columns image and mask": (
            paint | {"image": "", "mask": ""}
        ),
        "it is for inpainting, but the row has a picture and no mask": paint | {"mask": ""},
        "pictures/none.png: not there": paint | {"mask": "pictures/none.png"},
        "it is for text to image, but the row has a picture and a mask. Empty the columns": (
            paint | {"checkpoint": ROW["checkpoint"]}
        ),
        "it is for instructions (InstructPix2Pix), but the row has a picture and a mask": edit | {"mask": MASK},
    }
    project.write_rows(*(row | {"model": f"wrong{number}"} for number, row in enumerate(wrong.values())))

    plan = project.plan()

    assert plan.jobs == {"refuse_row": len(wrong)}
    for number, words in enumerate(wrong):
        assert re.search(rf"Left out: .*wrong{number}: .*{re.escape(words)}", plan.text), (words, plan.text)
