"""The NumPy loop draws what `StableDiffusionPipeline` draws, with the same tiny models as ONNX graphs."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from axbake.drawing.schedule import SCHEDULERS, build_scheduler, derive_schedule
from axbake.networks.sampling import Sampling
from axbake.networks.unet import time_rows
from axbake.runtime.errors import BundleError
from axbake.runtime.prompt import chunk_prompt
from axbake.runtime.sampler import denoiser, load_schedule, sample
from axbake.runtime.session import Session, open_model, open_models
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.txt2img import Models, decode_latent, draw
from axbake.runtime.values import Latents, Picture
from axbake.weights.files import Description
from tests.chains import cut_graph

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "resources" / "clip"
RUNTIME = ROOT / "axbake" / "runtime"
TIME_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"
PROMPT, NEGATIVE = "a photo of a cat", "blurry, low quality"
SEED = 7
HEIGHT, WIDTH = 48, 32  # pixels; latents are 6 × 4
MIN_PSNR = 60  # dB, latents of the loop against those of diffusers


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text).eval(), unet=unet.eval(), scheduler=build_scheduler("euler"),
        tokenizer=CLIPTokenizer.from_pretrained(CLIP, local_files_only=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class CutUnet(torch.nn.Module):
    """The UNet with the time row, SiLU applied, as its third input, as published deployments have it."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet
        unet.get_time_embed = lambda sample, timestep: timestep
        unet.time_embedding = torch.nn.Identity()
        unet.time_embedding.forward = lambda row, *_: row
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):
                block.skip_time_act = True

    def forward(self, sample, prompt, row):
        return self.unet(sample, row, prompt, return_dict=False)[0]


class TextEncoder(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids):
        return self.encoder(input_ids).last_hidden_state


class VaeDecoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latent):
        return self.vae.decode(latent, return_dict=False)[0]


