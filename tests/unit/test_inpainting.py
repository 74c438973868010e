"""UNets for inpainting are imported, exported, calibrated with masks and drawn with as diffusers' own pipelines draw."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image

from axbake.bundles.layouts import LAYOUTS, LayoutError
from axbake.calibration.masks import KINDS, draw_mask
from axbake.calibration.pictures import draw_pictures
from axbake.checkpoints.refusals import CanvasError, check_canvas
from axbake.distance import psnr
from axbake.drawing.canvas import canvas_of
from axbake.drawing.parts import added_of
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import latents_of, simulate
from axbake.inspect import inspect_checkpoint
from axbake.runtime.canvas import paint, read_canvas
from axbake.runtime.errors import BundleError
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import open_models
from axbake.runtime.txt2img import Models, draw
from axbake.table import TableError
from axbake.weights.files import read_description
from tests import tiny, tiny_xl
from tests.unit.conftest import import_tiny, row_of
from tests.unit.jobs import attribute, calibrate, draw_picture, emulate, ranges_hold, record
from tests.unit.test_sdxl import pipeline_of as xl_pipeline_of

STEPS, GUIDANCE, SEED = 4, 5, 9
MIN_PSNR = 100  # dB, of latents; float32 rounding gives 120 and more
PROMPTS = ["slice of pizza", "penguin"]
MADE = {
    "sd1": tiny.inpainting_sd1,
    "sd2": tiny.inpainting_sd2,
    "sdxl": lambda: tiny_xl.sdxl(in_channels=9),
}
PIPELINES = {
    "sd1": StableDiffusionInpaintPipeline,
    "sd2": StableDiffusionInpaintPipeline,
    "sdxl": StableDiffusionXLInpaintPipeline,
}
every_kind = pytest.mark.parametrize("name", MADE)
exported_kinds = pytest.mark.parametrize("name", ["sd1"])  # the graphs of Stable Diffusion XL: test_sdxl.py


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    """A function that gives the tiny inpainting model of a family, imported once."""
    known = {}

    def imported(name):
        if name not in known:
            known[name] = import_tiny(MADE[name](), tmp_path_factory.mktemp(name))
        return known[name]

    return imported


@pytest.fixture(scope="module")
def exported(inpainting, graphs_of):
    """A function that gives all graphs of such a model by component."""
    return lambda name: graphs_of(inpainting(name))


@pytest.fixture(scope="module")
def canvas(tmp_path_factory):
    """Files of a picture and of a mask whose edges lie between the latent's pixels, both larger than what is drawn."""
    place = tmp_path_factory.mktemp("canvas")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((144, 96), Image.Resampling.BICUBIC).save(place / "image.png")
    mask = np.zeros((96, 144), np.uint8)
    mask[20:75, 50:] = 255
    Image.fromarray(mask).save(place / "mask.png")
    return [place / "image.png", place / "mask.png"]


def theirs(model, pixels, mask, *, prompt="a rocket", strength=1.0, seed=SEED):
    """Latents after each step that diffusers' own pipeline of the original networks draws, and its picture."""
    xl = model.family.name == "sdxl"
    usual = xl_pipeline_of(model.networks, "euler") if xl else model.pipeline("euler")
    pipeline = PIPELINES[model.family.name].from_pipe(usual)
    pipeline.set_progress_bar_config(disable=True)
    latents = []
    image = pipeline(
        prompt,
        negative_prompt="",
        image=Image.fromarray(pixels),
        mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
        strength=strength,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        callback_on_step_end=lambda _, step, timestep, tensors: latents.append(tensors["latents"].numpy()) or tensors,
    ).images[0]
    return np.stack(latents), (image * 255).round().astype(np.uint8)


def parts_of(model):
    """What drawing takes besides files of networks."""
    denoiser = model.family.denoiser
    weights = [model.weights[denoiser.name]] if denoiser.added else []
    return {
        "latents": latents_of(model.family.latents, model.weights["vae_encoder"]),
        "added": added_of(denoiser.added, weights),
    }


