"""What the recording says the networks saw is what diffusers' pipeline feeds them."""

import numpy as np
import pytest
import torch

from axbake.distance import psnr
from tests.unit.jobs import record

PROMPTS = ["slice of pizza", "a rocket, in the night"]
NEGATIVE = "blurry"
SEED, STEPS, GUIDANCE = 11, 4, 5.0
HEIGHT, WIDTH = 64, 96
DRAWING = {"negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "height": HEIGHT, "width": WIDTH, "seed": SEED}
MIN_PSNR = 60  # dB


@pytest.fixture(scope="module", params=["euler", "lcm"])
def recorded(request, model, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    schedule = model.schedule(directory / "schedule.npz", scheduler=request.param, steps=STEPS)
    return request.param, record(model, schedule, directory / "trajectories.npz", prompts=PROMPTS, **DRAWING)


def test_latents_are_those_of_diffusers_for_the_same_seeds_and_prompts(recorded, model):
    scheduler, path = recorded
    latents = np.load(path)["latents"]
    assert latents.shape == (2, STEPS + 1, 1, 4, HEIGHT // 8, WIDTH // 8)
    pipeline = model.pipeline(scheduler)

    for number, prompt in enumerate(PROMPTS):
        wanted = []

        def keep(pipeline, step, timestep, tensors, wanted=wanted):
            wanted.append(tensors["latents"].numpy().copy())
            return tensors

        pipeline(
            prompt,
            negative_prompt=NEGATIVE,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED + number),
            callback_on_step_end=keep,
            output_type="latent",
        )
        assert all(psnr(a, b) > MIN_PSNR for a, b in zip(wanted, latents[number, 1:], strict=True))

    start = torch.randn((1, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(SEED))
    assert psnr((start * pipeline.scheduler.init_noise_sigma).numpy(), latents[0, 0]) > MIN_PSNR


def test_latents_in_bfloat16_are_near_those_in_float32(recorded, model, tmp_path):
    scheduler, path = recorded
    schedule = model.schedule(tmp_path / "schedule.npz", scheduler=scheduler, steps=STEPS)
    half = record(
        model, schedule, tmp_path / "trajectories.npz", prompts=PROMPTS, **DRAWING | {"precision": "bfloat16"}
    )
    wanted, found = np.load(path), np.load(half)

    assert 30 < psnr(wanted["latents"], found["latents"]) < MIN_PSNR  # near, and not the same arithmetic
    assert found["latents"].dtype == np.float32
    assert np.array_equal(wanted["prompt_embeds"], found["prompt_embeds"])


def test_embeddings_are_those_of_diffusers(recorded, model):
    arrays, pipeline = np.load(recorded[1]), model.pipeline("euler")

    for number, prompt in enumerate(PROMPTS):
        wanted, negative = pipeline.encode_prompt(prompt, "cpu", 1, True, NEGATIVE)
        assert psnr(wanted.numpy(), arrays["prompt_embeds"][number]) > MIN_PSNR
        assert psnr(negative.numpy(), arrays["negative_embeds"]) > MIN_PSNR


def test_without_guidance_the_negative_prompt_does_not_count(model, tmp_path):
    latents = []
    for negative in ("", "blurry"):
        schedule = model.schedule(tmp_path / "schedule.npz", steps=2)
        how = {"prompts": PROMPTS[:1], "negative_prompt": negative, "guidance_scale": 1}
        latents.append(np.load(record(model, schedule, tmp_path / "trajectories.npz", **how))["latents"])

    assert np.array_equal(*latents)