def export(model, inputs, path, *, input_names, output_name):
    torch.onnx.export(
        model.eval(), inputs, path, dynamo=True, opset_version=18, input_names=input_names, output_names=[output_name],
        external_data=False, verbose=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(pipeline, tmp_path_factory):
    """A folder of the three graphs and one schedule of 4 steps per scheduler."""
    folder = tmp_path_factory.mktemp("bundle")
    weights = folder / "unet.safetensors"
    description = Description("unet", "sd1", {}, Sampling()).as_metadata()
    save_file(
        {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}, weights, metadata=description
    )
    for name in SCHEDULERS:
        schedule = folder / f"{name}.npz"
        derive_schedule(scheduler=name, steps=4, guidance_scale=5, rows=time_rows, denoiser=weights, schedule=schedule)
    copy = UNet2DConditionModel.from_config(pipeline.unet.config)
    copy.load_state_dict(pipeline.unet.state_dict())
    sample, prompt, row = torch.zeros(1, 4, 6, 4), torch.zeros(1, 77, 8), torch.zeros(1, 32)
    export(
        CutUnet(copy), (sample, prompt, row), folder / "unet.onnx",
        input_names=["sample", "encoder_hidden_states", TIME_INPUT], output_name="out_sample",
    )  # fmt: skip
    ids = torch.zeros(1, 77, dtype=torch.int64)
    export(
        TextEncoder(pipeline.text_encoder), (ids,), folder / "text_encoder.onnx",
        input_names=["input_ids"], output_name="last_hidden_state",
    )  # fmt: skip
    export(
        VaeDecoder(pipeline.vae), (sample,), folder / "vae_decoder.onnx",
        input_names=["latent"], output_name="image",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def models(bundle):
    return [open_model(bundle / f"{name}.onnx", threads=1) for name in ("text_encoder", "unet", "vae_decoder")]


LATENTS = Latents(channels=4, factor=8, scale=0.18215)
PICTURE = Picture(
    model="tiny", prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, scheduler="euler", steps=4,
    guidance_scale=7.5, seed=SEED,
)  # fmt: skip


def draw_with(models, bundle, scheduler, *, latents=LATENTS, conditioning=None, **options):
    text_encoder, unet, vae_decoder = models
    texts = text_encoder if isinstance(text_encoder, tuple) else (text_encoder,)
    picture = replace(PICTURE, **{"scheduler": scheduler} | options)
    schedule = load_schedule(bundle / f"{scheduler}.npz")
    return draw(
        Models(texts, unet, vae_decoder),
        ClipTokenizer(CLIP),
        schedule,
        picture,
        latents=latents,
        conditioning=conditioning,
    )


def psnr(ours, theirs):
    return 10 * np.log10((theirs.max() - theirs.min()) ** 2 / np.mean((ours - theirs) ** 2))


def pipeline_draws(pipeline, scheduler, guidance_scale, **options):
    pipeline.scheduler = build_scheduler(scheduler)
    return pipeline(
        PROMPT, negative_prompt=NEGATIVE, guidance_scale=guidance_scale, num_inference_steps=4, height=HEIGHT,
        width=WIDTH, generator=torch.Generator().manual_seed(SEED), **options,
    ).images  # fmt: skip


@pytest.mark.parametrize("guidance_scale", [7.5, 1])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_are_those_of_diffusers(pipeline, models, bundle, scheduler, guidance_scale):
    theirs = []
    pipeline_draws(
        pipeline, scheduler, guidance_scale, output_type="latent",
        callback_on_step_end=lambda _, step, timestep, tensors: theirs.append(tensors["latents"].numpy()) or tensors,
    )  # fmt: skip

    ours = draw_with(models, bundle, scheduler, guidance_scale=guidance_scale).latents

    assert ours.shape == (4, 1, 4, 6, 4)
    for step in range(4):
        assert psnr(ours[step], theirs[step]) > MIN_PSNR


def test_a_unet_in_three_graphs_draws_what_it_draws_in_one(models, bundle, tmp_path):
    text_encoder, unet, vae_decoder = models
    network = onnx.load(bundle / "unet.onnx")
    third = len(network.graph.node) // 3
    chain = open_models(cut_graph(network, (third, 2 * third), tmp_path / "unet"), threads=1)

    whole, parts = (draw_with([text_encoder, given, vae_decoder], bundle, "dpmpp_2m_karras") for given in (unet, chain))

    first, second, last = chain.graphs
    assert set(first.outputs) & set(last.inputs) - set(second.outputs)  # a skip that crosses both cuts
    assert chain.inputs.keys() == unet.inputs.keys() and chain.outputs == unet.outputs
    assert psnr(parts.latents, whole.latents) > 100  # dB; graphs are optimised each by itself
    assert np.abs(parts.image.astype(int) - whole.image).max() <= 1
    assert {name: len(seconds) for name, seconds in parts.seconds.items()} == {
        name: len(seconds) for name, seconds in whole.seconds.items()
    }


def test_the_picture_is_that_of_diffusers(pipeline, models, bundle):
    expected = np.asarray(pipeline_draws(pipeline, "euler", 7.5)[0]).astype(int)

    image = draw_with(models, bundle, "euler").image

    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 1  # where a value lies between two integers
    assert (image == expected).mean() > 0.99


def test_a_drawing_says_how_long_each_run_took(models, bundle):
    guided = draw_with(models, bundle, "euler").seconds
    plain = draw_with(models, bundle, "euler", guidance_scale=1).seconds

    assert {name: len(seconds) for name, seconds in guided.items()} == {"text_encoder": 2, "unet": 8, "vae_decoder": 1}
    assert {name: len(seconds) for name, seconds in plain.items()} == {"text_encoder": 1, "unet": 4, "vae_decoder": 1}


def test_a_drawing_says_what_of_its_prompts_does_not_count(models, bundle):
    long = "word " * 75 + "lost"

    assert draw_with(models, bundle, "lcm").warnings == ()
    (said,) = draw_with(models, bundle, "lcm", negative_prompt=long).warnings
    assert said.endswith("this end of it is cut off: lost")
    assert draw_with(models, bundle, "lcm", negative_prompt=long, guidance_scale=1).warnings == ()


def test_the_same_seed_draws_the_same_and_another_does_not(models, bundle):
    first, again, other = (draw_with(models, bundle, "lcm", seed=seed).image for seed in (1, 1, 2))

    assert (first == again).all() and (first != other).any()


def test_a_picture_of_another_size_than_compiled_is_refused(models, bundle):
    with pytest.raises(BundleError, match=r"picture of 512x512 pixels; vae_decoder\.onnx was compiled for 32x48"):
        draw_with(models, bundle, "euler", height=512, width=512)


def test_guidance_without_a_negative_prompt_is_refused(models, bundle):
    with pytest.raises(BundleError, match=r"guidance scale 7\.5 without a negative prompt"):
        sample(
            denoiser(models[1]), load_schedule(bundle / "euler.npz"), None, np.zeros((1, 4, 6, 4), np.float32),
            prompt_embeds=np.zeros((1, 77, 8)), negative_embeds=None, guidance_scale=7.5,
        )  # fmt: skip


def test_a_unet_without_the_inputs_is_refused(models):
    with pytest.raises(BundleError, match=r"inputs latent; wanted sample and encoder_hidden_states"):
        denoiser(models[2])


def test_pixels_are_rounded_as_diffusers_does(pipeline):
    tensor = {"x": ((1, 3, 64, 64), np.dtype(np.float32))}
    decoder = Session("vae_decoder", tensor, tensor, lambda feed: [feed["x"]])
    pixels = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 3, 64, 64)).astype(np.float32)
    expected = pipeline.image_processor.postprocess(torch.from_numpy(pixels), output_type="pil")[0]

    assert (decode_latent(decoder, pixels, latents=Latents(channels=3, factor=1)) == np.asarray(expected)).all()