def models_of(model, graphs):
    """Sessions of float graphs, as a bundle has them."""
    loaded = {name: open_models(files) for name, files in graphs.items()}
    for name, session in loaded.items():
        session.component = name
    texts = tuple(loaded[name] for name in model.family.conditioning.encoders)
    return Models(texts, loaded["unet"], loaded["vae_decoder"], loaded["vae_encoder"], parts_of(model)["added"])


@every_kind
def test_the_reference_is_what_diffusers_own_pipeline_draws(name, inpainting, canvas, tmp_path):
    model, over = inpainting(name), canvas_of(canvas, height=64, width=64)
    wanted, image = theirs(model, over.pixels, over.mask)

    draw_picture(model, model.picture(), tmp_path, canvas=canvas)

    assert model.family.name == name
    assert read_description(model.weights["unet"]).config["in_channels"] == 9
    found = np.load(tmp_path / "trajectory.npy")
    assert all(psnr(a, b) > MIN_PSNR for a, b in zip(wanted, found, strict=True))
    drawn = np.asarray(Image.open(tmp_path / "image.png"))
    assert np.abs(drawn.astype(int) - image).max() <= 1
    assert json.loads((tmp_path / "activations.json").read_text())["module"].startswith(("decoder", "post_quant_conv"))


def test_mask_and_picture_each_change_what_is_drawn(inpainting, canvas, tmp_path):
    model = inpainting("sd1")
    other = tmp_path / "other.png"
    Image.fromarray(np.full((96, 144), 255, np.uint8)).save(other)
    latents = []
    for files in (canvas, [canvas[0], other], [other, canvas[1]]):
        latents.append(np.load(draw_picture(model, model.picture(), tmp_path, canvas=files) / "trajectory.npy")[-1])

    found = [psnr(latents[0], changed) for changed in latents[1:]]
    assert max(found) < MIN_PSNR - 10, found


@exported_kinds
def test_what_is_exported_paints_what_diffusers_paints(name, inpainting, exported, canvas, tmp_path):
    model, over = inpainting(name), canvas_of(canvas, height=64, width=64)
    schedule = load_schedule(model.schedule(tmp_path / "schedule.npz"))
    tokenizer, parts = load_tokenizer(model.embeddings), parts_of(model)
    wanted, picture = theirs(model, over.pixels, over.mask)

    image, latents = model.drawn.draw(exported(name), tokenizer, schedule, model.picture(), canvas=over, **parts)
    drawing = paint(
        over,
        models_of(model, exported(name)),
        tokenizer,
        schedule,
        model.picture(),
        latents=parts["latents"],
        conditioning=model.family.conditioning,
    )

    assert latents.shape == (STEPS, 1, 4, 8, 8)
    assert all(psnr(a, b) > MIN_PSNR for a, b in zip(wanted, latents, strict=True))
    assert np.abs(image.astype(int) - picture).max() <= 1
    assert np.array_equal(drawing.latents, latents) and np.array_equal(drawing.image, image)
    assert len(drawing.seconds["vae_encoder"]) == 1


@exported_kinds
def test_a_part_of_the_steps_begins_with_the_picture_as_in_diffusers(name, inpainting, exported, canvas, tmp_path):
    model, over = inpainting(name), canvas_of(canvas, height=64, width=64)
    schedule = load_schedule(model.schedule(tmp_path / "schedule.npz"))
    wanted, _ = theirs(model, over.pixels, over.mask, strength=0.6)

    drawing = paint(
        over,
        models_of(model, exported(name)),
        load_tokenizer(model.embeddings),
        schedule,
        replace(model.picture(), strength=0.6),
        latents=parts_of(model)["latents"],
        conditioning=model.family.conditioning,
    )

    assert drawing.latents.shape == (2, 1, 4, 8, 8)
    assert all(psnr(a, b) > MIN_PSNR for a, b in zip(wanted, drawing.latents, strict=True))


