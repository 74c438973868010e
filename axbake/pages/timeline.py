"""Places of a run's steps in time: one row per job, one bar per step. The page draws them as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from axbake.jobs.record import JobRecord

WIDTH = 600  # of the chart, without the jobs' names, in units of the SVG
THINNEST = 1.5  # of a bar, so that every step is seen
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds


@dataclass(frozen=True)
class Bar:
    """A step of a job."""

    x: float
    width: float
    record: JobRecord


@dataclass(frozen=True)
class Timeline:
    """Rows in the order in which their jobs began."""

    rows: list[tuple[str, list[Bar]]]  # a job's name, and its steps
    ticks: list[tuple[str, float]]  # time since the first step began, without what was left out; and where
    pauses: list[tuple[float, float]]  # seconds in which no job ran, of which most is left out; and where


def timeline(jobs: Mapping[str, Sequence[JobRecord]]) -> Timeline | None:
    """When the steps of *jobs*, by name, ran; None if no log says so.

    Jobs of one model may have run on different days. So a pause of all jobs is drawn no longer than a twentieth of the time in
    which some job ran, or ten seconds.
    """
    spans = {name: [(*_span(record), record) for record in of if record.ended] for name, of in jobs.items()}
    rows = sorted((min(of, key=lambda span: span[0])[0], name) for name, of in spans.items() if of)
    if not rows:
        return None
    busy = _union([span[:2] for of in spans.values() for span in of])
    longest = max(10.0, sum(end - start for start, end in busy) / 20)
    # Seconds of the chart at which each busy stretch begins
    begins, pauses, at = [], [], 0.0
    for index, (start, end) in enumerate(busy):
        if index:
            pause = start - busy[index - 1][1]
            if pause > longest:
                pauses.append((pause, at + longest / 2))
            at += min(pause, longest)
        begins.append(at)
        at += end - start
    scale = WIDTH / max(at, 0.001)

    def place(moment: float) -> float:
        index = max(index for index, (start, _) in enumerate(busy) if start <= moment)
        return scale * (begins[index] + moment - busy[index][0])

    def bar(start: float, end: float, record: JobRecord) -> Bar:
        width = max(THINNEST, place(end) - place(start))
        return Bar(round(min(place(start), WIDTH - width), 1), round(width, 1), record)

    apart = next((tick for tick in TICKS if at / tick <= 8), TICKS[-1])
    return Timeline(
        rows=[(name, [bar(*span) for span in spans[name]]) for _, name in rows],
        ticks=[(_clock(apart * number), round(scale * apart * number, 1)) for number in range(int(at / apart) + 1)],
        pauses=[(pause, round(scale * middle, 1)) for pause, middle in pauses],
    )


def _span(record: JobRecord) -> tuple[float, float]:
    """When a step began and ended, in seconds since 1970."""
    assert record.ended
    end = datetime.fromisoformat(record.ended).timestamp()
    return end - record.seconds, end


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """*spans* in order, those that touch as one."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _clock(seconds: float) -> str:
    """A tick's label: `0`, `30 s`, `5 min`, `2 h`."""
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"
