"""What a run of a UNet takes in torch with convolutions that are packed once, and with those that are packed in every run.

    python bench/packed.py RESULTS [--runs 3] [--repeats 3]

RESULTS is a model's directory of results that has `weights/unet.safetensors` and `calibration/trajectories.npz`, of Stable
Diffusion 1.x. Each way runs in a process of its own, alternately, once unmeasured and then *runs* times, as samples are recorded:
both branches of guidance together, bfloat16 where the processor multiplies it, every module watched. Printed are the processor's
seconds of a run and the peak memory, and at the end how far the outputs of both are from those in float32.
"""

import argparse
import json
import time
from pathlib import Path
from unittest import mock

import numpy as np
from measure import run


def measure(results: Path, way: str, runs: int, outputs: Path) -> None:
    """Print, as JSON, the processor's seconds of a run; write what the UNet gives to *outputs*."""
    from axbake.calibration.denoiser_samples import load_samples
    from axbake.calibration.trajectories import taken_rows, watched_denoiser
    from axbake.families import sd1
    from axbake.host import chosen_precision, freed_memory_kept
    from axbake.runtime.sampler import Time, load_schedule
    from axbake.weights import networks

    schedule, denoiser = load_schedule(results / "schedule.npz"), sd1.FAMILY.denoiser
    files = results / "calibration" / "trajectories.npz", results / "schedule.npz"
    samples = load_samples(*files, taken_rows(schedule))
    feeds = [samples.inputs((0, samples.steps[0], branch)) for branch in (0, 1)]
    both = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    precision = "float32" if way == "float32" else chosen_precision("auto")
    with mock.patch.object(networks, "packed", networks.packed if way == "packed" else lambda network: network):
        weights = results / "weights" / "unet.safetensors"
        how = {"precision": precision, "device": "cpu"}
        denoising, _ = watched_denoiser(weights, denoiser.build, denoiser.with_rows, **how)
    denoise = denoising(None)
    with freed_memory_kept():
        for count in (1, runs):
            begun = time.process_time()
            for _ in range(count):
                made = denoise(both["sample"], Time(0, both["time"]), both["encoder_hidden_states"])
    np.save(outputs, made)
    print(json.dumps({"run": (time.process_time() - begun) / runs}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("results", type=Path)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # way, outputs
    given = arguments.parse_args()
    if given.one:
        measure(given.results, given.one[0], given.runs, Path(given.one[1]))
        return
    from axbake.distance import sqnr

    made = {}
    print("convolutions | run of two samples, s | peak, GiB")
    for repeat in range(given.repeats):
        for way in ("as they are", "packed", *(["float32"] if repeat == 0 else [])):
            outputs = given.results / f"{way.replace(' ', '-')}.npy"
            cost = run("packed.py", given.results, "--runs", given.runs, "--one", way, outputs)
            print(f"{way} | {json.loads(cost.said)['run']:.2f} | {cost.gib:.1f}", flush=True)
            made[way] = np.load(outputs)
            outputs.unlink()
    for way in ("as they are", "packed"):
        print(f"{way}: {sqnr(made['float32'], made[way]):.1f} dB from float32")


if __name__ == "__main__":
    main()
