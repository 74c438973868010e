"""What a job says of itself: a line of its log, which the report reads. A log is a declared file of every rule."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)
MARK = " DEBUG job record: "  # in the log; below what the screen shows


@dataclass(frozen=True)
class JobRecord:
    """A step of a job that ended well."""

    step: str  # the function's name
    component: str | None
    stored: bool  # whether the result came from the build cache
    seconds: float  # wall time of this step
    work_seconds: float  # wall time of the build whose result this is; that of this job, where it built
    peak_memory: float  # GiB, of that build
    made: str  # when that build ended: UTC, ISO 8601
    tools: dict[str, str]  # package -> version that it was built with
    ended: str | None = None  # when this step ended here: UTC, ISO 8601; None in logs of earlier versions
    #: Processor time of this step, of all its threads and of programs that it ran, without the system's; None likewise
    processor_seconds: float | None = None


def log_record(record: JobRecord) -> None:
    """Write *record* to the job's log."""
    logger.debug("job record: %s", json.dumps(asdict(record), sort_keys=True))


def read_records(log: Path) -> list[JobRecord]:
    """The records in a job's *log*, one a step; none where there is no such log, or none in it."""
    if not log.is_file():
        return []
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if MARK in line]
    return [JobRecord(**json.loads(line.partition(MARK)[2])) for line in lines]


def last_made(log: Path) -> dict[tuple[str, str | None], str]:
    """When the results were built that a job had the last time, by step and component; none if its *log* does not say it."""
    try:
        return {(record.step, record.component): record.made for record in read_records(log)}
    except (OSError, TypeError, ValueError):  # of another version, or cut
        return {}
