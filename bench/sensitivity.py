"""What it takes to measure the layers of a baked model's denoiser, beside observing its calibration samples.

    python bench/sensitivity.py RESULTS

RESULTS is a model's directory of results that has its denoiser's graphs (of one graph: `onnx/unet.onnx`), `schedule.npz` and
`calibration/unet.ranges.npz` (of the job that makes `calibration/unet.sensitivity.json`). Three samples of noise are observed,
one is taken back through the network, and one and two are measured, in the processor's seconds, so that other work on the
machine counts less. What the whole takes is computed from these, for as many samples as were recorded, and as a drawing of the
schedule with guidance has. Memory is the peak of this process, and what further samples keep.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import numpy as np
import torch

from axbake.calibration.observation import read_observed
from axbake.emulator.ranges import record_ranges
from axbake.quality.measuring import DIRECTIONS, STEPS
from axbake.quality.network import Network
from axbake.quality.passes import Passes
from axbake.quality.sensitivity import Samples, measure
from axbake.runtime.sampler import load_schedule


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("results", type=Path)
    results = arguments.parse_args().results
    schedule, observed = (
        load_schedule(results / "schedule.npz"),
        read_observed(results / "calibration" / "unet.ranges.npz"),
    )
    steps = sum(schedule.runs_model(step) for step in range(len(schedule.timesteps)))
    network = Network.load([results / "onnx" / "unet.onnx"])
    graph, random = network.graphs[0], np.random.default_rng(0)
    feeds = [{s.name: random.standard_normal(s.shape).astype(s.dtype) for s in graph.inputs} for _ in range(3)]
    marks: list[float] = []
    record_ranges(graph, feeds, on_sample=lambda done: marks.append(time.process_time()))
    observing = (marks[2] - marks[0]) / 2
    ranges = observed.ranges.overall()
    passes, size = Passes(network), sum(network.sizes[name] for name in network.outputs)
    directions = random.standard_normal((2, DIRECTIONS, size)).astype(np.float32)
    begun = time.process_time()
    passes.pull_back(feeds[0], directions[0])
    back = time.process_time() - begun
    spent = []
    for count in (1, 2):
        begun = time.process_time()
        measure(network, ranges, Samples(feeds[:count], directions[:count], range(count)))
        spent.append(time.process_time() - begun)
    kept = sum(one.numel() * 4 for one in passes.forward(feeds[0])[0].values() if isinstance(one, torch.Tensor))
    drawn, seen, recorded = (
        2 * (steps - 1),
        2 * min(STEPS, steps),
        len(observed.samples),
    )  # not back through the first step
    each = spent[1] - spent[0]
    whole = drawn * back + spent[0] + (seen - 1) * each
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    print(f"layers: {len(network.layers)} of {len(network.nodes)} nodes; the number of runs does not depend on it")
    print(f"runs: {drawn} × {2 + DIRECTIONS} through the drawing, {seen} × {3 + DIRECTIONS} of layers")
    print(f"observing: {observing:.2f} s a sample, {recorded * observing:.0f} s for {recorded}")
    print(
        f"back through the network: {back:.2f} s a sample; layers: {each:.2f} s a sample, {spent[0] - each:.2f} s once"
    )
    print(f"sensitivity: {whole:.0f} s, {whole / (recorded * observing):.2f} times observing")
    print(f"peak memory: {peak:.2f} GiB, and {kept * (seen - 2) / 2**30:.2f} GiB for the other samples")


if __name__ == "__main__":
    main()
