"""A run on a terminal: above, a line for each finished job and all messages; below, the jobs that run and how far the run is.

What anybody writes to standard error and output meanwhile, Snakemake and the jobs' own processes too, comes through a pipe to one
thread, which alone writes to the terminal. So nothing tears the live part, and nothing is lost. How far a job is stands in its
log, wherever it runs.
"""

import atexit
import contextlib
import logging
import os
import queue
import re
import select
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from axbake.jobs.record import read_records
from axbake.printable import one_line, wrapped
from axbake.units import duration

logger = logging.getLogger(__name__)
REFRESH = 0.5  # seconds between two looks at the logs
END = 4096  # bytes of a log's end that are looked at
CUT = "…"  # stands for what is left out
BAR = 10  # columns of a job's bar
ECHO = 3  # columns on the right that stay free: a terminal shows `^C` behind the last line
TIME = 11  # columns of a time: `59 min 59 s`
SAID = re.compile(r"^\S+ \S+ INFO (.*)\n", re.MULTILINE)  # as `axbake.jobs.running.job_log` writes it
PART = re.compile(r"(?<![\d.,])(\d+) of (\d+)(?![\d.,]*\d)")


@dataclass
class Running:
    """A job that runs, or waits for a cluster to start it.

    Args:
        log: its log; None if it has none.
        seconds: that it may take; None where nothing is known.
    """

    message: str
    log: Path | None
    seconds: float | None
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._first = self._seen = self._state()  # what is there already is of an earlier run
        self._said = ""

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun

    def said(self) -> str:
        """The last line of its log that is for people."""
        state = self._state()
        if self.log and state and state != self._seen:
            self._seen = state
            with self.log.open("rb") as file:
                file.seek(max(0, state[0] - END))
                lines = SAID.findall(file.read().decode(errors="replace"))
            self._said = one_line(lines[-1]) if lines else self._said
        return self._said

    def from_cache(self) -> bool:
        """Whether all of it came from the build cache."""
        records = read_records(self.log) if self.log and self._state() != self._first else []
        return bool(records) and all(record.stored for record in records)

    def _state(self) -> tuple[int, int] | None:
        try:
            state = self.log.stat() if self.log else None
        except OSError:
            return None
        return (state.st_size, state.st_mtime_ns) if state else None


