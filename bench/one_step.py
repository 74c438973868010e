"""One run of a UNet beside stable-diffusion.cpp's, same machine, alternately: what the recording of trajectories takes for it.

    python bench/one_step.py DIRECTORY [--models sd15,sd21,sdxl] [--repeats 1]

DIRECTORY keeps random checkpoints of the published sizes (made where they are not yet). A run is one branch, without guidance, at
512², 768² and 1024², the sizes at which «Open-Source Acceleration of Stable-Diffusion.cpp Deployable on All Devices» (arXiv
2412.05781) tells how much faster it made that program. Ours is the UNet as `record_trajectories` runs it, the second of two runs;
stable-diffusion.cpp's time is its own of the first step, from its Python package (pip install stable-diffusion-cpp-python), flash
attention off, a thread a core.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import ROOT, import_part, run

#: Checkpoint -> family, pixels a side, and the paper's factors in f32 and f16
MODELS = {"sd15": ("sd1", 512, (1.84, 1.51)), "sd21": ("sd2", 768, (2.02, 1.68)), "sdxl": ("sdxl", 1024, (4.79, 3.06))}
PRECISIONS = {"float32": "f32", "bfloat16": "f16"}  # ours -> the one of stable-diffusion.cpp that it stands beside
TOKENS = 77
STEPS = 7  # that are asked for, of which the first is run


def ours(directory: Path, model: str, precision: str) -> float:
    """Seconds of a run of the UNet as it is recorded."""
    import numpy as np
    import torch

    from axbake.calibration.modules import ModuleRanges
    from axbake.calibration.trajectories import _denoising
    from axbake.families import FAMILIES
    from axbake.runtime.sampler import Time
    from axbake.weights import networks
    from axbake.weights.files import read_description

    family, side, _ = MODELS[model]
    denoiser, latents = FAMILIES[family].denoiser, FAMILIES[family].latents
    weights = directory / f"{model}.unet.safetensors"
    assert denoiser.width and denoiser.with_rows
    config = read_description(weights).config
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(latents.shape(side, side), generator=generator).numpy()
    tokens = torch.randn((1, TOKENS, denoiser.width(config)), generator=generator).numpy()
    row = np.zeros((1, 4 * config["block_out_channels"][0]), np.float32)
    network = networks.load(weights, denoiser.build, dtype=networks.PRECISIONS[precision])
    watched = denoiser.with_rows(networks.channels_last(network))
    denoise = _denoising(watched, ModuleRanges(watched))(None)
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        denoise(latent, Time(500.0, row), tokens)
        seconds = time.monotonic() - started
    return seconds


def theirs(directory: Path, model: str, precision: str) -> None:
    """Print the seconds of stable-diffusion.cpp's one step, and end before it decodes."""
    from stable_diffusion_cpp import StableDiffusion

    side, output = MODELS[model][1], os.dup(1)  # while it draws, the package closes standard output

    def note(step: int, steps: int, seconds: float) -> None:
        if steps == STEPS and step == 1:  # loading tensors is reported in the same way
            os.write(output, json.dumps(seconds).encode())
            os._exit(0)

    checkpoint = str(directory / f"random-{model}.safetensors")
    threads = os.cpu_count() or 1
    drawing = StableDiffusion(model_path=checkpoint, wtype=PRECISIONS[precision], n_threads=threads, verbose=False)
    how = {"height": side, "width": side, "sample_steps": STEPS, "cfg_scale": 1.0, "seed": 0}
    drawing.generate_image(prompt="a rocket", **how, progress_callback=note)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    arguments.add_argument("--repeats", type=int, default=1)
    arguments.add_argument("--way", nargs=3, metavar=("WHO", "MODEL", "PRECISION"), help="measure this one here")
    options = arguments.parse_args()
    if options.way:
        who, model, precision = options.way
        if who == "theirs":
            theirs(options.directory, model, precision)
        print(json.dumps(ours(options.directory, model, precision)))
        return
    options.directory.mkdir(parents=True, exist_ok=True)
    print("| UNet | type | axbake | stable-diffusion.cpp | ratio | the paper's factor |\n|---|---|---:|---:|---:|---:|")
    for model in options.models.split(","):
        family, side, factors = MODELS[model]
        checkpoint = options.directory / f"random-{model}.safetensors"
        if not checkpoint.is_file():
            subprocess.run([sys.executable, ROOT / "bench" / "random_checkpoint.py", checkpoint, model], check=True)
        weights = options.directory / f"{model}.unet.safetensors"
        if not weights.is_file():
            import_part(checkpoint, component="unet", weights=weights, family=family)
        for (precision, their_type), factor in zip(PRECISIONS.items(), factors, strict=True):
            found: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(options.repeats):
                for who, seconds in found.items():
                    cost = run("one_step.py", options.directory, "--way", who, model, precision)
                    seconds.append(json.loads(cost.said.splitlines()[-1]))
            best, other = (min(seconds) for seconds in found.values())
            what = f"{model}, {side}² | {precision}, {their_type}"
            print(f"| {what} | {best:.1f} s | {other:.1f} s | {other / best:.1f} | {factor} |", flush=True)


if __name__ == "__main__":
    main()
