"""A schedule's coefficients do what diffusers' own scheduler does, with any model."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LatentConsistencyModelPipeline,
    PNDMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from safetensors.torch import load_file, save_file

from axbake.drawing import schedule as schedules
from axbake.drawing.schedule import (
    SCHEDULERS,
    ScheduleError,
    UnknownSchedulerError,
    build_scheduler,
    derive_schedule,
    scheduler_arrays,
)
from axbake.networks.sampling import FLOW_SCHEDULERS, Flow, Sampling, SamplingError, steps_run
from axbake.networks.unet import TimeEmbeddingError, time_rows
from axbake.npz import npz_bytes
from axbake.runtime.errors import BundleError
from axbake.runtime.noise import TorchNoise
from axbake.runtime.sampler import Schedule, initial_latent, load_schedule, sample
from axbake.weights.files import Description, read_sampling

SHAPE = (1, 4, 8, 8)
STEPS = [1, 2, 4, 20, 30]
MAX_ERROR = 2e-5  # of the latent's standard deviation; diffusers sums in float32, from a standard deviation of 14.6 on
#: diffusers does not rescale the noise levels of its single-step solver
WITHOUT_PURE_NOISE = ("dpmpp_sde", "dpmpp_sde_karras")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture
def weights(unet, tmp_path):
    path = tmp_path / "unet.safetensors"
    description = Description("unet", "sd1", {}, Sampling()).as_metadata()
    save_file({name: tensor.clone() for name, tensor in unet.state_dict().items()}, path, metadata=description)
    return path


def curved(latent, timestep):
    """A made-up model: not linear in the latent nor the timestep.

    As with a real one, its output is near its input where that is nearly all noise; LCM divides what is left by 0.07
    there, and would turn a model with other slopes into chaos that no two float32 loops agree on.
    """
    return 0.95 * latent + 0.1 * torch.sin(2 * latent + timestep / 50.0) + 0.05 * torch.tanh(latent.roll(1, -1) ** 2)


def diffusers_latents(scheduler, steps, model):
    """Latents after each step of diffusers' own loop, as in `StableDiffusionPipeline.__call__`."""
    generator = torch.Generator().manual_seed(5)
    scheduler.set_timesteps(steps)
    latent = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = []
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(latent, timestep), timestep)
        latent = scheduler.step(output, timestep, latent, **options, return_dict=False)[0]
        latents.append(latent)
    return torch.stack(latents).numpy()


def our_latents(schedule, model):
    """The same by the schedule."""
    noise = TorchNoise(5)
    drawn = sample(
        lambda latent, time, _: model(torch.from_numpy(latent), torch.tensor(time.timestep)).numpy(),
        schedule,
        noise,
        initial_latent(schedule, noise, SHAPE),
        prompt_embeds=np.zeros(()),
        negative_embeds=None,
        guidance_scale=1,
    )
    return drawn.latents


def schedule_of(name, steps, *options):
    arrays = scheduler_arrays(name, steps, *options)
    return Schedule(**{**arrays, "scheduler": name}, time_embedding=arrays["timesteps"][:, None])


def relative_error(ours, theirs):
    return max(np.abs(a - b).max() / b.std() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "sampling", [Sampling("epsilon"), Sampling("v_prediction")], ids=lambda sampling: sampling.prediction_type
)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_coefficients_do_what_the_scheduler_does(name, steps, sampling):
    ours = our_latents(schedule_of(name, steps, sampling), curved)
    theirs = diffusers_latents(build_scheduler(name, sampling), steps, curved)

    assert relative_error(ours, theirs) < MAX_ERROR


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_the_coefficients_do_what_the_scheduler_of_a_flow_does(name, steps, shift):
    sampling = Flow(shift=shift)

    ours = our_latents(schedule_of(name, steps, sampling), curved_flow)

    assert relative_error(ours, diffusers_latents(build_scheduler(name, sampling), steps, curved_flow)) < MAX_ERROR


