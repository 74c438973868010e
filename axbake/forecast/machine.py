"""How fast this machine is: what its builds took, beside what they would have taken where the costs were measured."""

import statistics
from collections.abc import Iterable, Sequence

from axbake.forecast.history import Build
from axbake.forecast.work import Bake, Work, work_of

#: Seconds of one unit of each kind of work (docs/numbers.md, «Forecasts»), on 2 cores
COSTS = {
    "fixed": 1.0,
    "torch": 1 / 70e9,
    "bfloat16": 1 / 140e9,
    "onnx": 1 / 70e9,
    "pictures": 1 / 90e9,
    "parameters": 6e-9,
    "operators": 7e-5,
    "traced": 0.04,
    "bytes": 1 / 500e6,
    "fetched": 1 / 20e6,
    "vendor": 1.0,
}
START = 2.5  # seconds until a job's process has read the workflow
NEAR = 2  # builds whose work is within this factor of a job's say what it takes; others only how fast the machine is
NEWEST = 5  # of them that count
MOST = 5.0  # factor by which a machine is slower or faster, at most; more is an accident


def usual_seconds(work: Work) -> float:
    """Seconds that *work* took where the costs were measured."""
    return sum(amount * COSTS[kind] for kind, amount in work.items())


class Machine:
    """How long steps take on the machine that did *builds*, the newest first."""

    def __init__(self, builds: Iterable[Build]):
        #: Of each kind of step: usual seconds of a build, and how many times as long it took
        self.known: dict[tuple[str, bool], list[tuple[float, float]]] = {}
        for build in builds:
            usual = usual_seconds(build.work)
            # Entries have tenths of seconds.
            self.known.setdefault(_kind(build.step, build.work), []).append(
                (usual, (build.seconds + 0.1) / (usual + 0.1))
            )
        own = [known for (_, vendors), known in self.known.items() if not vendors]
        ratios = [ratio for known in own for usual, ratio in known if usual >= 1]
        self.factor = min(MOST, max(1 / MOST, statistics.median(ratios))) if ratios else 1.0

    def seconds(self, step: str, component: str | None, bake: Bake) -> float:
        """Forecast of the wall time of a step, in seconds; never 0."""
        work = work_of(step, component, bake)
        usual = usual_seconds(work)
        known = self.known.get(_kind(step, work), [])
        near = [ratio for other, ratio in known if 1 / NEAR < (other + 0.1) / (usual + 0.1) < NEAR]
        return max(0.1, usual * (statistics.median(near[:NEWEST]) if near else self.factor))

    @property
    def start(self) -> float:
        """Seconds that a job takes whatever it does."""
        return START * self.factor

    def job_seconds(self, steps: Sequence[tuple[str, str | None]], bake: Bake) -> float:
        """Forecast of the wall time of a job that does *steps*, functions' names each with a component."""
        return self.start + sum(self.seconds(step, component, bake) for step, component in steps)


def _kind(step: str, work: Work) -> tuple[str, bool]:
    """The step, and whether it is the vendor's compiler that does it, whose time tells nothing of the emulator's."""
    return step, "vendor" in work
