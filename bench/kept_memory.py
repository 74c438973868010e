"""What a half of a VAE takes in torch with memory that is kept between tensors, and with memory that goes back to the system.

    python bench/kept_memory.py RESULTS [--component vae_decoder] [--runs 5] [--repeats 3]

RESULTS is a model's directory of results that has `weights/{component}.safetensors`, and `calibration/latents.npy` or
`pictures.npy`. Each way runs in a process of its own, alternately, once unmeasured and then *runs* times, as calibration does:
bfloat16 where the processor multiplies it, channels last, every module watched. Printed are the processor's seconds of a run,
the kernel's among them, and the peak memory.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path

import numpy as np
from measure import run


def measure(results: Path, component: str, kept: bool, runs: int) -> None:
    """Print, as JSON, the processor's seconds of a run, and how many of them are the kernel's."""
    import torch

    from axbake.calibration.modules import ModuleRanges
    from axbake.families import sd1
    from axbake.host import chosen_precision, freed_memory_kept
    from axbake.weights import networks

    dtype, build = networks.PRECISIONS[chosen_precision("auto")], sd1.FAMILY.component(component).build
    network = networks.channels_last(
        networks.load(results / "weights" / f"{component}.safetensors", build, dtype=dtype)
    )
    if component == "vae_decoder":
        given = np.load(results / "calibration" / "latents.npy")[0]
    else:
        given = np.load(results / "calibration" / "pictures.npy")[:1].transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    ranges, sample = ModuleRanges(network), torch.from_numpy(given).to(dtype)
    with freed_memory_kept() if kept else contextlib.nullcontext(), torch.inference_mode():
        for number in range(1 + runs):
            network(sample)
            ranges.end_of_run()
            if number == 0:
                begun = os.times()
    ended = os.times()
    system = ended.system - begun.system
    print(json.dumps({"run": (ended.user - begun.user + system) / runs, "system": system / runs}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("results", type=Path)
    arguments.add_argument("--component", choices=("vae_decoder", "vae_encoder"), default="vae_decoder")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--one", choices=("kept", "given back"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        measure(given.results, given.component, given.one == "kept", given.runs)
        return
    print("memory | run, s | of them the kernel's | peak, GiB")
    for _ in range(given.repeats):
        for way in ("given back", "kept"):
            options = ("--component", given.component, "--runs", given.runs, "--one", way)
            cost = run("kept_memory.py", given.results, *options)
            said = json.loads(cost.said)
            print(f"{way} | {said['run']:.2f} | {said['system']:.2f} | {cost.gib:.1f}", flush=True)


if __name__ == "__main__":
    main()
