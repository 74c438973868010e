"""Every layout is loaded as its program loads it: files, tensor names, shapes, types; and what is drawn so is what axbake draws.

The programs' loops are written after github AXERA-TECH/sd1.5-lcm.axera (`python/launcher.py`), yuyun2000/sd15-to-ax8850-deploy
(`onnx_infer.py`) and Mojo24x7/SD1.5_AXM1-AX8850_Euler (`scripts/txt2img_axengine_euler.py`), on a stand-in of pyaxengine that is
as strict as the original. The models are emulated.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from transformers import CLIPTokenizer

from axbake.bundles.layouts import LAYOUTS, LayoutError
from axbake.bundles.writing import write_bundle
from axbake.distance import psnr
from axbake.drawing.prompts import CLIP
from axbake.drawing.schedule import derive_schedule
from axbake.families.sd1 import FAMILY
from axbake.graphs.programs import PROGRAMS
from axbake.runtime.sampler import load_schedule
from axbake.runtime.session import open_model
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.txt2img import Models, draw
from axbake.runtime.values import Latents, Picture
from tests.workflow.project import COMPONENTS, ROW

ROW_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"
NUMBERS = ("height", "width", "steps", "guidance_scale", "seed", "prompt_chunks", "clip_skip")
SETTINGS = {name: ROW[name] for name in ("model", "prompt", "negative_prompt", "scheduler")}
SETTINGS |= {name: int(ROW[name]) for name in NUMBERS}
ROWS = {
    "axbake": {},
    "euler": {},
    "axera": {"scheduler": "lcm", "steps": 4, "guidance_scale": 1},
    "m5stack": {"program": "m5stack", "scheduler": "dpmpp_2m_karras", "steps": 20, "guidance_scale": 7},
}
SCALE = 0.18215  # hard-coded in launcher.py and onnx_infer.py
MIN_PSNR = 50  # dB, of the last latent


@pytest.fixture(autouse=True)
def axengine(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "standins")
    import axengine

    yield axengine
    del sys.modules["axengine"]


@pytest.fixture(scope="module")
def results(baked, tmp_path_factory) -> Path:
    """The baked model's results, and its VAE decoder under the name that an export for m5stack gives its input."""
    directory = tmp_path_factory.mktemp("results")
    shutil.copytree(baked.directory / "results" / "tiny", directory, dirs_exist_ok=True)
    model = onnx.load(directory / "vae_decoder.axmodel")
    for node in model.graph.node:
        node.input[:] = ["latent" if name == "x" else name for name in node.input]
    model.graph.input[0].name = "latent"
    (directory / "m5stack").mkdir()
    onnx.save(model, directory / "m5stack" / "vae_decoder.axmodel")
    return directory


@pytest.fixture
def lay_out(results, tmp_path):
    """A function that lays out the baked model, as if its row were another, and gives the bundle's directory."""

    def bundle(layout: str, **changed) -> Path:
        settings = SETTINGS | ROWS[layout] | changed
        program = settings.pop("program", "axera")
        private = tmp_path / layout / ".manifest"
        private.mkdir(parents=True)
        schedule, weights = tmp_path / "schedule.npz", results / "weights" / "unet.safetensors"
        how = {name: settings[name] for name in ("scheduler", "steps", "guidance_scale")}
        derive_schedule(**how, rows=FAMILY.denoiser.rows, denoiser=weights, schedule=schedule)
        models = {component: results / f"{component}.axmodel" for component in COMPONENTS}
        if program == "m5stack":
            models["vae_decoder"] = results / "m5stack" / "vae_decoder.axmodel"
        write_bundle(
            models=list(models.values()),
            records=[results / "build" / f"{component}.json" for component in COMPONENTS],
            checkpoint=results / "checkpoint.json",
            denoiser=weights,
            schedule=schedule,
            embeddings=results / "embeddings.json",
            layout=layout,
            program=program,
            source="",
            picture=Picture(**settings),
            components=FAMILY.components,
            latents=FAMILY.latents,
            conditioning=FAMILY.conditioning,
            manifest=private / "manifest.json",
        )
        (private / "manifest.json").replace(tmp_path / layout / "manifest.json")
        private.rmdir()
        return tmp_path / layout

    return bundle


@pytest.fixture
def any_size(monkeypatch):
    """The M5Stack layout without its picture size; the tiny model is drawn at 64 × 64 pixels."""
    layout = LAYOUTS["m5stack"]
    demands = {name: value for name, value in layout.demands.items() if name not in ("height", "width")}
    monkeypatch.setitem(LAYOUTS, "m5stack", replace(layout, demands=demands))