def curved_flow(latent, timestep):
    """A made-up model of a flow: the noise less a picture that depends on latent and timestep."""
    return latent - 0.6 * torch.sin(2 * latent.roll(1, -1) + timestep / 500.0)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_flow_has_the_noise_levels_of_stable_diffusion_3(steps):
    """As published with it: shift 3, no dynamic shifting; Esser et al. 2024, equation 23."""
    schedule = schedule_of("euler", steps, Flow(shift=3.0))

    plain = np.linspace(1, 0.001, steps) if steps > 1 else np.ones(1)
    shifted = 3 * plain / (1 + 2 * plain)
    # diffusers shifts the levels between which the steps are spaced, and then each step's: the last is shifted twice.
    spaced = np.linspace(1, 3 * 0.001 / (1 + 2 * 0.001), steps) if steps > 1 else np.ones(1)
    np.testing.assert_allclose(schedule.timesteps, 1000 * 3 * spaced / (1 + 2 * spaced), rtol=1e-5)
    assert schedule.timesteps[0] == 1000 and (np.abs(schedule.timesteps / 1000 - shifted) < 0.02).all()
    # Each step is the difference of two levels times the prediction; the last ends without noise.
    levels = [*schedule.timesteps / 1000, 0]
    np.testing.assert_allclose(np.diag(schedule.coefficients[:, 1 : 1 + steps]), np.diff(levels), atol=1e-6)


def test_a_picture_enters_a_flow_between_itself_and_noise():
    schedule = schedule_of("euler", 10, Flow(shift=3.0))

    np.testing.assert_allclose(schedule.noise_scale, schedule.timesteps / 1000, rtol=1e-6)
    np.testing.assert_allclose(schedule.picture_scale, 1 - schedule.timesteps / 1000, atol=1e-6)
    assert schedule.init_noise_sigma == 1 and (schedule.input_scale == 1).all() and not schedule.draws_noise.any()


def test_a_sampler_that_diffusers_has_not_for_a_flow_is_refused_by_column():
    sampling = Flow(shift=3.0)

    with pytest.raises(SamplingError, match="column scheduler: dpmpp_2m_karras, wanted euler, dpmpp_2m or unipc"):
        sampling.check(scheduler="dpmpp_2m_karras", steps=20, guidance_scale=7)
    with pytest.raises(UnknownSchedulerError, match="'ddim' cannot draw with rectified flow; known for it: euler"):
        build_scheduler("ddim", sampling)
    sampling.check(scheduler="euler", steps=28, guidance_scale=7)


def test_weights_say_again_how_a_flow_is_run(tmp_path):
    path = tmp_path / "transformer.safetensors"
    save_file(
        {"a": torch.zeros(1)}, path, metadata=Description("transformer", "sd3", {}, Flow(shift=3.0)).as_metadata()
    )

    assert read_sampling(path) == Flow(shift=3.0)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in WITHOUT_PURE_NOISE])
def test_a_schedule_that_ends_in_pure_noise_does_what_the_scheduler_does(name, steps):
    sampling = Sampling("v_prediction", zero_terminal_snr=True)
    schedule = schedule_of(name, steps, sampling)
    ours, theirs = our_latents(schedule, curved), diffusers_latents(build_scheduler(name, sampling), steps, curved)

    # Euler's latents begin at 4096, where float32 is off by 2e-4, and diffusers sums in it.
    assert schedule.timesteps[0] == 999
    assert relative_error(ours, theirs) < (5e-3 if name.startswith("euler") else MAX_ERROR)


@pytest.mark.parametrize("name", WITHOUT_PURE_NOISE)
def test_a_sampler_that_has_no_schedule_that_ends_in_pure_noise_is_refused(name):
    with pytest.raises(
        ScheduleError, match=rf"column scheduler: {name} has no schedule that ends in pure noise.*Choose"
    ):
        build_scheduler(name, Sampling("v_prediction", zero_terminal_snr=True))