class Display:
    """The live part of a run's screen.

    Args:
        terminal: its file descriptor.
        total: jobs of the run.
        seconds: that each job may take, by number.
        remaining: words on the time that is left, empty if nothing is known; given the seconds that each running job has taken.
        colours: whether there are any.
    """

    def __init__(
        self,
        terminal: int,
        total: int,
        seconds: Mapping[int, float],
        remaining: Callable[[Mapping[int, float]], str],
        *,
        colours: bool = True,
    ) -> None:
        self.terminal = terminal
        self.total = total
        self.works = False
        self._seconds = dict(seconds)
        self._remaining = remaining
        self._colours = colours
        self._running: dict[int, Running] = {}
        self._finished = 0
        self._begun = time.monotonic()
        self._lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()  # of finished jobs
        self._rest = b""  # that came, and is not shown yet
        self._ended = threading.Event()

    def start(self) -> None:
        """Show it, until `stop`."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._reading, writing = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True, name="display")
        self.works = True
        self._thread.start()
        self._redirected = {number: os.dup(number) for number in (1, 2) if os.isatty(number)}
        atexit.register(self.stop)
        for number in self._redirected:
            os.dup2(writing, number)
        os.close(writing)

    def stop(self) -> None:
        """Leave the terminal as it was, with all that was said on it."""
        sys.stdout.flush()
        sys.stderr.flush()
        for number, terminal in self._redirected.items():
            os.dup2(terminal, number)
        self._ended.set()
        self._thread.join(timeout=10)
        self.works = False

    def begin(self, number: int, message: str, log: Path | None) -> None:
        """Show that job *number* runs."""
        self._running[number] = Running(message, log, self._seconds.get(number))

    def finish(self, number: int) -> None:
        """Show that job *number* ended well."""
        job = self._running.pop(number, None)
        if job:
            self._finished += 1
            took = "cache" if job.from_cache() else duration(job.elapsed)
            self._lines.put((took, job.message))

    def fail(self, number: int) -> None:
        """Show no more of job *number*."""
        self._running.pop(number, None)

    def live_part(self, columns: int, rows: int) -> RenderableType:
        """One line per running job, as many as fit into *rows*, and one of the run.

        Args:
            columns: that none is wider than; 50 or more.
        """
        jobs = list(self._running.items())
        shown, left_out = jobs[: max(rows - 3, 1)], jobs[max(rows - 3, 1) :]
        says = {number: job.said() for number, job in shown}  # once: a job may write at any time
        room = columns - TIME - BAR - 7
        message = min(
            max((len(job.message) for _, job in shown), default=0),
            room - max((len(part_of(said)) for said in says.values()), default=0),
        )
        table = Table.grid(padding=(0, 2, 0, 0))
        for width in (TIME, max(message, 1), BAR, room - message):
            table.add_column(width=width, no_wrap=True)
        table.columns[0].justify = "right"
        for number, job in shown:
            part = part_of(says[number])
            what = shorten(says[number], room - message)
            table.add_row(
                duration(job.elapsed),
                Text(shorten(job.message, message)),
                bar_of(job, says[number]),
                Text(part if part not in what or what == CUT else what, "dim"),
            )
        more = [Text(f"{'':{TIME}}  and {len(left_out)} more")] if left_out else []
        return Group(table, *more, self._line_of_run(columns, {number: job.elapsed for number, job in jobs}))

    # In its thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with os.fdopen(os.dup(self.terminal), "w", encoding=sys.stderr.encoding, errors="backslashreplace") as file:
                self._show(Console(file=file, force_terminal=True, no_color=not self._colours or None))
        except Exception:
            self.works = False  # the run goes on, and its lines are then as in a file
            logger.debug("the display ended", exc_info=True)
        for data in self._come():
            # Whatever becomes of the terminal: who writes must not wait for ever.
            with contextlib.suppress(OSError):
                os.write(self.terminal, self._rest + data)
            self._rest = b""

    def _come(self) -> Iterator[bytes]:
        """What is written to standard error and output, until the end; nothing every now and then."""
        while True:
            ended = self._ended.is_set()
            if select.select([self._reading], [], [], 0 if ended else REFRESH)[0]:
                data = os.read(self._reading, 65536)
                if not data:
                    return
                yield data
            elif ended:
                return
            else:
                yield b""

    def _show(self, console: Console) -> None:
        def live_part() -> RenderableType:
            columns, rows = os.get_terminal_size(self.terminal)
            console.size = ConsoleDimensions(columns or 80, rows or 24)
            return self.live_part(max(console.width - ECHO, 50), console.height)

        decoder = AnsiDecoder()
        with Live(
            console=console,
            get_renderable=live_part,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live:
            live.refresh()
            for data in self._come():
                self._rest += data
                while b"\n" in self._rest:
                    line, _, rest = self._rest.partition(b"\n")
                    self._print(console, decoder, line)
                    self._rest = rest
                self._print_finished(console)
                live.refresh()
            if self._rest:
                self._print(console, decoder, self._rest)
                self._rest = b""
            self._lines.put((self._took(), self._counts()))
            self._print_finished(console)

    def _print_finished(self, console: Console) -> None:
        while not self._lines.empty():
            console.print(finished_line(*self._lines.get(), console.width), soft_wrap=True)

    def _print(self, console: Console, decoder: AnsiDecoder, line: bytes) -> None:
        text = (
            line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
        )  # of a line that was written over, the last
        if "\x1b" not in text:  # what is coloured is Snakemake's, and wrapped
            text = wrapped(text, console.width)
        for part in text.split("\n"):
            console.print(decoder.decode_line(part), soft_wrap=True)

    def _line_of_run(self, columns: int, elapsed: Mapping[int, float]) -> RenderableType:
        told = shorten(f"{self._counts()}{self._remaining(elapsed)}", columns - TIME - BAR - 5)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=TIME, justify="right", no_wrap=True)
        line.add_column(width=columns - TIME - len(told) - 5, no_wrap=True)
        line.add_column(no_wrap=True)
        bar = ProgressBar(total=max(self.total, 1), completed=self._finished)
        line.add_row(Text(self._took(), "bold"), bar, Text(told, "bold"))
        return line

    def _counts(self) -> str:
        return f"{self._finished} of {self.total} jobs"

    def _took(self) -> str:
        return duration(time.monotonic() - self._begun)


def finished_line(took: str, message: str, columns: int) -> Text:
    """The line of a job that ended well; where it is too long, what goes on stands below the message."""
    indent = f"\n{'':{TIME}}  "
    return Text.assemble((f"{took:>{TIME}}", "green"), "  ", wrapped(message, columns - TIME - 2).replace("\n", indent))


def shorten(text: str, width: int) -> str:
    """*text*, cut after a word if it is longer than *width*."""
    return textwrap.shorten(text, max(width, len(CUT)), placeholder=f" {CUT}").strip()


def part_of(said: str) -> str:
    """How much is done, by what a job said: `12 of 64`, or nothing."""
    part = PART.search(said)
    return part[0] if part else ""


def bar_of(job: Running, said: str) -> ProgressBar:
    """The bar of a job that *said* this last: by how much is done, else by the time that it may take; else one that moves."""
    part = PART.search(said)
    if part and int(part[1]) < int(part[2]):  # what is all done says nothing of what the job does now
        return ProgressBar(total=int(part[2]), completed=int(part[1]), width=BAR)
    if job.seconds and job.elapsed < job.seconds:
        return ProgressBar(total=job.seconds, completed=job.elapsed, width=BAR)
    return ProgressBar(total=None, pulse=True, width=BAR)