@pytest.fixture(scope="module")
def recorded(inpainting, tmp_path_factory):
    """A function that gives the folder in which a model's trajectories were recorded, with the pictures that it saw."""
    known = {}

    def folder(name):
        if name not in known:
            model, place = inpainting(name), tmp_path_factory.mktemp(f"{name}-recorded")
            draw_pictures(height=64, width=64, pictures=place / "pictures.npy")
            encoder, _ = model.family.autoencoder
            record(
                model,
                model.schedule(place / "schedule.npz"),
                place / "trajectories.npz",
                prompts=PROMPTS,
                pictures=[place / "pictures.npy"],
                encoder=[model.weights[encoder.name]],
            )
            known[name] = place
        return known[name]

    return folder


@every_kind
def test_calibration_records_what_diffusers_draws_on_its_pictures_with_its_masks(name, inpainting, recorded):
    model, pictures = inpainting(name), np.load(recorded(name) / "pictures.npy")

    with np.load(recorded(name) / "trajectories.npz") as arrays:
        latents, beside = arrays["latents"], arrays["beside"]

    assert beside.shape == (len(PROMPTS), 1, 5, 8, 8)
    for number, prompt in enumerate(PROMPTS):
        mask = draw_mask(number, height=64, width=64)
        wanted, _ = theirs(model, pictures[number], mask, prompt=prompt, seed=SEED + number)
        assert psnr(wanted[-1], latents[number, -1]) > MIN_PSNR
        assert np.array_equal(beside[number, 0, 0], mask[::8, ::8])


def test_samples_hold_the_scaled_latent_then_mask_and_masked_latent_as_they_are(
    inpainting, exported, recorded, tmp_path
):
    model, place = inpainting("sd1"), recorded("sd1")
    calibrate(model.family.denoiser, exported("sd1")["unet"], place, [tmp_path / "unet.tar"])

    chosen = json.loads((tmp_path / "unet.json").read_text())["samples"]
    with tarfile.open(tmp_path / "unet.tar") as archive:
        members = [archive.extractfile(member) for member in archive]
        samples = [np.load(member, allow_pickle=True).item()["sample"] for member in members]
    with np.load(place / "trajectories.npz") as arrays:
        latents, beside = arrays["latents"], arrays["beside"]
    scales = load_schedule(place / "schedule.npz").input_scale
    assert len(samples) == len(chosen) == 8
    for sample, said in zip(samples, chosen, strict=True):
        prompt, step = PROMPTS.index(said["drawing"]), said["step"] - 1
        assert sample.shape == (1, 9, 8, 8) and sample.dtype == np.float32
        assert np.array_equal(sample[:, :4], (latents[prompt, step] * scales[step]).astype(np.float32))
        assert np.array_equal(sample[:, 4:], beside[prompt])


def test_compiled_models_draw_nearly_the_reference_and_the_encoder_has_its_share(
    inpainting, exported, recorded, canvas, tmp_path
):
    """Calibrated samples, the emulator, simulation, attribution and the check of the ranges, all on the row's own canvas."""
    model, graphs, place = inpainting("sd1"), exported("sd1"), recorded("sd1")
    picture = model.picture()
    draw_picture(model, picture, tmp_path, canvas=canvas)
    denoiser = model.family.denoiser
    calibrate(denoiser, graphs["unet"], place, [tmp_path / "unet.tar"])
    compiled = dict(graphs) | {"unet": [emulate(denoiser, graphs["unet"][0], tmp_path / "unet.tar", tmp_path)]}
    models = [path for files in compiled.values() for path in files]
    drawn = {
        "encoder_weights": model.weights["vae_encoder"],
        "schedule": place / "schedule.npz",
        "embeddings": model.embeddings,
        "trajectory": tmp_path / "trajectory.npy",
        "picture": picture,
        "drawn": model.drawn,
        "latents": model.family.latents,
        "canvas": canvas,
    }
    encoder, _ = model.family.autoencoder

    simulate(
        models=models,
        reference=tmp_path / "image.png",
        build=encoder.build,
        image=tmp_path / "simulated.png",
        simulated=tmp_path / "simulated.npy",
        distance=tmp_path / "distance.json",
        **drawn,
    )
    said = attribute(
        model,
        compiled,
        graphs,
        tmp_path,
        picture=picture,
        schedule=place / "schedule.npz",
        reference=tmp_path / "image.png",
        trajectory=tmp_path / "trajectory.npy",
        simulated=tmp_path / "simulated.npy",
        distance=tmp_path / "distance.json",
        canvas=canvas,
    )

    distance = json.loads((tmp_path / "distance.json").read_text())
    quantised = said["quantised"]
    assert 25 < distance["latent_psnr_db"] < MIN_PSNR - 20
    assert quantised["none"]["latent_psnr_db"] > MIN_PSNR
    assert quantised["vae_encoder"]["latent_psnr_db"] > MIN_PSNR  # it is float here
    assert quantised["unet"]["latent_psnr_db"] == distance["latent_psnr_db"]


