"""Drawing over a picture gives what `StableDiffusionImg2ImgPipeline` gives, with the same tiny networks."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from axbake.distance import psnr
from axbake.drawing.schedule import SCHEDULERS, build_scheduler
from axbake.runtime.errors import BundleError
from axbake.runtime.img2img import read_picture, redraw, sampled
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import Session
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.txt2img import Models
from axbake.runtime.values import Latents, Picture
from tests import tiny
from tests.unit.conftest import CLIP

STEPS = 4  # of which Euler's timesteps are whole: 999, 666, 333, 0
PROMPT, NEGATIVE, SEED, GUIDANCE = "a rocket", "blurry", 3, 5
MIN_PSNR = 60  # dB, of latents


def session(name, inputs, compute):
    """The torch function *compute* as a loaded model."""

    def run(feed):
        with torch.inference_mode():
            return [compute(*(torch.from_numpy(feed[name]) for name in inputs)).numpy()]

    output = {"vae_decoder": (1, 3, 64, 64)}.get(name, ())
    tensors = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in inputs.items()}
    return Session(name, tensors, {"output": (output, np.dtype(np.float32))}, run)


@pytest.fixture(scope="module")
def models(model):
    unet, text_encoder = model.networks.unet, model.networks.text_encoder
    latent, context = ((1, 4, 8, 8), "float32"), ((1, 77, tiny.WIDTH), "float32")
    encode, decode = (model.networks.component(name) for name in ("vae_encoder", "vae_decoder"))
    return Models(
        (session("text_encoder", {"ids": ((1, 77), "int64")}, lambda ids: text_encoder(ids).last_hidden_state),),
        session(
            "unet",
            {"sample": latent, "t": ((1,), "int32"), "encoder_hidden_states": context},
            lambda *inputs: unet(*inputs).sample,
        ),
        session("vae_decoder", {"x": latent}, decode),
        session("vae_encoder", {"picture": ((1, 3, 64, 64), "float32")}, encode),
    )


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC))


LATENTS = Latents(channels=4, factor=8, scale=0.18215)
PICTURE = Picture(
    model="tiny", prompt=PROMPT, negative_prompt=NEGATIVE, height=64, width=64, scheduler="euler", steps=STEPS,
    guidance_scale=GUIDANCE, seed=SEED, strength=0.61,
)  # fmt: skip


def ours(model, models, pixels, directory, scheduler="euler", **options):
    schedule = load_schedule(model.schedule(directory / "schedule.npz", scheduler=scheduler, steps=STEPS))
    picture = replace(PICTURE, scheduler=scheduler, **options)
    return redraw(pixels, models, ClipTokenizer(CLIP), schedule, picture, latents=LATENTS)


def test_the_latent_of_an_autoencoder_tiny_is_no_sample():
    given = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)

    assert sampled(given, None, latents=LATENTS) is given


@pytest.mark.parametrize("strength", [0.61, 1])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_are_those_of_diffusers(model, models, picture, tmp_path, scheduler, strength):
    pipeline = StableDiffusionImg2ImgPipeline.from_pipe(model.pipeline(scheduler), scheduler=build_scheduler(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    theirs = []
    pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        image=Image.fromarray(picture),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        callback_on_step_end=lambda _, step, timestep, tensors: theirs.append(tensors["latents"].numpy()) or tensors,
    )

    drawing = ours(model, models, picture, tmp_path, scheduler, strength=strength)

    assert drawing.latents.shape == (int(STEPS * strength), 1, 4, 8, 8)
    assert all(psnr(want, found) > MIN_PSNR for want, found in zip(theirs, drawing.latents, strict=True))
    assert len(drawing.seconds["vae_encoder"]) == 1


def test_a_strength_that_leaves_no_step_is_refused(model, models, picture, tmp_path):
    for strength in (0.1, -1, 1.5):
        with pytest.raises(
            BundleError, match=rf"strength {strength:g}: -?\d+ of 4 steps; wanted at least one: 0\.25 to 1"
        ):
            ours(model, models, picture, tmp_path, strength=strength)


def test_a_picture_is_turned_upright_cut_from_its_middle_and_flattened_on_white(tmp_path):
    red_and_blue = Image.new("RGB", (128, 64), "red")
    red_and_blue.paste("blue", (64, 0, 128, 64))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a quarter
    red_and_blue.save(tmp_path / "turned.png", exif=turned)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    red_and_blue.save(tmp_path / "wide.png")

    upright = read_picture(tmp_path / "turned.png", height=128, width=64)
    middle = read_picture(tmp_path / "wide.png", height=64, width=64)

    assert upright.shape == (128, 64, 3)
    assert (upright[0, 0] == (255, 0, 0)).all() and (upright[-1, -1] == (0, 0, 255)).all()
    assert (middle[:, 0] == (255, 0, 0)).all() and (middle[:, -1] == (0, 0, 255)).all()
    assert (read_picture(tmp_path / "clear.png", height=8, width=8) == 255).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: Image.new("1", (13_000, 13_000)).save(path), "13000x13000: wanted 50 million pixels at most"),
        (lambda path: Image.new("1", (20_000, 10_000)).save(path), "wanted 50 million pixels at most"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "no picture that can be read"),
        (lambda path: Image.new("RGB", (8, 8)).save(path, "EPS"), "no picture that can be read"),
        (lambda path: path.mkdir(), "no such file"),
        (os.mkfifo, "no such file"),
        (lambda path: None, "no such file"),
    ],
    ids=["large", "beyond Pillow's limit", "cut off", "a program for Ghostscript", "folder", "pipe", "nothing"],
)
def test_what_is_no_picture_of_a_usual_size_is_refused_before_it_is_decoded(make, said, tmp_path):
    path = tmp_path / "a.png"
    make(path)

    with pytest.raises(BundleError, match=said) as raised:
        read_picture(path, height=64, width=64)

    assert str(path) in str(raised.value)
