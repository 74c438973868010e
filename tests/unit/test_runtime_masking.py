"""Drawing within a mask gives what `StableDiffusionInpaintPipeline` gives with a UNet that knows nothing of masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw

from axbake.distance import psnr
from axbake.drawing.schedule import build_scheduler
from axbake.networks.sampling import Sampling
from axbake.runtime.errors import BundleError
from axbake.runtime.img2img import read_picture, redraw
from axbake.runtime.masking import latent_mask, redraw_masked
from axbake.runtime.predictions import KINDS, predictions_of
from axbake.runtime.resizing import decoded, grey_mask, over, resized, surroundings
from axbake.runtime.sampler import load_schedule
from axbake.runtime.tokenizer import ClipTokenizer
from tests.unit.conftest import CLIP
from tests.unit.test_runtime_bundle import schedule as flow_schedule
from tests.unit.test_runtime_img2img import (
    GUIDANCE,
    LATENTS,
    MIN_PSNR,
    NEGATIVE,
    PICTURE,
    PROMPT,
    SEED,
    STEPS,
    models,  # noqa: F401
    picture,  # noqa: F401
)


@pytest.fixture
def mask():
    white = np.zeros((64, 64), np.uint8)
    white[16:48, 8:40] = 255
    return white


@pytest.fixture
def masked(model, models, picture, tmp_path):  # noqa: F811
    """A function that draws within a mask."""

    def run(mask, scheduler="euler", fill="original", **options):
        schedule = load_schedule(model.schedule(tmp_path / "schedule.npz", scheduler=scheduler, steps=STEPS))
        asked = replace(PICTURE, scheduler=scheduler, **options)
        how = {"latents": LATENTS, "prediction_type": "epsilon", "fill": fill}
        return redraw_masked(picture, mask, models, ClipTokenizer(CLIP), schedule, asked, **how)

    return run


@pytest.mark.parametrize("scheduler", ["euler", "ddim"])
def test_latents_are_those_of_diffusers_where_a_step_depends_on_the_one_before_alone(
    model,
    masked,
    picture,  # noqa: F811
    mask,
    scheduler,
):
    pipeline = StableDiffusionInpaintPipeline.from_pipe(model.pipeline(scheduler), scheduler=build_scheduler(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    theirs = []
    pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        image=Image.fromarray(picture),
        mask_image=Image.fromarray(mask),
        height=64,
        width=64,
        strength=0.61,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        callback_on_step_end=lambda _, step, timestep, tensors: theirs.append(tensors["latents"].numpy()) or tensors,
    )

    drawing = masked(mask, scheduler)

    assert psnr(theirs[-1], drawing.latents[-1]) > MIN_PSNR
    assert (drawing.image[mask == 0] == picture[mask == 0]).all()
    assert (drawing.image[mask == 255] != picture[mask == 255]).any()


@pytest.mark.parametrize("scheduler", ["dpmpp_2m_karras", "euler_a"])
def test_a_mask_of_all_the_picture_is_none(model, models, masked, picture, tmp_path, scheduler):  # noqa: F811
    drawing = masked(np.full((64, 64), 255, np.uint8), scheduler)

    schedule = load_schedule(tmp_path / "schedule.npz")
    asked = replace(PICTURE, scheduler=scheduler)
    wanted = redraw(picture, models, ClipTokenizer(CLIP), schedule, asked, latents=LATENTS)
    assert psnr(wanted.latents[-1], drawing.latents[-1]) > MIN_PSNR


def test_what_the_masked_part_begins_with_counts_in_it_alone(masked, picture, mask):  # noqa: F811
    made = {fill: masked(mask, "dpmpp_2m_karras", fill).latents for fill in ("original", "noise", "nothing")}

    kept = latent_mask(mask, 8)[0, 0] == 0
    assert not np.array_equal(made["original"][-1][0, 0], made["noise"][-1][0, 0])
    assert not np.array_equal(made["noise"][-1][0, 0], made["nothing"][-1][0, 0])
    assert np.array_equal(made["original"][-1][..., kept], made["noise"][-1][..., kept])


def test_a_mask_that_does_not_fit_is_refused(masked):
    with pytest.raises(BundleError, match=r"a mask of \(32, 64\) pixels; wanted \(64, 64\)"):
        masked(np.full((64, 32), 255, np.uint8))
    with pytest.raises(BundleError, match="no pixel whiter than 127 of 255"):
        masked(np.full((64, 64), 100, np.uint8))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("scheduler", ["euler", "ddim"])
def test_the_finished_latent_is_the_one_that_diffusers_predicts(model, tmp_path, kind, scheduler):
    schedule = load_schedule(model.schedule(tmp_path / "schedule.npz", scheduler=scheduler, steps=STEPS))
    theirs = build_scheduler(scheduler, Sampling(prediction_type=kind))
    theirs.set_timesteps(STEPS)
    random = np.random.default_rng(0)
    ours = predictions_of(schedule, kind)
    for step, timestep in enumerate(theirs.timesteps):
        latent, output = (random.normal(size=(1, 4, 8, 8)).astype(np.float32) for _ in range(2))
        scaled = theirs.scale_model_input(torch.from_numpy(latent), timestep)
        wanted = theirs.step(torch.from_numpy(output), timestep, torch.from_numpy(latent)).pred_original_sample.numpy()

        found = ours.finished(scaled.numpy(), output, step)

        assert psnr(wanted, found) > MIN_PSNR
        assert psnr(output, ours.output(scaled.numpy(), found, step)) > MIN_PSNR


@pytest.mark.parametrize("sign", [1, -1])
def test_a_flow_goes_from_noise_to_the_picture_whatever_the_sign_of_its_output(sign):
    schedule = flow_schedule()
    levels = np.array([0.9, 0.5, 0.1])
    schedule = replace(
        schedule,
        input_scale=np.ones(3),
        picture_scale=1 - levels,
        noise_scale=levels,
        coefficients=schedule.coefficients * np.array([1, *[sign] * 6]),
    )
    finished, noise = np.random.default_rng(0).normal(size=(2, 1, 4, 8, 8))

    found = predictions_of(schedule, "flow_prediction").finished(
        0.5 * finished + 0.5 * noise, sign * (noise - finished), 1
    )

    assert np.abs(found - finished).max() < 1e-6
    with pytest.raises(BundleError, match="prediction_type 'sample'; wanted one of epsilon"):
        predictions_of(schedule, "sample")


def test_resize_modes_are_those_of_web_uis(tmp_path):
    half = Image.new("RGB", (80, 40), "red")
    half.paste("blue", (40, 0, 80, 40))
    half.save(tmp_path / "half.png")

    stretched, cropped, filled = (
        np.asarray(resized(half, mode, width=40, height=40)) for mode in ("stretch", "crop", "fill")
    )

    assert (stretched[0, :14] == (255, 0, 0)).all() and (stretched[0, 26:] == (0, 0, 255)).all()
    assert np.array_equal(cropped, read_picture(tmp_path / "half.png", height=40, width=40))
    assert np.array_equal(filled[0], filled[10]) and np.array_equal(filled[39], filled[29])  # the edge's pixels
    for mode in ("stretch", "crop", "fill"):
        assert resized(half, mode, width=80, height=40) is half


def test_of_the_masked_part_alone_the_rest_of_the_picture_stays_as_it_was():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 160, 4), dtype=np.uint8))
    white = Image.new("L", (160, 100), 0)
    ImageDraw.Draw(white).rectangle((100, 30, 119, 49), fill=255)

    part = over(photo.convert("RGB").convert("RGBA"), white, width=64, height=32, part=True, padding=4)

    left, top, right, bottom = part.paste.box
    assert (right - left) == 2 * (bottom - top) and left <= 96 and right >= 124 and (top, bottom) == (26, 54)
    assert part.pixels.shape == (32, 64, 3) and part.mask.shape == (32, 64)
    whole = part.paste.apply(np.zeros((32, 64, 3), np.uint8))
    inside = np.asarray(white) == 255
    assert (whole[inside] == 0).all() and (whole[~inside] == np.asarray(photo.convert("RGB"))[~inside]).all()


def test_the_box_of_a_mask_at_the_edge_stays_in_the_picture():
    white = Image.new("L", (100, 100), 0)
    ImageDraw.Draw(white).rectangle((90, 0, 99, 99), fill=255)

    assert surroundings(white, 0, width=64, height=64) == (0, 0, 100, 100)
    ImageDraw.Draw(white).rectangle((0, 20, 99, 99), fill=0)
    assert surroundings(white, 2, width=64, height=64) == (78, 0, 100, 22)


def test_colours_around_a_mask_flow_into_it():
    photo = Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    photo.paste((0, 255, 0, 255), (24, 24, 40, 40))
    white = Image.new("L", (64, 64), 0)
    white.paste(255, (24, 24, 40, 40))

    filled = over(photo, white, width=64, height=64, fill="colours")

    assert filled.fill == "original"
    assert np.abs(filled.pixels[32, 32].astype(int) - (200, 30, 30)).max() < 8


def test_an_upload_is_decoded_within_bounds(tmp_path):
    Image.new("1", (6000, 6000)).save(tmp_path / "large.png")
    with pytest.raises(BundleError, match="image: 6000x6000 pixels; wanted 20 million at most"):
        decoded((tmp_path / "large.png").read_bytes(), "image")
    for content in (b"", b"%!PS-Adobe", b"\x80\x04\x95", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(BundleError, match=r"image: (not a picture that can be read|a damaged picture)"):
            decoded(content, "image")
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert grey_mask(clear).getextrema() == (0, 0)
    with pytest.raises(BundleError, match="a mask of 4x4 pixels for a picture of 8x8; wanted the same size"):
        over(Image.new("RGBA", (8, 8)), grey_mask(clear), width=8, height=8)
    with pytest.raises(BundleError, match="no pixel is whiter than 127 of 255, after the blur"):
        over(clear, grey_mask(clear), width=8, height=8)
    with pytest.raises(BundleError, match="4200000 in all at most"):
        over(Image.new("RGBA", (2200, 2200)), Image.new("L", (2200, 2200), 255), width=8, height=8, part=True)