def test_a_drawing_that_was_calibrated_with_leaves_no_range(inpainting, exported, recorded, tmp_path):
    """The first calibration prompt on its own picture, with its mask: only rounding lies between reference and recording."""
    model, graphs, place = inpainting("sd1"), exported("sd1"), recorded("sd1")
    files = [tmp_path / "image.png", tmp_path / "mask.png"]
    Image.fromarray(np.load(place / "pictures.npy")[0]).save(files[0])
    Image.fromarray(draw_mask(0, height=64, width=64).astype(np.uint8) * 255).save(files[1])
    (drawn := tmp_path / "drawn").mkdir()
    draw_picture(model, model.picture(prompt=PROMPTS[0]), drawn, canvas=files)
    everything = len(np.load(place / "trajectories.npz")["module_low"])
    record = calibrate(model.family.denoiser, graphs["unet"], place, [tmp_path / "unet.tar"], samples=everything)

    def largest(canvas):
        said = ranges_hold(
            model,
            graphs["text_encoder"],
            place,
            record,
            trajectory=drawn / "trajectory.npy",
            picture=model.picture(prompt=PROMPTS[0]),
            prompts=PROMPTS,
            canvas=canvas,
        )
        return max(said["chosen"]["largest_excess"].values(), default=0)

    assert largest(files) < 1e-3
    Image.fromarray(255 - np.load(place / "pictures.npy")[0]).save(files[0])
    Image.fromarray(draw_mask(1, height=64, width=64).astype(np.uint8) * 255).save(files[1])
    assert largest(files) > 1e-3


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (512, 320)])
def test_masks_are_of_every_kind_never_empty_and_always_the_same(height, width):
    masks = [draw_mask(number, height=height, width=width) for number in range(4 * len(KINDS))]

    assert all(mask.shape == (height, width) and mask.dtype == bool and mask.any() for mask in masks)
    assert all(masks[number].all() == (number % len(KINDS) == 0) for number in range(len(masks)))
    assert len({mask.tobytes() for mask in masks}) > 0.8 * len(masks) - 4
    shares = [mask.mean() for mask in masks]
    assert min(shares) < 0.07 and sum(0.1 < share < 0.9 for share in shares) > len(masks) // 2
    assert all(np.array_equal(mask, draw_mask(n, height=height, width=width)) for n, mask in enumerate(masks))


