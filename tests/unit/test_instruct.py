"""UNets for instructions (InstructPix2Pix) are imported, exported, calibrated and drawn with as diffusers' own pipelines draw."""

import json
import re
import tarfile

import numpy as np
import onnx
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline
from PIL import Image

from axbake.bundles.writing import write_bundle
from axbake.calibration.counting import count_branches
from axbake.calibration.pictures import draw_pictures
from axbake.distance import psnr
from axbake.drawing.canvas import canvas_of
from axbake.drawing.prompts import load_tokenizer
from axbake.drawing.simulation import simulate
from axbake.inspect import inspect_checkpoint
from axbake.runtime import command
from axbake.runtime.bundle import read_bundle
from axbake.runtime.canvas import paint
from axbake.runtime.errors import BundleError
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import EMULATOR
from axbake.table import TableError
from axbake.weights.files import read_description
from tests import tiny, tiny_xl
from tests.unit.conftest import describe, import_tiny, row_of
from tests.unit.jobs import attribute, calibrate, draw_picture, emulate, ranges_hold, record
from tests.unit.test_inpainting import GUIDANCE, MIN_PSNR, PROMPTS, SEED, STEPS, models_of, parts_of
from tests.unit.test_sdxl import pipeline_of as xl_pipeline_of

IMAGE_GUIDANCE = 1.7
MADE = {"sd1": tiny.instruct_sd1, "sd2": tiny.instruct_sd2, "sdxl": lambda: tiny_xl.sdxl(in_channels=8)}


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    """A function that gives the tiny model of a family, imported once."""
    known = {}

    def imported(name):
        if name not in known:
            known[name] = import_tiny(MADE[name](), tmp_path_factory.mktemp(name))
        return known[name]

    return imported


@pytest.fixture(scope="module")
def exported(instruct, graphs_of):
    """All graphs of that of Stable Diffusion 1.x, by component."""
    return graphs_of(instruct("sd1"))


@pytest.fixture(scope="module")
def canvas(tmp_path_factory):
    """File of a picture that is larger than what is drawn, in a list."""
    path = tmp_path_factory.mktemp("canvas") / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((144, 96), Image.Resampling.BICUBIC).save(path)
    return [path]


@pytest.fixture(scope="module")
def recorded(instruct, tmp_path_factory):
    """A function that gives the folder in which a model's trajectories were recorded, with the pictures that it saw."""
    known = {}

    def folder(name):
        if name not in known:
            model, place = instruct(name), tmp_path_factory.mktemp(f"{name}-recorded")
            draw_pictures(height=64, width=64, pictures=place / "pictures.npy")
            encoder, _ = model.family.autoencoder
            record(
                model,
                model.schedule(place / "schedule.npz"),
                place / "trajectories.npz",
                prompts=PROMPTS,
                image_guidance_scale=IMAGE_GUIDANCE,
                pictures=[place / "pictures.npy"],
                encoder=[model.weights[encoder.name]],
            )
            known[name] = place
        return known[name]

    return folder


def picture_of(model, **changed):
    """A picture of *model* with an image guidance scale."""
    return model.picture(image_guidance_scale=IMAGE_GUIDANCE, **changed)


def theirs(model, pixels, *, prompt="a rocket", negative_prompt="", guidance_scale=GUIDANCE, seed=SEED):
    """Latents after each step that diffusers' own pipeline of the original networks draws, and its picture."""
    latents = []
    how = {
        "negative_prompt": negative_prompt,
        "image": Image.fromarray(pixels),
        "num_inference_steps": STEPS,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": IMAGE_GUIDANCE,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
    }

    def keep(_, step, timestep, tensors):
        latents.append(tensors["latents"].numpy().copy())
        return tensors

    if model.family.name == "sdxl":
        pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pipe(xl_pipeline_of(model.networks, "euler"))
        how |= {"height": 64, "width": 64, "callback": lambda *told: keep(None, *told[:2], {"latents": told[2]})}
    else:
        pipeline = StableDiffusionInstructPix2PixPipeline.from_pipe(model.pipeline("euler"))
        how |= {"callback_on_step_end": keep}
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(prompt, **how).images[0]
    return np.stack(latents), (image * 255).round().astype(np.uint8)


