"""Latents, conditioning and pictures as values, against diffusers' own formulas."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from axbake.drawing.schedule import SCHEDULERS
from axbake.runtime.txt2img import save_png
from axbake.runtime.values import SAMPLERS, Conditioning, Latents, Picture

MEAN, STD = (-0.7571, 0.4, 2.8, 0.1), (2.8184, 1.4541, 0.5, 1.0)
WAN = Latents(channels=4, factor=8, mean=MEAN, std=STD)
XL = Latents(channels=4, factor=8, scale=0.13025, mean=MEAN, std=STD)
FLUX = Latents(channels=4, factor=8, scale=0.3611, shift=0.1159, patch=2)
SD1 = Latents(channels=4, factor=8, scale=0.18215)


def channels(values):
    return torch.tensor(values).view(1, 4, 1, 1)


# Written as in diffusers 0.42: pipeline_stable_diffusion*.py, pipeline_flux.py, pipeline_stable_diffusion_xl*.py, and
# pipeline_wan.py with pipeline_qwenimage_img2img.py
FORMULAS = {
    "Stable Diffusion 1.x": (SD1, lambda x: x / 0.18215, lambda x: 0.18215 * x),
    "Stable Diffusion 3, FLUX": (FLUX, lambda x: (x / 0.3611) + 0.1159, lambda x: (x - 0.1159) * 0.3611),
    "Stable Diffusion XL": (
        XL,
        lambda x: x * channels(STD) / 0.13025 + channels(MEAN),
        lambda x: (x - channels(MEAN)) * 0.13025 / channels(STD),
    ),
    "Wan, Qwen-Image": (
        WAN,
        lambda x: x / (1.0 / channels(STD)) + channels(MEAN),
        lambda x: (x - channels(MEAN)) * (1.0 / channels(STD)),
    ),
}


@pytest.fixture(scope="module")
def latent():
    return np.random.default_rng(0).normal(size=(1, 4, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("model", FORMULAS)
def test_latents_for_the_decoder_and_from_the_encoder_are_those_of_diffusers(model, latent):
    latents, for_decoder, from_encoder = FORMULAS[model]

    for found, formula in ((latents.for_decoder(latent), for_decoder), (latents.from_encoder(latent), from_encoder)):
        assert found.dtype == np.float32 and found.shape == latent.shape
        np.testing.assert_allclose(found, formula(torch.from_numpy(latent)).numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(latents.for_decoder(latents.from_encoder(latent)), latent, rtol=1e-5, atol=1e-6)


def test_a_scale_alone_is_one_division_and_one_multiplication_to_the_bit(latent):
    for scale in (0.18215, 0.13025, 1.0):
        latents = dataclasses.replace(SD1, scale=scale)

        assert np.array_equal(latents.for_decoder(latent), latent / np.float32(scale))
        assert np.array_equal(latents.from_encoder(latent), latent * np.float32(scale))


def test_latents_have_a_shape_by_the_pictures():
    assert SD1.shape(480, 320) == (1, 4, 60, 40)
    assert Latents(channels=16, factor=8).shape(1024, 512) == (1, 16, 128, 64)
    assert Latents(channels=32, factor=16, patch=2).shape(512, 512) == (1, 32, 32, 32)


@pytest.mark.parametrize(
    "means", [{"mean": MEAN}, {"std": STD}, {"mean": MEAN[:3], "std": STD[:3]}, {"mean": MEAN, "std": STD[1:]}]
)
def test_means_and_deviations_that_are_not_of_every_channel_are_refused(means):
    with pytest.raises(ValueError, match=r"latents of 4 channels with \d means and \d deviations; wanted 4 of both"):
        Latents(channels=4, factor=8, **means)


def test_states_of_text_encoders_stand_side_by_side_for_each_token():
    random = np.random.default_rng(0)
    narrow, wide = (random.normal(size=(1, 7, width)).astype(np.float32) for width in (2, 3))

    both = Conditioning(("text_encoder", "text_encoder_2")).join([narrow, wide])

    assert both.shape == (1, 7, 5) and both.dtype == np.float32
    for token in range(7):
        assert both[0, token].tolist() == [*narrow[0, token], *wide[0, token]]
    assert Conditioning(("text_encoder",)).join([narrow]) is narrow


def test_a_conditioning_that_is_not_known_or_not_whole_is_refused():
    with pytest.raises(ValueError, match="text encoders joined by 'tokens'; wanted 'channels'"):
        Conditioning(("text_encoder",), joined="tokens")
    with pytest.raises(ValueError, match="a conditioning without text encoders; wanted at least one"):
        Conditioning(())
    with pytest.raises(ValueError, match="states of 1 text encoders; wanted those of text_encoder, text_encoder_2"):
        Conditioning(("text_encoder", "text_encoder_2")).join([np.zeros((1, 7, 2))])


PICTURE = Picture(
    model="xxmix9: v4, pruned", prompt="a cat, 猫", negative_prompt="blurry", height=480, width=320,
    scheduler="dpmpp_2m_karras", steps=20, guidance_scale=7.0, seed=42, clip_skip=2,
)  # fmt: skip


def test_png_text_is_what_web_uis_read(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    for name in ("one.png", "two.png"):
        save_png(tmp_path / name, image, PICTURE.parameters())

    opened = Image.open(tmp_path / "one.png")
    assert opened.text["parameters"] == (
        "a cat, 猫\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M Karras to sigma_min, CFG scale: 7, Seed: 42, "
        'Size: 320x480, Model: "xxmix9: v4, pruned", Clip skip: 2'
    )
    assert (np.asarray(opened) == image).all()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_png_text_says_nothing_of_what_a_picture_is_without():
    plain = dataclasses.replace(
        PICTURE,
        model="m",
        negative_prompt="",
        prompt="a cat",
        scheduler="lcm",
        steps=4,
        guidance_scale=1.5,
        clip_skip=1,
    )

    assert plain.parameters() == ("a cat\nSteps: 4, Sampler: LCM, CFG scale: 1.5, Seed: 42, Size: 320x480, Model: m")
    drawn_over = dataclasses.replace(plain, strength=0.6, clip_skip=2)
    assert drawn_over.parameters().endswith("Model: m, Denoising strength: 0.6, Clip skip: 2")


def test_every_scheduler_has_a_name_in_web_uis():
    assert set(SAMPLERS) == set(SCHEDULERS)
