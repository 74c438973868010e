"""Run a UNet of full size as drawing does, the obvious way and ours, and tell time a step and peak memory.

    python bench/drawing.py DIRECTORY [--repeats 3] [--steps 4] [--height 480] [--width 320]

DIRECTORY keeps a random checkpoint of Stable Diffusion 1.5's size (made where it is not yet). Each way draws the same latent,
of the same seed, prompts and sampler, with guidance, in a process of its own, alternately:

- obvious: `StableDiffusionPipeline.from_pretrained(…, dtype=torch.float32)` as it comes;
- reference: the same in float32 with channels last, as the job `draw_reference` does;
- float32, bfloat16: as the job `record_trajectories` does in that precision;
- stable-diffusion.cpp: its Python package, where it is installed; in f16, flash attention off, as it comes.

A step is the UNet on both branches of guidance. Time is the median over all steps but the first, which sets up the kernels.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import time
from pathlib import Path

from measure import Cost, diffusers_folder, full_size, median, run

PROMPT, NEGATIVE = "1girl, upper body, sun glare, bokeh", "lowres, bad anatomy"
GUIDANCE, SEED, SCHEDULER = 7.0, 42, "dpmpp_2m_karras"


def _pipeline_seconds(pipeline, options, place: Path, **prompts) -> list[float]:
    """Seconds between the ends of a pipeline's steps; its final latent goes to *place*."""
    import numpy as np
    import torch

    ends: list[float] = []

    def note(pipeline, step, timestep, tensors):
        ends.append(time.monotonic())
        return tensors

    latent = pipeline(
        **prompts,
        height=options.height,
        width=options.width,
        num_inference_steps=options.steps,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        callback_on_step_end=note,
        output_type="latent",
    ).images
    np.save(place, latent.numpy())
    return [after - before for before, after in itertools.pairwise(ends)]


def obvious(options, place: Path) -> list[float]:
    import torch
    from diffusers import StableDiffusionPipeline

    folder = options.directory / "diffusers"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return _pipeline_seconds(pipeline, options, place, prompt=PROMPT, negative_prompt=NEGATIVE)


def reference(options, place: Path) -> list[float]:
    import torch

    from axbake.drawing.prompts import load_tokenizer, prompt_embedding, text_encoding
    from axbake.drawing.reference import load_pipeline
    from axbake.families import FAMILIES

    family = FAMILIES["sd1"]
    builds = {component.name: component.build for component in family.components}
    text_encoder, unet, vae_decoder = (
        options.directory / f"{name}.safetensors" for name in ("text_encoder", "unet", "vae_decoder")
    )
    encodes = [text_encoding(text_encoder, builds["text_encoder"], family.text_encoders[0].states)]
    tokenizer = load_tokenizer(_no_embeddings(text_encoder, place))
    embed = prompt_embedding(encodes, tokenizer, chunks=1, conditioning=family.conditioning)
    prompts = {"prompt_embeds": PROMPT, "negative_prompt_embeds": NEGATIVE}
    embedded = {name: torch.from_numpy(embed(prompt).tokens) for name, prompt in prompts.items()}
    of = {"builds": builds, "pipeline": family.process.pipelines[""]}
    return _pipeline_seconds(load_pipeline(unet, vae_decoder, **of, scheduler=SCHEDULER), options, place, **embedded)


def _no_embeddings(text_encoder: Path, place: Path) -> Path:
    """An `embeddings.json` beside *place* that names none."""
    from axbake.weights.embeddings import list_embeddings

    listing = place.with_suffix(".embeddings.json")
    list_embeddings([text_encoder], [], names=[], encoders=[""], listing=listing)
    return listing


def float32(options, place: Path) -> list[float]:
    return _trajectory_seconds("float32", options, place)


def bfloat16(options, place: Path) -> list[float]:
    return _trajectory_seconds("bfloat16", options, place)