@pytest.mark.parametrize(("name", "guidance_scale"), [*((name, GUIDANCE) for name in MADE), ("sd1", 1)])
def test_the_reference_is_what_diffusers_own_pipeline_draws(name, guidance_scale, instruct, canvas, tmp_path):
    model, over = instruct(name), canvas_of(canvas, height=64, width=64)
    wanted, image = theirs(model, over.pixels, guidance_scale=guidance_scale, negative_prompt="blurry")

    picture = picture_of(model, guidance_scale=guidance_scale, negative_prompt="blurry")
    draw_picture(model, picture, tmp_path, canvas=canvas)

    assert model.family.name == name
    assert read_description(model.weights["unet"]).config["in_channels"] == 8
    found = np.load(tmp_path / "trajectory.npy")
    assert [psnr(a, b) > MIN_PSNR for a, b in zip(wanted, found, strict=True)] == [True] * STEPS
    drawn = Image.open(tmp_path / "image.png")
    assert np.abs(np.asarray(drawn).astype(int) - image).max() <= 1
    assert "Image CFG scale: 1.7, Seed" in drawn.text["parameters"]
    assert json.loads((tmp_path / "settings.json").read_text())["image_guidance_scale"] == IMAGE_GUIDANCE


def test_what_is_exported_draws_what_diffusers_draws(instruct, exported, canvas, tmp_path):
    model, over = instruct("sd1"), canvas_of(canvas, height=64, width=64)
    schedule = load_schedule(model.schedule(tmp_path / "schedule.npz"))
    tokenizer, parts, models = load_tokenizer(model.embeddings), parts_of(model), models_of(model, exported)

    for guidance_scale in (GUIDANCE, 1):
        picture = picture_of(model, guidance_scale=guidance_scale, negative_prompt="blurry")
        wanted, theirs_drawn = theirs(
            model, over.pixels, guidance_scale=guidance_scale, negative_prompt=picture.negative_prompt
        )
        image, latents = model.drawn.draw(exported, tokenizer, schedule, picture, canvas=over, **parts)
        of = {"latents": parts["latents"], "conditioning": model.family.conditioning}
        drawing = paint(over, models, tokenizer, schedule, picture, **of)

        found = [psnr(a, b) for a, b in zip(wanted, latents, strict=True)]
        assert min(found) > MIN_PSNR, found
        assert np.abs(image.astype(int) - theirs_drawn).max() <= 1
        assert np.array_equal(drawing.latents, latents) and np.array_equal(drawing.image, image)
        branches = count_branches(guidance_scale, IMAGE_GUIDANCE)
        assert len(drawing.seconds["unet"]) == branches * STEPS
        assert len(drawing.seconds["vae_encoder"]) == 1


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_calibration_records_what_diffusers_draws_on_its_pictures(name, instruct, recorded):
    model, pictures = instruct(name), np.load(recorded(name) / "pictures.npy")

    with np.load(recorded(name) / "trajectories.npz") as arrays:
        latents, beside = arrays["latents"], arrays["beside"]

    assert beside.shape == (len(PROMPTS), 3, 4, 8, 8)
    assert np.array_equal(beside[:, 0], beside[:, 1]) and not beside[:, 2].any() and beside[:, 0].any()
    for number, prompt in enumerate(PROMPTS):
        wanted, _ = theirs(model, pictures[number], prompt=prompt, seed=SEED + number)
        assert psnr(wanted[-1], latents[number, -1]) > MIN_PSNR


