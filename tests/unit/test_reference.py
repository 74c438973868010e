"""The reference picture is diffusers' own, the same each time, and says how it was made."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from axbake.distance import psnr
from axbake.drawing.schedule import SCHEDULERS
from axbake.runtime.values import Picture
from tests.unit.jobs import draw_picture

SETTINGS = {
    "model": "tiny",
    "prompt": "a rocket, in the night",
    "negative_prompt": "blurry",
    "height": 64,
    "width": 96,
    "scheduler": "euler",
    "steps": 3,
    "guidance_scale": 5,
    "seed": 9,
    "clip_skip": 1,
}


def draw(model, directory, **changed):
    """The files that *SETTINGS* with *changed* give: picture, latents, settings."""
    directory.mkdir()
    draw_picture(model, Picture(**SETTINGS | changed), directory)
    return tuple(directory / name for name in ("image.png", "trajectory.npy", "settings.json"))


@pytest.mark.parametrize(("family", "scheduler"), [*(("sd1", name) for name in SCHEDULERS), ("sd2", "unipc")])
def test_the_picture_is_what_diffusers_draws_with_the_original_networks(family, model_of, scheduler, tmp_path):
    model = model_of(family)
    image, trajectory, settings = draw(model, tmp_path / "ours", scheduler=scheduler)

    latents = []

    def keep(pipeline, step, timestep, tensors):
        latents.append(tensors["latents"].numpy().copy())
        return tensors

    (wanted,) = model.pipeline(scheduler)(
        SETTINGS["prompt"],
        negative_prompt=SETTINGS["negative_prompt"],
        height=64,
        width=96,
        num_inference_steps=3,
        guidance_scale=5,
        generator=torch.Generator().manual_seed(9),
        callback_on_step_end=keep,
    ).images
    found = np.load(trajectory)
    assert found.shape == (3, 1, 4, 8, 12)
    assert found.dtype == np.float32
    assert psnr(np.stack(latents), found) > 60
    assert psnr(np.asarray(wanted), np.asarray(Image.open(image)), peak=255) > 50
    assert json.loads(settings.read_text())["sampler"] in Image.open(image).text["parameters"]


def test_the_same_settings_give_the_same_files_and_another_seed_another_picture(model, tmp_path):
    first, again, other = (draw(model, tmp_path / name, seed=seed) for name, seed in [("a", 9), ("b", 9), ("c", 10)])

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert all(path.read_bytes() != changed.read_bytes() for path, changed in zip(first, other, strict=True))
    assert not np.array_equal(*(np.asarray(Image.open(files[0])) for files in (first, other)))


def test_the_largest_activation_of_the_decoder_is_that_of_diffusers_modules(model, tmp_path):
    draw(model, tmp_path / "ours")
    pipeline, largest = model.pipeline("euler"), {}
    for name, module in pipeline.vae.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: largest.update(
                {name: max(float(output.abs().max()), largest.get(name, 0))} if isinstance(output, torch.Tensor) else {}
            )
        )
    given = {name: SETTINGS[name] for name in ("prompt", "negative_prompt", "height", "width", "guidance_scale")}
    pipeline(**given, num_inference_steps=3, generator=torch.Generator().manual_seed(9))

    found = json.loads((tmp_path / "ours" / "activations.json").read_text())

    module = max(largest, key=largest.get)
    assert found["module"] == module
    assert found["peak"] == pytest.approx(largest[module], rel=1e-3)


def test_settings_lie_beside_the_picture_and_in_it(model, tmp_path):
    image, _, settings = draw(model, tmp_path / "drawn", prompt="Élan, «vital»")

    said = json.loads(settings.read_text(encoding="utf-8"))
    assert said == {name: value for name, value in SETTINGS.items() if name != "scheduler"} | {
        "sampler": "Euler",
        "prompt": "Élan, «vital»",
    }
    parameters = Image.open(image).text["parameters"]
    assert parameters.splitlines()[:2] == ["Élan, «vital»", "Negative prompt: blurry"]
    assert "Steps: 3, Sampler: Euler, CFG scale: 5, Seed: 9, Size: 96x64, Model: tiny" in parameters


def test_the_log_has_the_end_of_a_prompt_that_is_longer_than_its_chunks(model, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        draw(model, tmp_path / "long", prompt="word " * 75 + "lighthouse", steps=1)
        draw(model, tmp_path / "short", prompt="word " * 75, steps=1)

    warnings = [record.message for record in caplog.records if record.name == "axbake.drawing.prompts"]
    assert len(warnings) == 1
    assert "longer than 75 tokens (prompt_chunks: 1)" in warnings[0]
    assert warnings[0].endswith(": lighthouse")


def test_without_guidance_the_negative_prompt_does_not_count(model, tmp_path):
    one, other = (
        draw(model, tmp_path / name, guidance_scale=1, negative_prompt=text, steps=2)
        for name, text in [("a", ""), ("b", "blurry")]
    )

    assert one[1].read_bytes() == other[1].read_bytes()
