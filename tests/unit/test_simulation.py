"""The simulation measures the compiled models and nothing of its own: graphs that are not quantised come out as the reference."""

import json

import numpy as np
import pytest
from PIL import Image

from axbake.drawing.distance import psnr
from axbake.drawing.reference import draw_reference
from axbake.drawing.simulation import simulate
from axbake.families import COMPONENTS
from axbake.graphs.export import export_onnx
from tests.unit.conftest import tensors_of

DRAWING = {
    "model": "tiny",
    "prompt": "a rocket, in the night",
    "negative_prompt": "",
    "guidance_scale": 5,
    "seed": 9,
    "clip_skip": 1,
    "height": 64,
    "width": 64,
}


def draw(model, directory, *, prompt_chunks=1, **changed):
    """*directory* with the reference and its schedule in it."""
    draw_reference(
        **{name: model.weights[name] for name in ("text_encoder", "unet", "vae_decoder")},
        **DRAWING | changed,
        embeddings=model.embeddings,
        scheduler="euler",
        steps=4,
        prompt_chunks=prompt_chunks,
        image=directory / "image.png",
        trajectory=directory / "trajectory.npy",
        settings=directory / "settings.json",
    )
    model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    return directory


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    return draw(model, tmp_path_factory.mktemp("reference"))


def distance(model, reference, models, directory, **changed):
    simulate(
        **models,
        embeddings=model.embeddings,
        vae_encoder_weights=model.weights["vae_encoder"],
        schedule=reference / "schedule.npz",
        reference=reference / "image.png",
        trajectory=reference / "trajectory.npy",
        **DRAWING | changed,
        image=directory / "image.png",
        distance=directory / "distance.json",
    )
    return json.loads((directory / "distance.json").read_text())


def test_graphs_that_are_not_quantised_draw_the_reference(model, graph_of, reference, tmp_path):
    said = distance(model, reference, {name: graph_of(name) for name in COMPONENTS}, tmp_path)

    assert said["emulated"] is False
    assert len(said["latent_psnr_db_by_step"]) == 4
    assert said["latent_psnr_db"] == said["latent_psnr_db_by_step"][-1]
    assert min(said["latent_psnr_db_by_step"]) > 60
    assert said["image_psnr_db"] > 45
    assert said["image_ssim"] > 0.99
    assert said["vae_encoder_psnr_db"] > 80
    parameters = [Image.open(where / "image.png").text["parameters"] for where in (reference, tmp_path)]
    assert parameters[0] == parameters[1]


def test_another_seed_is_far_from_the_reference(model, graph_of, reference, tmp_path):
    said = distance(model, reference, {name: graph_of(name) for name in COMPONENTS}, tmp_path, seed=10)

    assert said["latent_psnr_db"] < 25
    assert said["vae_encoder_psnr_db"] > 80  # it is given the reference's picture, whatever was drawn
    assert not np.array_equal(*(np.asarray(Image.open(where / "image.png")) for where in (reference, tmp_path)))


def test_weights_and_several_chunks_draw_the_reference_too(model, graph_of, reference, tmp_path):
    prompts = {"prompt": "a (rocket:1.4), [night] BREAK ((stars))", "negative_prompt": "(blurry:1.2), " * 30}
    graph = tmp_path / "unet.onnx"
    export_onnx(model.weights["unet"], graph=graph, tensors=tensors_of(graph), height=64, width=64, prompt_chunks=2)
    (tmp_path / "reference").mkdir()
    longer = draw(model, tmp_path / "reference", prompt_chunks=2, **prompts)

    said = distance(model, longer, {name: graph_of(name) for name in COMPONENTS} | {"unet": graph}, tmp_path, **prompts)

    assert min(said["latent_psnr_db_by_step"]) > 60
    latents = [np.load(where / "trajectory.npy")[-1] for where in (longer, reference)]
    assert psnr(*latents) < 40
