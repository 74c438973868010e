"""Ranges of every activation of a denoiser on all that was recorded of it, by the emulator's own observer.

Where it is a chain of graphs, all samples go through one graph, then through the next: disk and memory hold one graph, and what
two graphs pass on.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from axbake.calibration.denoiser_samples import TakenInputs, Which, load_samples
from axbake.emulator.graph import Graph, load_graph
from axbake.emulator.ranges import Ranges, record_ranges
from axbake.npz import npz_bytes
from axbake.runtime.progress import progress

Sample = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Observed:
    """Ranges of T tensors over N samples, and which samples they are of."""

    samples: list[Which]
    ranges: Ranges
    taken: TakenInputs
    outputs: frozenset[str]  # of the network, among the tensors


def observe_denoiser(
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    trajectories: Path,
    schedule: Path,
    *,
    guidance_scale: float,
    ranges: Path,
) -> None:
    """Run the float denoiser on every recorded sample, and keep the range of each of its activations.

    Args:
        graphs, tensors: its graphs in order, and the files of their weights beside them.
        trajectories: `calibration/trajectories.npz`.
        guidance_scale: at 1 the negative branch does not run, and gives no samples.
        ranges: `.npz` to write, for N samples and T tensors: `samples` (N, 3) int64: prompt, step, branch; `names` (T,);
            `low` and `high` (N, T) float32; `time_input` and `time_shape`: the input for the time; `outputs`: the last graph's.
    """
    taken = TakenInputs.of(chain_inputs(graphs))
    recorded = load_samples(trajectories, schedule, taken)
    samples = recorded.recorded(guidance_scale)
    observed = observe_chain(graphs, lambda: recorded.all_inputs(samples), len(samples), what="observing:")
    content = {
        "samples": np.array(samples),
        "names": np.array(observed.names),
        "low": observed.low,
        "high": observed.high,
        "time_input": np.array(taken.time),
        "time_shape": np.array(taken.shape),
        "outputs": np.array([output.name for output in load_graph(graphs[-1]).outputs]),
    }
    ranges.write_bytes(npz_bytes(content))


def chain_inputs(graphs: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of what a chain of graphs takes, by name: all inputs that no graph before makes."""
    shapes: dict[str, tuple[int, ...]] = {}
    made: set[str] = set()
    for graph in map(load_graph, graphs):
        shapes |= {spec.name: spec.shape for spec in graph.inputs if spec.name not in made}
        made |= {spec.name for spec in graph.outputs}
    return shapes


def observe_chain(graphs: Sequence[Path], samples: Callable[[], Iterator[Sample]], count: int, *, what: str) -> Ranges:
    """Ranges of all activations of a chain of graphs on *count* samples, by the names that they have in their graphs.

    A tensor that is made in one graph and taken by another counts where it is made.

    Args:
        samples: gives the chain's inputs, sample by sample, each time that it is called.
        what: the lines of progress begin with it.
    """
    tell = progress(what)
    found: list[Ranges] = []
    total = count * len(graphs)
    with tempfile.TemporaryDirectory() as place:
        passed = Passed(Path(place))
        for number, path in enumerate(graphs):
            graph = load_graph(path)
            last = number + 1 == len(graphs)
            feeds = (passed.feed(graph, sample, row) for row, sample in enumerate(samples()))
            found.append(
                record_ranges(
                    graph,
                    feeds,
                    on_sample=lambda done, before=number * count: tell(before + done, total),  # type: ignore[misc]
                    on_outputs=None if last else passed.keep,
                )
            )
            passed.close()
    return _joined(found)


class Passed:
    """What the graphs of a chain pass on, on disk: one file a sample."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._row = 0

    def feed(self, graph: Graph, sample: Sample, row: int) -> dict[str, np.ndarray]:
        """What *graph* takes of the chain's inputs and of what the graphs before made of them."""
        path = self.directory / f"{row}.npz"
        known = dict(sample)
        if path.is_file():
            with np.load(path) as arrays:
                known |= {name: arrays[name] for name in arrays.files}
        return {spec.name: known[spec.name] for spec in graph.inputs}

    def keep(self, outputs: Sample) -> None:
        """Keep what a graph made of the next sample, beside what those before it made, which later ones may take too."""
        path = self.directory / f"{self._row}.npz"
        known = {}
        if path.is_file():
            with np.load(path) as arrays:
                known = {name: arrays[name] for name in arrays.files}
        np.savez(path, allow_pickle=False, **known, **outputs)
        self._row += 1

    def close(self) -> None:
        """The graph has seen all samples."""
        self._row = 0


def run_chain(graphs: Sequence[Path], samples: Sequence[Sample]) -> Iterator[list[dict[str, np.ndarray]]]:
    """What each graph of a chain takes of each of *samples*, graph by graph; for few samples, since they stay in memory."""
    from axbake.runtime.session import open_model

    known = [dict(sample) for sample in samples]
    for number, path in enumerate(graphs):
        names = [spec.name for spec in load_graph(path).inputs]
        feeds = [{name: one[name] for name in names} for one in known]
        yield feeds
        if number + 1 < len(graphs):
            session = open_model(path)
            for one, feed in zip(known, feeds, strict=True):
                one |= session.run(feed)


def _joined(found: Sequence[Ranges]) -> Ranges:
    """Ranges of several graphs as one table; a tensor that two have counts once."""
    if len(found) == 1:
        return found[0]
    places = {name: (one, column) for one in reversed(found) for column, name in enumerate(one.names)}
    names = tuple(dict.fromkeys(name for one in found for name in one.names))
    low, high = (
        np.stack([getattr(places[name][0], bound)[:, places[name][1]] for name in names], axis=1)
        for bound in ("low", "high")
    )
    return Ranges(names, low, high)


def read_observed(path: Path) -> Observed:
    """What `observe_denoiser` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        samples = [(int(prompt), int(step), int(branch)) for prompt, step, branch in arrays["samples"]]
        ranges = Ranges(tuple(map(str, arrays["names"])), arrays["low"], arrays["high"])
        taken = TakenInputs(str(arrays["time_input"]), tuple(map(int, arrays["time_shape"])))
        return Observed(samples, ranges, taken, frozenset(map(str, arrays["outputs"])))
