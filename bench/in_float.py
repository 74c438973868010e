"""What a run of an emulated model takes with its weights in float32, and with weights that each run dequantises.

    python bench/in_float.py MODEL.axmodel [--runs 3] [--repeats 1]

Each way loads the model in a process of its own, alternately, runs it once unmeasured and then *runs* times on the same random
inputs, and prints the processor's seconds of loading and of a run, the peak memory, and how far the outputs are apart.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from measure import run


def measure(model: Path, in_float: bool, runs: int, outputs: Path) -> None:
    """Print, as JSON, the processor's seconds of loading and of a run; write what the model gives to *outputs*."""
    from axbake.runtime.session import open_model

    session = open_model(model, in_float=in_float)
    loaded, random = time.process_time(), np.random.RandomState(0)
    feed = {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in session.inputs.items()}
    made = session.run(feed)
    started = time.process_time()
    for _ in range(runs):
        made = session.run(feed)
    np.savez(outputs, **made)
    print(json.dumps({"load": loaded, "run": (time.process_time() - started) / runs}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--repeats", type=int, default=1)
    arguments.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # in_float, outputs
    given = arguments.parse_args()
    if given.one:
        measure(given.model, given.one[0] == "True", given.runs, Path(given.one[1]))
        return
    from axbake.distance import sqnr

    print("weights in every run | load, s | run, s | peak, GiB")
    made = {}
    for _ in range(given.repeats):
        for in_float in (False, True):
            outputs = given.model.with_name(f"in-float-{in_float}.npz")
            cost = run("in_float.py", given.model, "--runs", given.runs, "--one", in_float, outputs)
            said = json.loads(cost.said)
            print(
                f"{'float32' if in_float else '8 bits'} | {said['load']:.1f} | {said['run']:.2f} | {cost.gib:.1f}",
                flush=True,
            )
            with np.load(outputs) as arrays:
                made[in_float] = dict(arrays)
            outputs.unlink()
    for name, wanted in made[False].items():
        print(f"{name}: {sqnr(wanted, made[True][name]):.1f} dB apart")


if __name__ == "__main__":
    main()