def test_steps_that_diffusers_cannot_count_in_pure_noise_are_an_error():
    with pytest.raises(
        ScheduleError, match="dpmpp_2m_karras cannot do 50 steps with a schedule that ends in pure noise"
    ):
        scheduler_arrays("dpmpp_2m_karras", 50, Sampling("v_prediction", zero_terminal_snr=True))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_coefficients_do_what_the_scheduler_does_with_a_real_unet(name, unet):
    prompt = torch.randn((1, 77, 8), generator=torch.Generator().manual_seed(1))

    def model(latent, timestep):
        with torch.no_grad():
            return unet(latent, timestep, prompt, return_dict=False)[0]

    ours = our_latents(schedule_of(name, 10), model)

    assert relative_error(ours, diffusers_latents(build_scheduler(name), 10, model)) < MAX_ERROR


PUBLISHED = {  # scheduler/scheduler_config.json of Stable Diffusion 1.5
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000},
    **{
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
}


@pytest.mark.parametrize("steps", [4, 20, 30])
@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_samplers_are_spaced_as_diffusers_spaces_them_by_the_published_config(name, steps):
    ours, published = build_scheduler(name), PNDMScheduler.from_config(PUBLISHED)
    theirs = type(ours).from_config(published.config)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)

    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.sigmas.tolist() == theirs.sigmas.tolist()
    assert ours.timesteps[0] == 999


