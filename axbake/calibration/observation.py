"""Ranges of every activation of a denoiser on all that was recorded of it, by the emulator's own observer.

Where it is a chain of graphs, all samples go through one graph, then through the next: the disk holds what graphs pass on that is
still to be taken, and memory one graph.
"""

import functools
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
        ranges: `.npz` to write, for N samples and T tensors: `samples` (N, 3) int64: prompt, step, branch; `names` (T,),
            as `observe_chain` gives them; `low` and `high` (N, T) float32; `time_input` and `time_shape`: the input for the time;
            `outputs`: the last graph's.
    """
    taken = TakenInputs.of(chain_inputs(graphs))
    recorded = load_samples(trajectories, schedule, taken)
    samples = recorded.recorded(guidance_scale)
    observed = observe_chain(
        graphs, lambda: recorded.all_inputs(samples), len(samples), beside=ranges.parent, what="observing:"
    )
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


def observe_chain(
    graphs: Sequence[Path], samples: Callable[[], Iterator[Sample]], count: int, *, beside: Path, what: str
) -> Ranges:
    """Ranges of all activations of a chain of graphs on *count* samples.

    What graphs take and give has its own name, and counts once, where it comes first. What is inside a graph is called
    `{graph}/{tensor}`, since graphs call their tensors alike; of a single graph `{tensor}`.

    Args:
        samples: gives the chain's inputs, sample by sample, each time that it is called.
        beside: directory in whose file system there is room for what the graphs pass on.
        what: the lines of progress begin with it.
    """
    tell = progress(what)
    found: list[Ranges] = []
    taken = _taken(graphs)
    with tempfile.TemporaryDirectory(dir=beside) as place:
        passed = Passed(Path(place))
        for number, path in enumerate(graphs):
            graph, later = load_graph(path), _later(taken, number)
            feeds = (passed.feed(graph, sample, row) for row, sample in enumerate(samples()))
            ranges = record_ranges(
                graph,
                feeds,
                on_sample=lambda done, before=number * count: tell(before + done, count * len(graphs)),  # type: ignore[misc]
                on_outputs=functools.partial(passed.keep, later=later) if later else None,
            )
            passed.rewind()
            outer = {spec.name for spec in [*graph.inputs, *graph.outputs]}
            names = tuple(name if name in outer else f"{path.stem}/{name}" for name in ranges.names)
            found.append(replace(ranges, names=names) if len(graphs) > 1 else ranges)
    return _joined(found)


def _taken(graphs: Sequence[Path]) -> list[list[str]]:
    """Names of what each graph takes, in its order."""
    return [[spec.name for spec in load_graph(path).inputs] for path in graphs]


def _later(taken: Sequence[Sequence[str]], number: int) -> set[str]:
    """Names of what the graphs behind graph *number* take; none behind the last."""
    return {name for names in taken[number + 1 :] for name in names}


def _those(arrays: Sample, names: Container[str]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name in names}


class Passed:
    """What the graphs of a chain pass on, on disk: one file a sample, with what is still to be taken."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._row = 0

    def feed(self, graph: Graph, sample: Sample, row: int) -> dict[str, np.ndarray]:
        """What *graph* takes of the chain's inputs, and of what the graphs before made of them."""
        known = dict(sample) | self._kept(row)
        return {spec.name: known[spec.name] for spec in graph.inputs}

    def keep(self, outputs: Sample, *, later: Container[str]) -> None:
        """Keep what *later* graphs take: of what a graph made of the next sample, and of what those before it made."""
        known = self._kept(self._row) | dict(outputs)
        self._path(self._row).write_bytes(npz_bytes(_those(known, later)))
        self._row += 1

    def rewind(self) -> None:
        """The next sample is the first one again."""
        self._row = 0

    def _path(self, row: int) -> Path:
        return self.directory / f"{row}.npz"

    def _kept(self, row: int) -> dict[str, np.ndarray]:
        if not self._path(row).is_file():
            return {}
        with np.load(self._path(row), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def run_chain(graphs: Sequence[Path], samples: Sequence[Sample]) -> Iterator[list[dict[str, np.ndarray]]]:
    """What each graph of a chain takes of each of *samples*, graph by graph; for few samples, since they stay in memory."""
    from axbake.runtime.session import open_model

    taken = _taken(graphs)
    known = [dict(sample) for sample in samples]
    for number, path in enumerate(graphs):
        feeds = [{name: one[name] for name in taken[number]} for one in known]
        yield feeds
        if later := _later(taken, number):
            session = open_model(path)
            known = [_those(one | session.run(feed), later) for one, feed in zip(known, feeds, strict=True)]


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
