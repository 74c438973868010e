"""What the graphs of a denoiser take, and ranges of every activation in them, by the emulator's own observer.

Where it is a chain of graphs, all samples go through one graph, then through the next: the disk holds what graphs pass on that is
still to be taken, and memory one graph.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from axbake.calibration.denoiser_samples import TakenInputs, Which, load_samples
from axbake.emulator.graph import Graph, load_graph, runtime_errors, session
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


def chain_inputs(graphs: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of what a chain of graphs takes, by name: all inputs that no graph before makes."""
    shapes: dict[str, tuple[int, ...]] = {}
    made: set[str] = set()
    for graph in map(load_graph, graphs):
        shapes |= {spec.name: spec.shape for spec in graph.inputs if spec.name not in made}
        made |= {spec.name for spec in graph.outputs}
    return shapes


def observe_chain(
    graphs: Sequence[Path],
    samples: Callable[[], Iterator[Sample]],
    count: int,
    *,
    beside: Path,
    what: str,
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
    for number, (graph, feeds, keep) in enumerate(_stages(graphs, samples, beside)):
        ranges = record_ranges(
            graph,
            feeds,
            on_sample=lambda done, before=number * count: tell(before + done, count * len(graphs)),  # type: ignore[misc]
            on_outputs=keep,
        )
        outer = {spec.name for spec in [*graph.inputs, *graph.outputs]}
        names = tuple(name if name in outer else f"{graphs[number].stem}/{name}" for name in ranges.names)
        found.append(replace(ranges, names=names) if len(graphs) > 1 else ranges)
    return _joined(found)


def feeds_of_chain(
    graphs: Sequence[Path], samples: Callable[[], Iterator[Sample]], *, beside: Path
) -> Iterator[tuple[int, int, Sample]]:
    """Numbers of a graph and of a sample, and what the graph takes of it, for all samples of one graph after the other.

    A graph runs only if later ones take what it gives: of a single graph nothing runs.

    Args:
        samples, beside: as `observe_chain` has them.
    """
    for number, (graph, feeds, keep) in enumerate(_stages(graphs, samples, beside)):
        names = [spec.name for spec in graph.outputs]
        runner = session(graph.model, graph.constants) if keep else None
        for row, feed in enumerate(feeds):
            yield number, row, feed
            if keep and runner:
                with runtime_errors("calibration run"):
                    keep(dict(zip(names, runner.run(names, dict(feed)), strict=True)))


Keep = Callable[[Sample], None]


def _stages(
    graphs: Sequence[Path], samples: Callable[[], Iterator[Sample]], beside: Path
) -> Iterator[tuple[Graph, Iterator[Sample], Keep | None]]:
    """Each graph of a chain, what it takes of each sample, and what must get its outputs; None: no later graph takes them."""
    taken = _taken(graphs)
    with tempfile.TemporaryDirectory(dir=beside) as place:
        passed = Passed(Path(place))
        for number, path in enumerate(graphs):
            graph, later = load_graph(path), _later(taken, number)
            yield graph, passed.feeds(graph, samples()), functools.partial(passed.keep, later=later) if later else None
            passed.rewind()


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

    def feeds(self, graph: Graph, samples: Iterable[Sample]) -> Iterator[Sample]:
        """What *graph* takes of the chain's inputs, and of what the graphs before made of them, sample by sample."""
        for row, sample in enumerate(samples):
            known = dict(sample) | self._kept(row)
            yield {spec.name: known[spec.name] for spec in graph.inputs}

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


def run_chain(
    graphs: Sequence[Path],
    samples: Sequence[Sample],
    run: Callable[[int, list[dict[str, np.ndarray]], list[str]], list[dict[str, np.ndarray]]],
) -> None:
    """Take *samples* through a chain of graphs, graph by graph; few of them, since they stay in memory.

    Args:
        run: gets a graph's number, what it takes of each sample, and names of its outputs that later graphs take; gives these.
    """
    taken = _taken(graphs)
    known = [dict(sample) for sample in samples]
    for number, path in enumerate(graphs):
        feeds = [{name: one[name] for name in taken[number]} for one in known]
        later = _later(taken, number)
        made = run(number, feeds, [spec.name for spec in load_graph(path).outputs if spec.name in later])
        known = [_those(one | more, later) for one, more in zip(known, made, strict=True)]


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


def observe_denoiser(
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    trajectories: Path,
    schedule: Path,
    record: Path,
    *,
    guidance_scale: float,
    ranges: Path,
) -> None:
    """Observe a denoiser on the samples that it is calibrated with.

    Args:
        graphs, tensors, trajectories, schedule, record, guidance_scale: of `axbake.calibration.tars.calibrate_denoiser`.
        ranges: `.npz` to write: the range of each activation of the graphs on each of them (`write_observed`).
    """
    taken = TakenInputs.of(chain_inputs(graphs))
    recorded = load_samples(trajectories, schedule, taken)
    there = recorded.recorded(guidance_scale)
    chosen = [there[row] for row in chosen_rows(record)]
    found = observe_chain(
        graphs, lambda: recorded.all_inputs(chosen), len(chosen), beside=ranges.parent, what="observing:"
    )
    outputs = frozenset(output.name for output in load_graph(graphs[-1]).outputs)
    write_observed(ranges, Observed(chosen, found, taken, outputs))


def chosen_rows(record: Path) -> list[int]:
    """Numbers of the samples that a denoiser is calibrated with, among the recorded ones."""
    return [sample["row"] for sample in json.loads(record.read_text(encoding="utf-8"))["samples"]]


def write_observed(path: Path, observed: Observed) -> None:
    """Write *observed* to an `.npz`, for N samples and T tensors.

    `samples` (N, 3) int64: prompt, step, branch; `names` (T,), as `observe_chain` gives them; `low` and `high` (N, T) float32;
    `time_input` and `time_shape`: the input for the time; `outputs`: the network's.
    """
    content = {
        "samples": np.array(observed.samples),
        "names": np.array(observed.ranges.names),
        "low": observed.ranges.low,
        "high": observed.ranges.high,
        "time_input": np.array(observed.taken.time),
        "time_shape": np.array(observed.taken.shape),
        "outputs": np.array(sorted(observed.outputs)),
    }
    path.write_bytes(npz_bytes(content))


def read_observed(path: Path) -> Observed:
    """What `write_observed` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        samples = [(int(prompt), int(step), int(branch)) for prompt, step, branch in arrays["samples"]]
        ranges = Ranges(tuple(map(str, arrays["names"])), arrays["low"], arrays["high"])
        taken = TakenInputs(str(arrays["time_input"]), tuple(map(int, arrays["time_shape"])))
        return Observed(samples, ranges, taken, frozenset(map(str, arrays["outputs"])))
