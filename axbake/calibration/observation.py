"""Ranges of every activation of a UNet on all that was recorded of it, by the emulator's own observer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from axbake.calibration.unet_samples import Which, load_unet_samples
from axbake.emulator.graph import load_graph
from axbake.emulator.ranges import Ranges, record_ranges
from axbake.npz import npz_bytes
from axbake.runtime.progress import progress


@dataclass(frozen=True)
class Observed:
    """Ranges of T tensors over N samples, and which samples they are of."""

    samples: list[Which]
    ranges: Ranges
    inputs: tuple[str, ...]  # of the network
    outputs: frozenset[str]  # of the network, among the tensors


def observe_unet(
    graph: Path, tensors: Path, trajectories: Path, schedule: Path, *, guidance_scale: float, ranges: Path
) -> None:
    """Run the float UNet on every recorded sample, and keep the range of each of its activations.

    Args:
        graph, tensors: `onnx/unet.onnx` and the file of its weights beside it.
        trajectories: `calibration/trajectories.npz`.
        guidance_scale: at 1 the negative branch does not run, and gives no samples.
        ranges: `.npz` to write, for N samples and T tensors: `samples` (N, 3) int64: prompt, step, branch; `names` (T,);
            `low` and `high` (N, T) float32; `inputs` and `outputs`: the graph's names of them.
    """
    network = load_graph(graph)
    recorded = load_unet_samples(trajectories, schedule, [spec.name for spec in network.inputs])
    samples = recorded.recorded(guidance_scale)
    tell = progress("observing:")
    inputs = recorded.all_inputs(samples)
    observed = record_ranges(network, inputs, on_sample=lambda done: tell(done, len(samples)))
    content = {
        "samples": np.array(samples),
        "names": np.array(observed.names),
        "low": observed.low,
        "high": observed.high,
        "inputs": np.array(recorded.names),
        "outputs": np.array([output.name for output in network.outputs]),
    }
    ranges.write_bytes(npz_bytes(content))


def read_observed(path: Path) -> Observed:
    """What `observe_unet` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        samples = [(int(prompt), int(step), int(branch)) for prompt, step, branch in arrays["samples"]]
        ranges = Ranges(tuple(map(str, arrays["names"])), arrays["low"], arrays["high"])
        inputs, outputs = (tuple(map(str, arrays[name])) for name in ("inputs", "outputs"))
        return Observed(samples, ranges, inputs, frozenset(outputs))
