"""What a run's screen shows: which job begins, how far the run is, how long it still takes; of a failed job its log.

Snakemake's logger plugins are packages that must be installed; this is a formatter for the handler that it has anyway. Its log
file keeps Snakemake's own words.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache import Cache
from axbake.forecast.history import builds_in
from axbake.forecast.left import Left
from axbake.forecast.machine import Machine
from axbake.forecast.work import Bake
from axbake.jobs.failure import INTERRUPTED, SILENT, describe_failure
from axbake.printable import printable, wrapped
from axbake.units import duration

if TYPE_CHECKING:
    from axbake.jobs.display import Display

logger = logging.getLogger(__name__)
SNAKEMAKES = "DefaultStreamHandler"  # the name that Snakemake 9 gives to its handler of the screen
UNSAID = {LogEvent.PROGRESS, LogEvent.RESOURCES_INFO, LogEvent.RUN_INFO, LogEvent.JOB_STARTED}
# What Snakemake says before the first job and around the others; `header` says what of it is for people.
CHATTER = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Using shell: ",
    "Conda environments: ignored",
    "Singularity containers: ignored",
    "Select jobs to execute",
    "Execute ",
    "Exiting because a job execution failed",
    "Complete log(s): ",
    "Elapsed time: ",
)
NOTHING = "Nothing to be done"  # how Snakemake begins to say so
MOST_NAMES = 5  # of models in a line, or of reports
SOON = 2.0  # s; by then this process knows of a Ctrl-C that ended its jobs, also on a machine with much to do
FAILED = (
    "At least one job did not complete successfully"  # Snakemake's last words on it; each failed job has had its own
)


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
        terminal: file descriptor of the terminal that shows them; None of a file, in which lines are as long as they are.
        colours: whether there may be any.
        reports: words on where the reports are, for a run that has nothing to do.
    """

    def __init__(
        self,
        usual: logging.Formatter | None,
        *,
        terminal: int | None = None,
        colours: bool = True,
        reports: Callable[[], str] = str,
    ):
        super().__init__()
        self.usual = usual or logging.Formatter()
        self.terminal = terminal
        self.colours = colours
        self.display: Display | None = None
        self._reports = reports
        self._began = time.time()
        self.expect([], {}, cores=1)

    def expect(
        self, jobs: list[Pending], seconds: Mapping[int, float], *, cores: int, interrupted: Sequence[int] = ()
    ) -> None:
        """Know what the run is to do.

        Args:
            seconds: of each job by number, as `forecasts` has them.
            cores: that the run may use.
            interrupted: signals by which the user stopped the run, once he has.
        """
        self.interrupted = interrupted
        self.total = len(jobs)
        self.messages: dict[int, str] = {}  # of the jobs that began, by number
        # A job that takes half of the cores shares its time with another one.
        shares = {job.number: min(job.threads, cores) / cores for job in jobs}
        self.seconds = seconds
        self.left = Left(seconds, shares, {job.number: job.needs for job in jobs})

    def open_display(self) -> None:
        """From now on, until `close_display`, show the run live where that can be done."""
        if self.terminal is None or os.environ.get("TERM", "dumb") == "dumb":
            return
        try:
            # Here and not above: each job reads the rules again, and none needs rich.
            from axbake.jobs.display import Display

            display = Display(self.terminal, self.total, self.seconds, self.remaining, colours=self.colours)
            display.start()
        except Exception:
            logger.debug("no display", exc_info=True)
        else:
            self.display = display

    def close_display(self) -> None:
        """Show no more than lines."""
        if self.display:
            self.display.stop()

    def show_live(self, record: logging.LogRecord) -> bool:
        """Give the display what it shows of *record*; whether it is to be said in a line, too."""
        if self.display is None or not self.display.works:
            return True
        try:
            return self._show_live(self.display, record)
        except Exception:
            logger.debug("not shown: %s", record, exc_info=True)
            return True

    def _show_live(self, display: Display, record: logging.LogRecord) -> bool:
        event, told = getattr(record, "event", None), vars(record)
        if event == LogEvent.JOB_INFO:
            if self.format(record):
                display.begin(told["jobid"], told["rule_msg"], next(map(Path, told["log"]), None))
            return False
        if event == LogEvent.JOB_FINISHED:
            display.finish(told["job_id"])
        elif event == LogEvent.JOB_ERROR:
            display.fail(told["jobid"])
        return True

    def format(self, record: logging.LogRecord) -> str:
        """The record's words; none for what is not worth a line."""
        words = printable(self._words(record))
        return words if self.terminal is None else wrapped(words, os.get_terminal_size(self.terminal).columns or 80)

    def _words(self, record: logging.LogRecord) -> str:
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
        if text.startswith(NOTHING):
            return "\n".join(filter(None, [self.usual.format(record), self._reports()]))
        if event in UNSAID or (event is None and text.startswith(CHATTER)):
            return ""
        if event == LogEvent.ERROR and ("CalledProcessError" in text or FAILED in text):
            return ""  # the job and `_failed` report that its process ended badly
        return self.usual.format(record)

    def _begins(self, number: int, message: str | None) -> str:
        if not message:
            return ""
        self.messages[number] = message
        return f"[{len(self.messages)} of {self.total}{self.remaining()}] {message}"

    def _failed(self, what: str, logs: list[str], said: str | None) -> str:
        last = time.monotonic() + SOON
        # A Ctrl-C may end a job, which then had no time to write, before Python tells this process of the same Ctrl-C.
        while (reason := self._why(logs, said)) == SILENT and time.monotonic() < last:
            time.sleep(0.05)
        if reason in ("", INTERRUPTED):
            return f"Interrupted: {what}"
        # A job here has told its error already; one on a cluster has not, and *said* are the cluster's words.
        why = [f"  {reason}"] if said else []
        return "\n".join([f"FAILED: {what}", *why, *(f"  its log: {log}" for log in logs)])

    def _why(self, logs: list[str], said: str | None) -> str:
        return describe_failure(map(Path, logs), said, since=self._began, interrupted=bool(self.interrupted))

    def remaining(self, elapsed: Mapping[int, float] = MappingProxyType({})) -> str:
        """How long the jobs that have not ended take, if none of their results is stored.

        Args:
            elapsed: seconds that the jobs which run have taken, by number.
        """
        seconds = self.left.after(elapsed) if elapsed else self.left.seconds
        return f", up to {duration(seconds)} left" if seconds >= 1 else ""


