"""Each component's own error is told, and a graph that is not quantised has none."""

import json

import numpy as np
import pytest
from PIL import Image

from axbake.calibration.tars import calibrate_text_encoder, calibrate_vae_decoder
from axbake.drawing.attribution import attribute_error
from axbake.drawing.distance import psnr
from axbake.drawing.reference import draw_reference
from axbake.toolchain.build_config import configure_build
from axbake.toolchain.pulsar2 import compile_model
from tests.decoder import LAUNCH
from tests.unit.conftest import tensors_of

PARTS = ("text_encoder", "unet", "vae_decoder")
DRAWING = {
    "prompt": "a rocket, in the night",
    "negative_prompt": "",
    "guidance_scale": 5,
    "seed": 9,
    "height": 64,
    "width": 64,
}
SIMULATED = {"latent_psnr_db": 31.0, "image_psnr_db": 30.0, "image_ssim": 0.9}


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    draw_reference(
        **{part: model.weights[part] for part in PARTS},
        **DRAWING,
        model="tiny",
        embeddings=model.embeddings,
        clip_skip=1,
        prompt_chunks=1,
        scheduler="euler",
        steps=4,
        image=directory / "image.png",
        trajectory=directory / "trajectory.npy",
        settings=directory / "settings.json",
    )
    (directory / "distance.json").write_text(json.dumps(SIMULATED | {"vae_encoder_psnr_db": 40.0}))
    return directory


def attribute(model, graph_of, reference, directory, **compiled):
    graphs = {part: graph_of(part) for part in PARTS}
    attribute_error(
        **graphs | compiled,
        **{f"float_{part}": graph for part, graph in graphs.items()},
        **{f"float_{part}_tensors": tensors_of(graph) for part, graph in graphs.items()},
        weights=model.weights["vae_decoder"],
        schedule=reference / "schedule.npz",
        embeddings=model.embeddings,
        trajectory=reference / "trajectory.npy",
        distance=reference / "distance.json",
        **DRAWING,
        attribution=directory / "attribution.json",
        float_image=directory / "float.png",
    )
    return json.loads((directory / "attribution.json").read_text())


def compiled(graph_of, part, directory):
    """The tiny model's *part* in U8, its calibration archive being in *directory*."""
    made = {name: directory / f"{part}.{name}" for name in ("config.json", "axmodel", "record.json")}
    configure_build(
        component=part, precision="U8", target_hardware="AX650", npu_mode="NPU3", config=made["config.json"]
    )
    compile_model(
        graph_of(part),
        tensors_of(graph_of(part)),
        directory / f"{part}.tar",
        made["config.json"],
        compiler={},
        launch=LAUNCH | {"toolchain": "emulator"},
        axmodel=made["axmodel"],
        record=made["record.json"],
    )
    return made["axmodel"]


def test_graphs_that_are_not_quantised_have_no_error_and_the_whole_is_the_simulations(
    model, graph_of, reference, tmp_path
):
    said = attribute(model, graph_of, reference, tmp_path)

    assert said["emulated"] is False
    found = said["quantised"]
    assert set(found) == {"none", *PARTS, "all"}
    assert found["all"] == SIMULATED
    assert found["vae_decoder"] == {"latent_psnr_db": None, "image_psnr_db": 200, "image_ssim": 1}
    for part in ("none", "text_encoder", "unet"):
        assert found[part]["latent_psnr_db"] > 60
        assert found[part]["image_psnr_db"] > 45
    drawn = np.asarray(Image.open(tmp_path / "float.png"))
    assert psnr(np.asarray(Image.open(reference / "image.png").convert("RGB")), drawn, peak=255) > 45


def test_the_error_is_that_of_the_part_that_is_quantised(model, graph_of, reference, tmp_path, caplog):
    calibrate_text_encoder(model.embeddings, prompts=["slice of pizza"], archive=tmp_path / "text_encoder.tar")
    np.save(tmp_path / "latents.npy", np.load(reference / "trajectory.npy")[-1:] / 0.18215)
    calibrate_vae_decoder(tmp_path / "latents.npy", archive=tmp_path / "vae_decoder.tar")
    parts = {part: compiled(graph_of, part, tmp_path) for part in ("text_encoder", "vae_decoder")}

    with caplog.at_level("INFO", "axbake.drawing.attribution"):
        found = attribute(model, graph_of, reference, tmp_path, **parts)["quantised"]

    assert found["unet"]["latent_psnr_db"] > 60
    assert found["text_encoder"]["latent_psnr_db"] < found["unet"]["latent_psnr_db"] - 10
    assert found["vae_decoder"]["image_psnr_db"] < 50
    assert found["vae_decoder"]["latent_psnr_db"] is None
    assert "attributing: 4 of 4: unet" in caplog.messages