def test_a_schedule_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "schedule.npz", timesteps=np.arange(4))

    with pytest.raises(BundleError, match="no array coefficients, draws_noise, guidance_embedded, init_noise_sigma"):
        load_schedule(tmp_path / "schedule.npz")


def test_inputs_and_outputs_have_shapes_and_types(models):
    assert models[0].inputs == {"input_ids": ((1, 77), np.dtype(np.int64))}
    assert models[1].inputs[TIME_INPUT] == ((1, 32), np.dtype(np.float32))
    assert models[1].outputs == {"out_sample": ((1, 4, 6, 4), np.dtype(np.float32))}


def test_integers_are_cast_to_what_the_model_asks_for(models):
    ids = chunk_prompt(PROMPT, ClipTokenizer(CLIP))[0].ids

    same = [models[0].run({"input_ids": ids.astype(dtype)}) for dtype in (np.int64, np.int32, np.uint16)]

    assert all((run["last_hidden_state"] == same[0]["last_hidden_state"]).all() for run in same)


def test_arrays_that_do_not_fit_are_refused_all_at_once(models):
    with pytest.raises(BundleError, match=r"got inputs ids; wanted input_ids"):
        models[0].run({"ids": np.zeros((1, 77))})
    with pytest.raises(BundleError, match=r"input_ids: found float64, wanted values of int64"):
        models[0].run({"input_ids": np.zeros((1, 77))})
    with pytest.raises(BundleError, match=r"sample: found shape \(4,\), wanted \(1, 4, 6, 4\); encoder_hidden_states"):
        models[1].run({name: np.zeros(4) for name in models[1].inputs})


def test_transposed_arrays_are_read_in_their_order(models):
    rows = np.random.default_rng(0).normal(size=(1, 4, 4, 6)).astype(np.float32)
    turned = rows.transpose(0, 1, 3, 2)

    images = [models[2].run({"latent": latent})["image"] for latent in (turned, turned.copy())]

    assert (images[0] == images[1]).all()


def test_the_package_needs_no_torch_and_nothing_else_of_axbake():
    code = "import sys, axbake.runtime.command; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "diffusers", "transformers", "onnx", "onnxruntime"}
    assert {name for name in loaded if name.startswith("axbake.")} == {
        "axbake.runtime", *(f"axbake.runtime.{path.stem}" for path in RUNTIME.glob("[a-z]*.py"))
    }  # fmt: skip


def test_a_copy_of_the_package_runs_under_another_name(tmp_path):
    shutil.copytree(RUNTIME, tmp_path / "bundled")
    code = "import sys, bundled.command; assert 'axbake' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