def test_dpmpp_2m_karras_ends_at_no_noise_in_web_uis_and_at_the_smallest_level_on_published_boards():
    """Karras et al. 2022, equation 5, rho 7, between the noise levels of the model: k-diffusion's get_sigmas_karras."""
    alphas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)
    low, high = (((1 - alphas) / alphas)[[0, -1]] ** 0.5).tolist()
    wanted = (high ** (1 / 7) + np.linspace(0, 1, 20) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    ends = {}
    for name in ("dpmpp_2m_karras", "dpmpp_2m_karras_zero"):
        scheduler = build_scheduler(name)
        scheduler.set_timesteps(20)
        np.testing.assert_allclose(scheduler.sigmas[:-1], wanted, rtol=1e-3)
        ends[name] = float(scheduler.sigmas[-1])

    assert ends["dpmpp_2m_karras_zero"] == 0
    assert ends["dpmpp_2m_karras"] == pytest.approx(wanted[-1], rel=1e-3)


def test_equal_timesteps_are_steps_of_their_own():
    ours = schedule_of("dpmpp_2m_karras", 50)

    assert len(set(ours.timesteps.tolist())) < 50
    assert len(np.unique(ours.coefficients[:-1], axis=0)) == 49


@pytest.mark.parametrize("steps", [2, 20])
def test_the_model_is_run_only_where_its_output_is_used(steps):
    runs = []

    def model(latent, timestep):
        runs.append(float(timestep))
        return curved(latent, timestep)

    ours = our_latents(schedule_of("dpmpp_2m_karras", steps), model)

    assert len(runs) == steps - 1  # the last step ends at the noise level that it begins with
    assert relative_error(ours, diffusers_latents(build_scheduler("dpmpp_2m_karras"), steps, curved)) < MAX_ERROR
    for name in {*SCHEDULERS} - {"dpmpp_2m_karras"}:
        assert schedule_of(name, steps).coefficients[-1, 1 : 1 + steps].all()


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_the_steps_that_run_the_model_are_known_without_a_schedule(steps):
    schedules = [schedule_of(name, steps) for name in SCHEDULERS]
    schedules += [schedule_of(name, steps, Flow(shift=3.0)) for name in FLOW_SCHEDULERS]

    for one in schedules:
        assert sum(one.runs_model(step) for step in range(steps)) == steps_run(one.scheduler, steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_time_rows_are_what_the_residual_blocks_of_the_unet_take(unet, weights, dtype):
    rounded = {name: tensor.to(dtype) for name, tensor in load_file(weights).items()}
    save_file(rounded, weights)
    timesteps = np.array([999, 500.5, 1, 0], dtype=np.float32)

    rows = time_rows(weights, timesteps, guidance_scale=7)

    with torch.no_grad():
        embedding = type(unet.time_embedding)(4, 16)
        embedding.load_state_dict(
            {
                f"linear_{n}.{k}": rounded[f"time_embedding.linear_{n}.{k}"].float()
                for n in (1, 2)
                for k in ("weight", "bias")
            }
        )
        expected = torch.nn.functional.silu(embedding(unet.time_proj(torch.from_numpy(timesteps))))
    assert rows.dtype == np.float32 and rows.shape == (4, 16)
    np.testing.assert_allclose(rows, expected.numpy(), atol=1e-6)


def derive(weights, path, **how):
    """Write to *path* the schedule of the UNet of *weights*."""
    derive_schedule(**how, guidance_scale=7, rows=time_rows, denoiser=weights, schedule=path)


def test_a_schedule_is_read_back_as_it_was_derived(weights, tmp_path):
    path = tmp_path / "schedule.npz"
    derive(weights, path, scheduler="euler", steps=4)

    schedule = load_schedule(path)

    assert schedule.scheduler == "euler"
    assert schedule.timesteps.tolist() == [999, 666, 333, 0]
    assert schedule.init_noise_sigma == pytest.approx(float(build_and_set("euler", 4).init_noise_sigma))
    assert schedule.coefficients.shape == (4, 9)
    assert schedule.time_embedding.shape == (4, 16)
    sigma = build_and_set("euler", 4).sigmas[0]
    assert schedule.input_scale[0] == pytest.approx(float((sigma**2 + 1) ** -0.5))


def build_and_set(name, steps):
    scheduler = build_scheduler(name)
    scheduler.set_timesteps(steps)
    return scheduler


def test_ancestral_and_stochastic_samplers_draw_noise_in_every_step_and_lcm_and_tcd_not_in_the_last():
    drawn = {name: scheduler_arrays(name, 4)["draws_noise"].tolist() for name in SCHEDULERS}

    for name in ("lcm", "tcd"):
        assert drawn.pop(name) == [True, True, True, False]
    for name in ("euler_a", "euler_a_trailing", "dpmpp_2m_sde_karras", "dpmpp_sde", "dpmpp_sde_karras"):
        assert drawn.pop(name) == [True] * 4
    assert all(steps == [False] * 4 for steps in drawn.values())


def test_tcd_renews_its_authors_share_of_the_noise():
    ours, plain = build_and_set("tcd", 4), TCDScheduler.from_config(build_scheduler("tcd").config)
    plain.set_timesteps(4)
    latent, output = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))

    found, wanted = (
        scheduler.step(output, scheduler.timesteps[0], latent, generator=torch.Generator().manual_seed(1), **more)
        for scheduler, more in ((ours, {}), (plain, {"eta": 0.3}))
    )

    assert torch.equal(found.prev_sample, wanted.prev_sample)
    assert "eta" not in inspect.signature(ours.step).parameters  # which pipelines would set to 0


def test_a_step_uses_nothing_of_later_steps():
    for name in SCHEDULERS:
        coefficients = scheduler_arrays(name, 10)["coefficients"]
        for terms in (coefficients[:, 1:11], coefficients[:, 11:]):
            assert not np.triu(terms, k=1).any(), name


def test_the_same_schedule_has_the_same_bytes(weights, tmp_path):
    for name in ("one.npz", "two.npz"):
        derive(weights, tmp_path / name, scheduler="lcm", steps=4)

    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    a, b = np.arange(3), np.ones((), dtype=bool)
    assert npz_bytes({"a": a, "b": b}) == npz_bytes({"b": b, "a": a})


def test_an_unknown_scheduler_is_an_error_that_lists_the_known_ones():
    with pytest.raises(
        UnknownSchedulerError,
        match=f"'heun' is unknown; known: {', '.join(sorted(SCHEDULERS))}",
    ):
        build_scheduler("heun")


