"""Each component's own error is reported, and a graph that is not quantised has none."""

import json

import numpy as np
import pytest
from PIL import Image

from axbake.calibration.tars import calibrate_text_encoder
from axbake.distance import psnr
from tests.decoder import pack_latents
from tests.unit.jobs import attribute, draw_picture, emulate

PARTS = ("text_encoder", "unet", "vae_decoder")
DRAWING = {"prompt": "a rocket, in the night", "negative_prompt": "", "guidance_scale": 5, "seed": 9}
SIMULATED = {"latent_psnr_db": 31.0, "image_psnr_db": 30.0, "image_ssim": 0.9}


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    draw_picture(model, model.picture(**DRAWING), directory)
    (directory / "distance.json").write_text(json.dumps(SIMULATED | {"vae_encoder_psnr_db": 40.0}))
    return directory


def attributed(model, graph_of, reference, directory, **compiled):
    graphs = {part: [graph_of(part)] for part in model.family.names}
    return attribute(
        model,
        graphs | {part: [path] for part, path in compiled.items()},
        graphs,
        directory,
        picture=model.picture(**DRAWING),
        schedule=reference / "schedule.npz",
        reference=reference / "image.png",
        trajectory=reference / "trajectory.npy",
        simulated=reference / "trajectory.npy",
        distance=reference / "distance.json",
    )


def test_graphs_that_are_not_quantised_have_no_error_and_the_whole_is_the_simulations(
    model, graph_of, reference, tmp_path
):
    said = attributed(model, graph_of, reference, tmp_path)

    assert said["emulated"] is False
    found = said["quantised"]
    assert set(found) == {"none", *PARTS, "all"}
    assert found["all"] == SIMULATED
    assert found["vae_decoder"] == {"latent_psnr_db": None, "image_psnr_db": 200, "image_ssim": 1}
    assert found["unet"] == {"latent_psnr_db": 200, "image_psnr_db": 200, "image_ssim": 1, "with": ["text_encoder"]}
    assert found["none"].pop("steps") == 3
    for part in ("none", "text_encoder"):
        assert found[part]["latent_psnr_db"] > 60
        assert found[part]["image_psnr_db"] > 45
    drawn = np.asarray(Image.open(tmp_path / "float.png"))
    assert psnr(np.asarray(Image.open(reference / "image.png").convert("RGB")), drawn, peak=255) > 45


def test_the_error_is_that_of_the_part_that_is_quantised(model, graph_of, reference, tmp_path, caplog):
    calibrate_text_encoder(
        model.embeddings, component="text_encoder", prompts=["slice of pizza"], archive=tmp_path / "text_encoder.tar"
    )
    np.save(tmp_path / "latents.npy", np.load(reference / "trajectory.npy")[-1:] / 0.18215)
    pack_latents(tmp_path / "latents.npy", tmp_path / "vae_decoder.tar")
    parts = {
        part: emulate(model.family.component(part), graph_of(part), tmp_path / f"{part}.tar", tmp_path, precision="U8")
        for part in ("text_encoder", "vae_decoder")
    }

    with caplog.at_level("INFO", "axbake.drawing.attribution"):
        found = attributed(model, graph_of, reference, tmp_path, **parts)["quantised"]

    assert found["text_encoder"]["latent_psnr_db"] < found["none"]["latent_psnr_db"] - 10
    assert found["vae_decoder"]["image_psnr_db"] < 50
    assert found["vae_decoder"]["latent_psnr_db"] is None
    assert "drawing parts: 4 steps with text_encoder compiled" in caplog.messages