def install_screen(logger: logging.Logger, reports: Callable[[], str]) -> Screen | None:
    """Have Snakemake's *logger* show a `Screen`; None if a logger plugin shows the run.

    Args:
        reports: as `Screen` has it.
    """
    handler: Any = next((one for one in logger.handlers if one.name == SNAKEMAKES), None)
    if handler is None:
        return None
    terminal = os.dup(handler.stream.fileno()) if handler.stream.isatty() else None
    colours = not handler.nocolor and not os.environ.get("NO_COLOR")
    screen = Screen(handler.formatter, terminal=terminal, colours=colours, reports=reports)
    handler.colors = {level: colour for level, colour in handler.colors.items() if level != "INFO"}
    handler.nocolor = not colours
    handler.addFilter(screen.show_live)
    handler.setFormatter(screen)
    return screen


def header(jobs: Mapping[str, int], *, cores: int, cache: Path, log: Path | None) -> str:
    """What a run is going to do, and where.

    Args:
        jobs: how many, by model.
        log: Snakemake's own.
    """
    of_each = ", ".join(f"{number} of {model}" for model, number in list(jobs.items())[:MOST_NAMES])
    others = f" and {counted(len(jobs) - MOST_NAMES, 'other model')}" if len(jobs) > MOST_NAMES else ""
    lines = [
        f"{counted(sum(jobs.values()), 'job')} on {counted(cores, 'core')}: {of_each}{others}",
        f"  build cache: {short_path(cache)}",
    ]
    return "\n".join([*lines, f"  Snakemake's log: {short_path(log)}"] if log else lines)


def counted(number: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def short_path(path: Path) -> str:
    """*path* from the working directory on, or from the user's home."""
    for base, mark in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return f"{mark}{path.relative_to(base)}"
    return str(path)


def show_reports(paths: Sequence[str | Path]) -> str:
    """Where the reports of a run are that had nothing to do."""
    shown = [f"  report: {path}" for path in paths[:MOST_NAMES]]
    more = f"  and {len(paths) - MOST_NAMES} more; `make report` collects them on one page."
    return "\n".join(shown + [more] * (len(paths) > MOST_NAMES))


def show_made(paths: list[str]) -> str:
    """What a run made, and what to do with it."""
    lines = [f"Made {path}" for path in paths]
    if any(path.endswith("/report.html") for path in paths):
        lines.append("Next: open report.html in a browser. `make report` collects all models on one page.")
    elif models := {Path(path).parts[1] for path in paths if path.endswith(".axmodel")}:
        model = models.pop() if len(models) == 1 else "NAME"
        lines.append(f"Next: make results/{model}/report.html too; it shows what the models draw.")
    return "\n".join(lines)