def drawn_by_axbake(bundle, schedule):
    """The latent that axbake's own runtime draws with the bundle's models and settings."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    text_encoder, unet, vae_decoder = (
        open_model(bundle / manifest["models"][component]["files"][0], threads=1)
        for component in ("text_encoder", "unet", "vae_decoder")
    )
    told = {name: manifest["settings"][name] for name in SETTINGS if name != "model"}
    models, latents = Models((text_encoder,), unet, vae_decoder), Latents(**manifest["latents"])
    picture = Picture(model=manifest["model"], **told)
    return draw(models, ClipTokenizer(CLIP), load_schedule(schedule), picture, latents=latents).latents[-1]


def ids(folder, text):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids


def test_launcher_draws_what_axbake_draws(lay_out, axengine, tmp_path):
    bundle = lay_out("axera")
    models = bundle / "models"
    tokens = ids(models / "tokenizer", SETTINGS["prompt"]).astype(np.int32)
    text_encoder = axengine.InferenceSession(str(models / "text_encoder" / "sd15_text_encoder_sim.axmodel"))
    text = text_encoder.run(None, {"input_ids": tokens})[0]
    unet = axengine.InferenceSession(str(models / "unet.axmodel"))
    rows = np.load(models / "time_input_txt2img.npy")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    alphas = torch.cumprod(1.0 - betas, dim=0).numpy()
    generator = torch.manual_seed(SETTINGS["seed"])
    latent = torch.randn((1, 4, 8, 8), generator=generator).numpy()
    timesteps = [999, 759, 499, 259]
    for i, timestep in enumerate(timesteps):
        feed = {"sample": latent, ROW_INPUT: np.expand_dims(rows[i], axis=0), "encoder_hidden_states": text}
        output = unet.run(None, feed)[0]
        alpha, scaled = alphas[timestep], timestep * 10
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        latent_now = out * (latent - (1 - alpha) ** 0.5 * output) / alpha**0.5 + skip * latent
        if i + 1 < len(timesteps):
            before = alphas[timesteps[i + 1]]
            noise = torch.randn(output.shape, generator=generator).numpy()
            latent_now = before**0.5 * latent_now + (1 - before) ** 0.5 * noise
        latent = latent_now.astype(np.float32)
    decoder = axengine.InferenceSession(str(models / "vae_decoder.axmodel"))
    picture = decoder.run(None, {decoder.get_inputs()[0].name: (latent / SCALE).astype(np.float32)})[0]

    config = json.loads((bundle / "config.json").read_text())  # of `axllm serve`
    (variant,) = config["image_variants"]
    assert (variant["size"], variant["supports_img2img"]) == ("64x64", True)
    assert variant["id"] == f"{config['model_name']}-64x64" and (bundle / variant["dir"]) == models
    assert rows.shape == (4, 128) and rows.dtype == np.float32
    assert psnr(drawn_by_axbake(bundle, tmp_path / "schedule.npz"), latent) > MIN_PSNR
    assert picture.shape == (1, 3, 64, 64)


def test_launcher_finds_what_image_to_image_takes(lay_out, axengine, tmp_path):
    models = lay_out("axera") / "models"
    encoder = axengine.InferenceSession(str(models / "vae_encoder.axmodel"))

    assert (encoder.get_inputs()[0].name, encoder.get_outputs()[0].name) == ("image_sample", "latent_sample")
    assert encoder.run(None, {"image_sample": np.zeros((1, 3, 64, 64), np.float32)})[0].shape == (1, 8, 8, 8)
    both = [np.load(models / f"time_input_{kind}.npy") for kind in ("txt2img", "img2img")]
    assert both[1].shape == (4, 128) and both[1].dtype == np.float32
    assert (both[1][:2] == both[0][2:]).all()  # of timesteps 499 and 259
    assert load_schedule(tmp_path / "schedule.npz").timesteps.tolist() == [999, 759, 499, 259]


def test_the_m5stack_scripts_draw_what_axbake_draws(lay_out, axengine, any_size, tmp_path):
    bundle = lay_out("m5stack")
    models = bundle / "models"
    text_encoder = axengine.InferenceSession(str(models / "text_encoder" / "sd15_text_encoder_sim.axmodel"))
    prompts = [SETTINGS["negative_prompt"], SETTINGS["prompt"]]
    texts = [
        text_encoder.run(None, {"input_ids": ids(models / "tokenizer", text).astype(np.int32)})[0] for text in prompts
    ]
    rows = np.load(models / "time_input_dpmpp_20steps.npy")
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_karras_sigmas=True,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(20)
    unet = axengine.InferenceSession(str(models / "unet.axmodel"))
    latent = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(SETTINGS["seed"]))
    for row, timestep in zip(rows, scheduler.timesteps, strict=True):
        negative, positive = (
            unet.run(None, {"sample": latent.numpy(), "encoder_hidden_states": text, ROW_INPUT: row[None]})[0]
            for text in texts
        )
        output = torch.from_numpy(negative + 7 * (positive - negative))
        latent = scheduler.step(model_output=output, timestep=timestep, sample=latent).prev_sample
    decoder = axengine.InferenceSession(str(models / "vae_decoder.axmodel"))
    picture = decoder.run(None, {"latent": latent.numpy() / np.float32(SCALE)})[0]

    assert rows.shape == (20, 128) and rows.dtype == np.float32
    assert psnr(drawn_by_axbake(bundle, tmp_path / "schedule.npz"), latent.numpy()) > MIN_PSNR
    assert [node.name for node in decoder.get_outputs()] == ["sample"] and picture.shape == (1, 3, 64, 64)


def pick_name(nodes, keywords):
    """As Mojo's scripts do: the first input with any of *keywords* in its name."""
    return next(node.name for node in nodes if any(keyword in node.name.lower() for keyword in keywords))


