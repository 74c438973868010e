"""What a run's screen shows: which job begins, how far the run is, how long it still takes; of a failed job its log.

Snakemake's logger plugins are packages that must be installed; this is a formatter for the handler that it has anyway. Its log
file keeps Snakemake's own words.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache import Cache
from axbake.forecast.history import builds_in
from axbake.forecast.left import Left
from axbake.forecast.machine import Machine
from axbake.forecast.work import Bake
from axbake.jobs.failure import INTERRUPTED, describe_failure
from axbake.units import duration

SNAKEMAKES = "DefaultStreamHandler"  # the name that Snakemake 9 gives to its handler of the screen
UNSAID = {LogEvent.PROGRESS, LogEvent.RESOURCES_INFO, LogEvent.JOB_STARTED}
CHATTER = ("Select jobs to execute", "Execute ")


@dataclass(frozen=True)
class Pending:
    """A job that this run is to start."""

    number: int  # Snakemake's
    steps: tuple[tuple[str, str | None], ...]  # function's name, component
    threads: int
    needs: tuple[int, ...]  # numbers of the jobs that it waits for
    bake: Bake  # what its model's times depend on


def forecasts(cache: Cache, jobs: list[Pending], *, cores: int) -> dict[int, float]:
    """Seconds that each of *jobs* takes on this machine, by number, if none of its results is stored."""
    machine = Machine(builds_in(cache, cache.entries(), cores=cores))
    return {job.number: machine.job_seconds(job.steps, job.bake) for job in jobs}


class Screen(logging.Formatter):
    """Words for the screen in place of Snakemake's *usual* ones.

    Args:
        seconds: of each job by number, as `forecasts` has them.
        cores: that the run may use.
        interrupted: signals by which the user stopped the run, once he has.
    """

    def __init__(
        self,
        usual: logging.Formatter | None,
        jobs: list[Pending],
        seconds: dict[int, float],
        *,
        cores: int,
        interrupted: Sequence[int] = (),
    ):
        super().__init__()
        self.usual = usual or logging.Formatter()
        self.interrupted = interrupted
        self.total = len(jobs)
        self.messages: dict[int, str] = {}  # of the jobs that began, by number
        # A job that takes half of the cores shares its time with another one.
        shares = {job.number: min(job.threads, cores) / cores for job in jobs}
        self.left = Left(seconds, shares, {job.number: job.needs for job in jobs})

    def format(self, record: logging.LogRecord) -> str:
        """The record's words; none for what is not worth a line."""
        event = getattr(record, "event", None)
        told = vars(record)
        if event == LogEvent.JOB_INFO:
            self.left.begin(told["jobid"])
            return self._begins(told["jobid"], told["rule_msg"])
        if event == LogEvent.JOB_FINISHED:
            self.left.end(told["job_id"])
            return ""
        if event == LogEvent.JOB_ERROR:
            self.left.fail(told["jobid"])
            return self._failed(self.messages.get(told["jobid"], told["rule_name"]), told["log"], told["rule_msg"])
        text = str(record.msg)
        if event in UNSAID or (event is None and text.startswith(CHATTER)):
            return ""
        if event == LogEvent.ERROR and "CalledProcessError" in text:
            return ""  # that the job's process ended badly is said by the job and by `_failed`
        return self.usual.format(record)

    def _begins(self, number: int, message: str | None) -> str:
        if not message:
            return ""
        self.messages[number] = message
        return f"[{len(self.messages)} of {self.total}{self.remaining()}] {message}"

    def _failed(self, what: str, logs: list[str], said: str | None) -> str:
        # A job here has told its error already; one on a cluster has not, and *said* are the cluster's words.
        reason = describe_failure(map(Path, logs), said, since=0, interrupted=bool(self.interrupted))
        if reason in ("", INTERRUPTED):
            return f"Interrupted: {what}"
        why = [f"  {reason}"] if said else []
        return "\n".join([f"FAILED: {what}", *why, *(f"  its log: {log}" for log in logs)])

    def remaining(self) -> str:
        """How long the jobs that have not ended take, if none of their results is stored."""
        return f", up to {duration(self.left.seconds)} left" if self.left.seconds else ""


def show_progress(
    logger: logging.Logger, jobs: list[Pending], cache: Path, *, cores: int, interrupted: Sequence[int]
) -> None:
    """Have Snakemake's *logger* show the screen of a run that starts *jobs*; nothing if a logger plugin shows it."""
    seconds = forecasts(Cache(cache), jobs, cores=cores)
    for handler in logger.handlers:
        if handler.name == SNAKEMAKES:
            handler.setFormatter(Screen(handler.formatter, jobs, seconds, cores=cores, interrupted=interrupted))


def show_made(paths: list[str]) -> str:
    """What a run made, and what to do with it."""
    lines = [f"Made {path}" for path in paths]
    if any(path.endswith("/report.html") for path in paths):
        lines.append("Next: open report.html in a browser; `make report` gathers the pages of all models.")
    elif any(path.endswith(".axmodel") for path in paths):
        lines.append("Next: ask for results/NAME/report.html too, which shows what the models draw.")
    return "\n".join(lines)
