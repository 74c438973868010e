"""The simulation measures the compiled models and nothing of its own: graphs that are not quantised come out as the reference."""

import json

import numpy as np
import pytest
from PIL import Image

from axbake.distance import psnr
from axbake.drawing.simulation import simulate
from axbake.networks.component import ENCODER
from tests.unit.conftest import export_part
from tests.unit.jobs import draw_picture

DRAWING = {"prompt": "a rocket, in the night", "negative_prompt": "", "guidance_scale": 5, "seed": 9}


def draw(model, directory, **changed):
    """*directory* with the reference and its schedule in it."""
    draw_picture(model, model.picture(**DRAWING | changed), directory)
    model.schedule(directory / "schedule.npz", scheduler="euler", steps=4)
    return directory


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    return draw(model, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def graphs(model, graph_of):
    """Float graph of each component, by its name."""
    return {name: graph_of(name) for name in model.family.names}


def distance(model, reference, models, directory, **changed):
    encoder = model.family.of_role(ENCODER)
    simulate(
        models=list(models.values()),
        encoder_weights=model.weights[encoder.name],
        schedule=reference / "schedule.npz",
        embeddings=model.embeddings,
        reference=reference / "image.png",
        trajectory=reference / "trajectory.npy",
        picture=model.picture(**DRAWING | changed),
        drawn=model.drawn,
        latents=model.family.latents,
        build=encoder.build,
        image=directory / "image.png",
        simulated=directory / "simulated.npy",
        distance=directory / "distance.json",
    )
    return json.loads((directory / "distance.json").read_text())


def test_graphs_that_are_not_quantised_draw_the_reference(model, graphs, reference, tmp_path):
    said = distance(model, reference, graphs, tmp_path)

    assert said["emulated"] is False
    assert len(said["latent_psnr_db_by_step"]) == 4
    assert said["latent_psnr_db"] == said["latent_psnr_db_by_step"][-1]
    assert min(said["latent_psnr_db_by_step"]) > 60
    assert said["image_psnr_db"] > 45
    assert said["image_ssim"] > 0.99
    assert said["vae_encoder_psnr_db"] > 80
    parameters = [Image.open(where / "image.png").text["parameters"] for where in (reference, tmp_path)]
    assert parameters[0] == parameters[1]


def test_another_seed_is_far_from_the_reference(model, graphs, reference, tmp_path):
    said = distance(model, reference, graphs, tmp_path, seed=10)

    assert said["latent_psnr_db"] < 25
    assert said["vae_encoder_psnr_db"] > 80  # it is given the reference's picture, whatever was drawn
    assert not np.array_equal(*(np.asarray(Image.open(where / "image.png")) for where in (reference, tmp_path)))


def test_weights_and_several_chunks_draw_the_reference_too(model, graphs, reference, tmp_path):
    prompts = {"prompt": "a (rocket:1.4), [night] BREAK ((stars))", "negative_prompt": "(blurry:1.2), " * 30}
    prompts |= {"prompt_chunks": 2}
    graph = export_part(model.weights["unet"], tmp_path / "unet.onnx", prompt_chunks=2)
    (tmp_path / "reference").mkdir()
    longer = draw(model, tmp_path / "reference", **prompts)

    said = distance(model, longer, graphs | {"unet": graph}, tmp_path, **prompts)

    assert min(said["latent_psnr_db_by_step"]) > 60
    latents = [np.load(where / "trajectory.npy")[-1] for where in (longer, reference)]
    assert psnr(*latents) < 40