def test_an_unknown_prediction_type_is_an_error():
    with pytest.raises(ScheduleError, match="'flow' is unknown; known: epsilon, v_prediction"):
        build_scheduler("euler", Sampling("flow"))


@pytest.mark.parametrize(("name", "steps"), [("lcm", 51), ("lcm", 1001), ("euler", 0), ("ddim", 1001)])
def test_a_number_of_steps_that_cannot_be_is_an_error(name, steps):
    with pytest.raises(ScheduleError, match=rf"{steps} steps.*Set `steps` in the table"):
        scheduler_arrays(name, steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_sample": True},
        {"clip_sample": False, "thresholding": True},
    ],
)
def test_a_scheduler_that_is_not_linear_is_refused(settings, monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULERS, "other", (DDIMScheduler, settings))

    with pytest.raises(ScheduleError, match="differs from a linear scheduler"):
        scheduler_arrays("other", 10)


def test_a_scheduler_that_draws_noise_in_every_step_can_be_a_schedule(monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULERS, "ancestral", (EulerAncestralDiscreteScheduler, {}))

    ours = our_latents(schedule_of("ancestral", 10), curved)

    assert relative_error(ours, diffusers_latents(build_scheduler("ancestral"), 10, curved)) < MAX_ERROR


@pytest.mark.parametrize("guidance_scale", [1, 4.5, 8])
def test_a_unet_distilled_for_lcm_is_told_the_guidance_scale_in_its_rows(guidance_scale, weights):
    condition = torch.randn((4, 256), generator=torch.Generator().manual_seed(3)) / 16
    save_file({**load_file(weights), "time_embedding.cond_proj.weight": condition}, weights)
    network = TimestepEmbedding(4, 16, cond_proj_dim=256)
    tensors = {name: tensor for name, tensor in load_file(weights).items() if name.startswith("time_embedding.")}
    network.load_state_dict({name.removeprefix("time_embedding."): tensor for name, tensor in tensors.items()})
    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    timesteps = torch.tensor([999.0, 1.0])

    rows = time_rows(weights, timesteps.numpy(), guidance_scale=guidance_scale)

    sines = Timesteps(4, flip_sin_to_cos=True, downscale_freq_shift=0)(timesteps)
    with torch.inference_mode():
        wanted = network(sines, embed(None, torch.tensor([guidance_scale - 1.0]), embedding_dim=256))
    assert np.abs(rows - torch.nn.functional.silu(wanted).numpy()).max() < 1e-5


def test_weights_of_another_component_are_refused(tmp_path):
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")

    with pytest.raises(TimeEmbeddingError, match="time_embedding has no tensors"):
        time_rows(tmp_path / "vae.safetensors", np.zeros(1, dtype=np.float32), guidance_scale=7)


def test_a_unet_that_takes_timesteps_is_given_whole_ones():
    ours = schedule_of("dpmpp_2m_karras", 20)
    between = replace(ours, timesteps=ours.timesteps - 0.5)

    assert ours.time(1).value((1,)).dtype == np.int32
    assert ours.time(1).value((1,)) == ours.timesteps[1]
    assert (ours.time(1).value((1, 1)) == ours.time_embedding[1:2]).all()
    assert between.time(0).value((1,)) == 998


def test_a_schedule_file_without_its_later_beginnings_is_refused(tmp_path, weights):
    derive(weights, tmp_path / "schedule.npz", scheduler="euler", steps=3)
    arrays = dict(np.load(tmp_path / "schedule.npz"))
    np.savez(tmp_path / "cut.npz", **arrays | {"late_coefficients": arrays["late_coefficients"][1:]})

    assert len(load_schedule(tmp_path / "schedule.npz").beginning_at(2).timesteps) == 1
    # (2, 5) and (1, 3)
    with pytest.raises(BundleError, match=r"3 steps, but late_coefficients of shape \(12,\); wanted \(13,\)"):
        load_schedule(tmp_path / "cut.npz")