@pytest.mark.parametrize("selection", ["coverage", "stratified"])
def test_samples_are_of_all_three_branches(selection, exported, recorded, instruct, tmp_path):
    model, place = instruct("sd1"), recorded("sd1")
    archives = [tmp_path / "unet.tar"]
    calibrate(model.family.denoiser, exported["unet"], place, archives, samples=12, selection=selection)

    said = json.loads((tmp_path / "unet.json").read_text())
    assert said["recorded"] == len(PROMPTS) * STEPS * 3
    with tarfile.open(tmp_path / "unet.tar") as archive:
        members = [archive.extractfile(member) for member in archive]
        samples = [np.load(member, allow_pickle=True).item()["sample"] for member in members]
    with np.load(place / "trajectories.npz") as arrays:
        latents, beside = arrays["latents"], arrays["beside"]
    scales = load_schedule(place / "schedule.npz").input_scale
    rows = {"prompt": 0, "negative prompt": 1, "negative prompt without the picture": 2}
    assert {one["text"] for one in said["samples"]} == set(rows)
    for sample, one in zip(samples, said["samples"], strict=True):
        prompt, step = PROMPTS.index(one["drawing"]), one["step"] - 1
        assert sample.shape == (1, 8, 8, 8) and sample.dtype == np.float32
        assert np.array_equal(sample[:, :4], (latents[prompt, step] * scales[step]).astype(np.float32))
        assert np.array_equal(sample[0, 4:], beside[prompt, rows[one["text"]]])


def test_compiled_models_draw_nearly_the_reference_and_the_ranges_hold(instruct, exported, recorded, canvas, tmp_path):
    """Calibrated samples, the emulator, simulation, attribution and the check of the ranges, all on the row's own picture."""
    model, graphs, place, picture = instruct("sd1"), exported, recorded("sd1"), picture_of(instruct("sd1"))
    draw_picture(model, picture, tmp_path, canvas=canvas)
    denoiser, (encoder, _) = model.family.denoiser, model.family.autoencoder
    record = calibrate(denoiser, graphs["unet"], place, [tmp_path / "unet.tar"], samples=12)
    (built := tmp_path / "built").mkdir()
    compiled = dict(graphs) | {"unet": [emulate(denoiser, graphs["unet"][0], tmp_path / "unet.tar", built)]}
    models = [path for files in compiled.values() for path in files]
    of = {
        "schedule": place / "schedule.npz",
        "embeddings": model.embeddings,
        "trajectory": tmp_path / "trajectory.npy",
        "picture": picture,
        "latents": model.family.latents,
        "canvas": canvas,
    }
    drawn = of | {"encoder_weights": model.weights["vae_encoder"], "drawn": model.drawn}

    simulate(
        models=models,
        reference=tmp_path / "image.png",
        build=encoder.build,
        image=tmp_path / "simulated.png",
        simulated=tmp_path / "simulated.npy",
        distance=tmp_path / "distance.json",
        **drawn,
    )
    attribute(
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
    held_out = ranges_hold(
        model,
        graphs["text_encoder"],
        place,
        record,
        trajectory=tmp_path / "trajectory.npy",
        picture=picture,
        prompts=PROMPTS,
        canvas=canvas,
    )

    distance, attribution = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("distance", "attribution")
    )
    assert 25 < distance["latent_psnr_db"] < MIN_PSNR - 20
    assert attribution["quantised"]["none"]["latent_psnr_db"] > MIN_PSNR
    assert attribution["quantised"]["unet"]["latent_psnr_db"] == distance["latent_psnr_db"]
    assert held_out["texts"] == ["prompt", "negative prompt", "negative prompt without the picture"]
    assert held_out["chosen"]["mean_excess_of_the_clipped"] < 1


# The bundle -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(instruct, exported, canvas, tmp_path_factory):
    """A bundle of float graphs, which say that the emulator made them."""
    model, place = instruct("sd1"), tmp_path_factory.mktemp("bundle")
    models, records = [], []
    for name, (graph,) in exported.items():
        whole = onnx.load(graph)
        whole.producer_name = EMULATOR
        onnx.save(whole, place / f"{name}.axmodel")
        (place / f"{name}.json").write_text(json.dumps({"toolchain": "emulator", "version": "1", "emulated": True}))
        models.append(place / f"{name}.axmodel")
        records.append(place / f"{name}.json")
    describe(model.checkpoint, place / "checkpoint.json", records=[])
    (private := place / "made" / ".manifest").mkdir(parents=True)
    write_bundle(
        models=models,
        records=records,
        checkpoint=place / "checkpoint.json",
        denoiser=model.weights["unet"],
        schedule=model.schedule(place / "schedule.npz"),
        embeddings=model.embeddings,
        layout="axbake",
        program="axera",
        source="",
        picture=picture_of(model),
        components=model.family.components,
        latents=model.family.latents,
        conditioning=model.family.conditioning,
        manifest=private / "manifest.json",
        canvas=canvas,
    )
    (private / "manifest.json").replace(place / "made" / "manifest.json")
    private.rmdir()
    return place / "made"