def _trajectory_seconds(precision: str, options, place: Path) -> list[float]:
    """Seconds between two runs of the UNet in `record_trajectories`."""
    import numpy as np

    from axbake.calibration import trajectories
    from axbake.drawing.schedule import derive_schedule
    from axbake.families import FAMILIES

    family = FAMILIES["sd1"]
    schedule = place.with_suffix(".schedule.npz")
    text_encoder, unet = (options.directory / f"{name}.safetensors" for name in ("text_encoder", "unet"))
    derive_schedule(
        scheduler=SCHEDULER,
        steps=options.steps,
        guidance_scale=GUIDANCE,
        rows=family.denoiser.rows,
        denoiser=unet,
        schedule=schedule,
    )
    ends: list[float] = []
    denoising = trajectories._denoising

    def noted(network, ranges):
        of_masks = denoising(network, ranges)

        def denoising_with(masks):
            denoise = of_masks(masks)

            def run(*arrays):
                output = denoise(*arrays)
                ends.append(time.monotonic())
                return output

            return run

        return denoising_with

    trajectories._denoising = noted
    trajectories.record_trajectories(
        text_encoders=[text_encoder],
        denoiser=unet,
        schedule=schedule,
        builds={component.name: component.build for component in family.components},
        states={one.name: one.states for one in family.text_encoders},
        with_rows=family.denoiser.with_rows,
        conditioning=family.conditioning,
        latents=family.latents,
        embeddings=_no_embeddings(text_encoder, place),
        prompts=[PROMPT],
        negative_prompt=NEGATIVE,
        guidance_scale=GUIDANCE,
        height=options.height,
        width=options.width,
        seed=SEED,
        prompt_chunks=1,
        precision=precision,
        device="cpu",
        trajectories=place.with_suffix(".npz"),
    )
    with np.load(place.with_suffix(".npz")) as arrays:
        np.save(place, arrays["latents"][0, -1])
    # Behind the prompt's steps come those of the empty prompt.
    return [after - before for before, after in itertools.pairwise(ends[: options.steps])]


def stable_diffusion_cpp(options, place: Path) -> list[float]:
    from stable_diffusion_cpp import StableDiffusion

    ends: dict[int, float] = {}

    def note(step: int, steps: int, seconds: float) -> None:
        if steps == options.steps:  # loading tensors is reported in the same way
            ends[step] = time.monotonic()

    model = StableDiffusion(model_path=str(options.directory / "random-sd15.safetensors"), wtype="f16", verbose=False)
    model.generate_image(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=options.height,
        width=options.width,
        sample_steps=options.steps,
        cfg_scale=GUIDANCE,
        seed=SEED,
        progress_callback=note,
    )
    return [ends[step + 1] - ends[step] for step in range(1, options.steps)]


WAYS = {way.__name__: way for way in (obvious, reference, float32, bfloat16, stable_diffusion_cpp)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=4)
    arguments.add_argument("--height", type=int, default=480)
    arguments.add_argument("--width", type=int, default=320)
    arguments.add_argument("--ways", default=",".join(WAYS), help="separated by commas")
    arguments.add_argument("--way", choices=WAYS, help="run this one here, and print its seconds")
    options = arguments.parse_args()
    if options.way:
        print(json.dumps(WAYS[options.way](options, options.directory / f"latent.{options.way}.npy")))
        return
    full_size(options.directory)
    diffusers_folder(options.directory)
    ways = options.ways.split(",")
    if "stable_diffusion_cpp" in ways and not importlib.util.find_spec("stable_diffusion_cpp"):
        print("stable-diffusion-cpp-python is not installed; left out")
        ways.remove("stable_diffusion_cpp")
    size = ["--steps", options.steps, "--height", options.height, "--width", options.width]
    rounds = [
        {way: run("drawing.py", options.directory, *size, "--way", way) for way in ways} for _ in range(options.repeats)
    ]
    print(table(rounds, options))


def table(rounds: list[dict[str, Cost]], options) -> str:
    """Medians over *rounds*, with the distance of each final latent from the first way's."""
    import numpy as np

    from axbake.distance import psnr

    lines = [
        f"Medians of {len(rounds)}, {options.steps} steps at {options.height} × {options.width}:\n",
        "| way | a step | whole process | peak memory | PSNR of the latent |",
        "|---|---:|---:|---:|---:|",
    ]
    wanted = None
    for way in rounds[0]:
        costs = [costs[way] for costs in rounds]
        step = statistics.median(statistics.median(json.loads(cost.said.splitlines()[-1])) for cost in costs)
        place = options.directory / f"latent.{way}.npy"
        latent = np.load(place) if place.is_file() else None
        wanted = latent if wanted is None else wanted
        distance = "" if latent is None or latent is wanted else f"{psnr(wanted, latent):.1f} dB"
        whole = median(costs)
        lines.append(f"| {way} | {step:.2f} s | {whole.seconds:.1f} s | {whole.gib:.2f} GiB | {distance} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