def test_white_is_painted_and_what_is_transparent_is_not(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    mask = np.zeros((64, 64, 4), np.uint8)
    mask[:, :16] = 255
    mask[:, 16:32] = (255, 255, 255, 0)
    mask[:, 32:48] = (127, 127, 127, 255)
    mask[:, 48:] = (128, 128, 128, 255)
    Image.fromarray(mask).save(tmp_path / "mask.png")

    found = read_canvas(tmp_path / "image.png", tmp_path / "mask.png", height=64, width=64)

    assert found.mask[:, :16].all() and not found.mask[:, 16:48].any() and found.mask[:, 48:].all()


def test_a_mask_of_another_size_or_without_white_is_refused(canvas, tmp_path):
    small, black = tmp_path / "small.png", tmp_path / "black.png"
    Image.new("L", (64, 64), 255).save(small)
    Image.new("L", (144, 96)).save(black)

    with pytest.raises(BundleError, match=r"small\.png: 64x64 pixels, but .*image\.png has 144x96"):
        read_canvas(canvas[0], small, height=64, width=64)
    with pytest.raises(BundleError, match=r"black\.png: no white pixel"):
        read_canvas(canvas[0], black, height=64, width=64)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_file_for_inpainting_can_be_baked_and_is_called_so(inpainting):
    said = inspect_checkpoint(inpainting("sd1").checkpoint)

    assert said["bakeable"] is True
    assert said["variant"].endswith("for inpainting")


@pytest.mark.parametrize("channels", [4, 8, 9])
@pytest.mark.parametrize("given", [(), ("image",), ("image", "mask")], ids=["nothing", "image", "mask"])
def test_a_row_gives_what_its_model_draws_on(channels, given):
    config = {"in_channels": channels, "out_channels": 4}
    wanted = {4: (), 8: ("image",), 9: ("image", "mask")}[channels]
    if given == wanted:
        check_canvas("unet", config, given=given)
        return

    found = {(): "no picture and no mask", ("image",): "a picture and no mask"}.get(given, "a picture and a mask")
    kind = {4: "text to image", 8: r"instructions \(InstructPix2Pix\)", 9: "inpainting"}[channels]
    remedy = {
        4: "Empty the columns image and mask",
        8: "Fill in the column image",
        9: "Fill in the columns image and mask",
    }
    with pytest.raises(
        CanvasError,
        match=f"unet: takes {channels} channels: it is for {kind}, but the row has {found}. {remedy[channels]}",
    ):
        check_canvas("unet", config, given=given)


def test_a_mask_without_a_picture_is_refused_in_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(TableError, match="column image: empty, but column mask is not; wanted both"):
        row_of(mask="sofa.png")


def test_jobs_refuse_it_too_where_a_file_was_fetched(inpainting, model_of, canvas, tmp_path):
    with pytest.raises(CanvasError, match="the row has no picture and no mask"):
        draw_picture(inpainting("sd1"), inpainting("sd1").picture(), tmp_path)
    with pytest.raises(CanvasError, match="it is for text to image, but the row has a picture and a mask"):
        draw_picture(model_of("sd1"), model_of("sd1").picture(), tmp_path, canvas=canvas)
    schedule = inpainting("sd1").schedule(tmp_path / "schedule.npz")
    with pytest.raises(CanvasError, match="the row has no picture and no mask"):
        record(inpainting("sd1"), schedule, tmp_path / "trajectories.npz", prompts=PROMPTS)


def test_text_to_image_of_such_models_is_refused(inpainting, exported, tmp_path):
    model = inpainting("sd1")
    schedule = load_schedule(model.schedule(tmp_path / "schedule.npz"))

    with pytest.raises(BundleError, match="9"):
        draw(
            models_of(model, exported("sd1")),
            load_tokenizer(model.embeddings),
            schedule,
            model.picture(),
            latents=parts_of(model)["latents"],
        )


@pytest.mark.parametrize("layout", [name for name, one in LAYOUTS.items() if one.models])
def test_published_programs_take_no_mask(layout):
    roles = {role: role for role in ("text", "denoiser", "encoder", "decoder")}
    settings = LAYOUTS[layout].demands | {"model": "tiny"}

    LAYOUTS[layout].check(layout, settings, roles)
    with pytest.raises(LayoutError, match="a UNet that draws on a picture"):
        LAYOUTS[layout].check(layout, settings, roles, drawn_on=True)


def test_a_file_that_is_no_picture_is_named(canvas, tmp_path):
    (text := tmp_path / "text.png").write_text("no picture")
    (half := tmp_path / "half.png").write_bytes(canvas[0].read_bytes()[:900])

    assert canvas_of([], height=64, width=64) is None
    for files in ([text, canvas[1]], [canvas[0], half], [Path("nowhere.png"), canvas[1]]):
        with pytest.raises(
            BundleError, match=r"(text|half|nowhere)\.png: (no picture that can be read .*|no such file\.) Give a PNG"
        ):
            canvas_of(files, height=64, width=64)