def test_a_bundle_draws_on_its_own_picture_and_on_others(bundle, instruct, canvas, tmp_path):
    Image.new("RGB", (80, 64), "red").save(tmp_path / "red.png")
    _, image = theirs(instruct("sd1"), canvas_of(canvas, height=64, width=64).pixels)

    def run(name, *options):
        assert command.run("txt2img", bundle, ["--output", str(tmp_path / name), *options]) == 0
        return Image.open(tmp_path / name)

    own, other = run("own.png"), run("other.png", "--image", str(tmp_path / "red.png"))
    closer = run("closer.png", "--image-guidance-scale", "3")

    assert read_bundle(bundle).canvas == ("canvas/image.png",)
    assert np.abs(np.asarray(own).astype(int) - image).max() <= 1
    assert "Image CFG scale: 1.7" in own.text["parameters"] and "Image CFG scale: 3" in closer.text["parameters"]
    assert len({np.asarray(one).tobytes() for one in (own, other, closer)}) == 3
    assert "--image photo.jpg --prompt" in (bundle / "README.md").read_text()


def test_its_programs_refuse_what_such_models_do_not_take(bundle, canvas, tmp_path, caplog, capsys):
    assert command.run("img2img", bundle, [str(canvas[0])]) == 1
    assert "draw on a picture in their own way. Use txt2img.py with --image." in caplog.text
    for options in (["--image-guidance-scale", "0.9"], ["--mask", str(canvas[0])]):
        with pytest.raises(SystemExit):
            command.run("txt2img", bundle, options)
    assert "guidance scales of 1 or more" in capsys.readouterr().err


def test_a_manifest_with_a_scale_and_no_picture_is_refused(bundle, tmp_path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["canvas"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="wanted a picture and a mask, or, with an image guidance scale, a picture"):
        read_bundle(tmp_path)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_file_for_instructions_can_be_baked_and_is_called_so(instruct):
    said = inspect_checkpoint(instruct("sd1").checkpoint)

    assert said["bakeable"] is True
    assert said["variant"].endswith("for instructions (InstructPix2Pix)")


@pytest.mark.parametrize(("mark", "kind"), [("edm_vpred.sigma_max", "CosXL"), ("encoder_hid_proj.weight", "Kolors")])
def test_others_of_eight_channels_stay_refused(mark, kind, tmp_path):
    extra = {mark: torch.zeros(1)} if kind == "CosXL" else {f"model.diffusion_model.{mark}": torch.zeros(1, 1)}
    said = inspect_checkpoint(tiny_xl.save(tiny_xl.sdxl(in_channels=8), tmp_path / "model.safetensors", extra=extra))

    assert said["bakeable"] is False
    assert said["kind"] == f"a {kind} checkpoint"


def test_the_scale_is_that_of_diffusers_unless_the_row_says_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert row_of(image="room.png")["image_guidance_scale"] == 1.5
    assert row_of(image="room.png", image_guidance_scale="2.5")["image_guidance_scale"] == 2.5
    assert row_of()["image_guidance_scale"] is None
    assert row_of(image="room.png", mask="sofa.png")["image_guidance_scale"] is None


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (
            {"image_guidance_scale": "2.5"},
            "2.5, wanted an empty cell: only models for instructions (InstructPix2Pix) take it",
        ),
        ({"image_guidance_scale": "1.5", "image": "room.png", "mask": "sofa.png"}, "1.5, wanted an empty cell"),
        ({"image_guidance_scale": "0.9", "image": "room.png"}, "0.9 is less than the minimum of 1"),
        ({"image_guidance_scale": "much", "image": "room.png"}, "'much'"),
    ],
)
def test_a_scale_that_means_nothing_is_refused(cells, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(TableError, match=rf"column image_guidance_scale: .*{re.escape(text)}"):
        row_of(**cells)


def test_a_step_runs_the_denoiser_three_times_if_the_picture_guides_too():
    assert [count_branches(scale, None) for scale in (1, 7)] == [1, 2]
    assert [count_branches(scale, 1.5) for scale in (1, 7)] == [1, 3]