@pytest.fixture(scope="module")
def euler(baked, tmp_path_factory) -> Path:
    """Results of the same model, whose UNet takes the timestep."""
    directory = tmp_path_factory.mktemp("euler")
    project = baked.copy(directory)
    project.write_rows(ROW | {"program": "euler"})
    project.bake("results/tiny/bundle/euler/manifest.json")
    return project.directory / "results" / "tiny"


def test_a_unet_that_takes_the_timestep_is_its_network(euler):
    inputs = open_model(euler / "unet.axmodel").inputs

    assert inputs["t"] == ((1,), np.dtype(np.int32))
    assert json.loads((euler / "parity" / "unet.json").read_text())["psnr_db"] > 60


def test_the_euler_script_draws_what_axbake_draws(euler, axengine):
    bundle = euler / "bundle" / "euler"
    scheduler = EulerDiscreteScheduler.from_pretrained(bundle / "support" / "scheduler")
    scheduler.set_timesteps(4)
    files = {"te": "sd15_text_encoder_sim", "unet": "unet", "vae": "vae_decoder"}
    te, unet, vae = (
        axengine.InferenceSession(
            path_or_bytes=str(bundle / "axmodels" / f"{name}.axmodel"), providers=["AXCLRTExecutionProvider"]
        )
        for name in files.values()
    )
    texts = [
        te.run(["last_hidden_state"], {pick_name(te.get_inputs(), ["input_ids", "ids"]): tokens.astype(np.int32)})[0]
        for tokens in (ids(bundle / "support" / "tokenizer", SETTINGS[name]) for name in ("negative_prompt", "prompt"))
    ]
    keywords = [["sample", "latent"], ["timestep", "time", "t"], ["encoder_hidden_states", "hidden", "context", "cond"]]
    names = [pick_name(unet.get_inputs(), some) for some in keywords]
    latent = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(SETTINGS["seed"]))
    latent = latent * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latent, timestep).numpy()
        time = np.array([int(timestep.item())], dtype=np.int32)
        unconditioned, conditioned = (
            unet.run(output_names=None, input_feed=dict(zip(names, (scaled, time, text), strict=True)))[0]
            for text in texts
        )
        output = torch.from_numpy(unconditioned + 5.0 * (conditioned - unconditioned))
        latent = scheduler.step(output, timestep, latent).prev_sample
    scale = json.loads((bundle / "support" / "vae" / "config.json").read_text())["scaling_factor"]
    name = pick_name(vae.get_inputs(), ["x", "latent"])
    picture = vae.run(output_names=[vae.get_outputs()[0].name], input_feed={name: (latent / scale).numpy()})[0]

    assert names == ["sample", "t", "encoder_hidden_states"]
    assert psnr(drawn_by_axbake(bundle, euler / "schedule.npz"), latent.numpy()) > MIN_PSNR
    assert picture.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("layout", ["axbake", "axera", "m5stack"])
def test_the_manifest_says_what_the_models_take(lay_out, any_size, layout):
    bundle = lay_out(layout)
    manifest = json.loads((bundle / "manifest.json").read_text())

    taken = LAYOUTS[layout].models  # by role; of axbake's own, whatever there is
    assert {name for name in COMPONENTS if not taken or FAMILY.component(name).role in taken} == set(manifest["models"])
    for name, model in manifest["models"].items():
        (file,) = model["files"]
        assert file == taken.get(model["role"], f"{name}.axmodel")
        session = open_model(bundle / file)
        found = {name: list(shape) for name, (shape, _) in session.inputs.items()}
        assert found == {name: tensor["shape"] for name, tensor in model["inputs"].items()}
        assert list(session.outputs) == model["outputs"]
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == there - {"manifest.json"}


def test_a_row_that_a_layout_cannot_take_is_refused_with_all_that_is_missed(lay_out):
    with pytest.raises(
        LayoutError, match=r"cannot make the layout axera; program: 'euler', wanted 'axera'; steps: 20, wanted 4"
    ):
        lay_out("axera", program="euler", steps=20)
    with pytest.raises(
        LayoutError, match=r"cannot make the layout m5stack; height: 64, wanted 480; width: 64, wanted 320\."
    ):
        lay_out("m5stack")
    with pytest.raises(LayoutError, match=r"cannot make the layout euler; program: 'axera', wanted 'euler'\."):
        lay_out("euler")


def test_every_program_has_a_layout():
    assert set(LAYOUTS) == {*PROGRAMS, "axbake"}
