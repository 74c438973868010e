"""A program that runs for an hour, is heard line by line, and is gone when its job is: ended, interrupted, late or killed."""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from axbake.errors import AxbakeError

logger = logging.getLogger(__name__)
GRACE = 10  # seconds between asking a program to end and ending it; `scancel` leaves a job 30
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl(2)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class TimeLimit(AxbakeError):
    """A program reached its time limit."""


def listen(
    command: list[str],
    place: Path,
    hear: Callable[[str], None],
    *,
    environment: Mapping[str, str],
    minutes: float,
    end: Callable[[], None],
) -> int:
    """Exit status of *command*, run in *place*; *hear* is given each line that it prints, a progress bar's steps too.

    However this ends (SIGINT, SIGTERM or SIGHUP to this process, an error of *hear*, the time limit), the program and all that
    it started are ended first. Where this process is killed, Linux ends the program.

    Args:
        minutes: that the program may take; 0: as many as it likes.
        end: ends what is no child of the program, such as its container. It is called always, also after success.

    Raises:
        TimeLimit: it took longer.
        OSError: it does not start.
    """
    late = threading.Event()

    def watch() -> None:
        try:
            process.wait(minutes * 60 or None)
        except subprocess.TimeoutExpired:
            late.set()
            end()
        # Also after a program has died alone: children of it that live on would keep the pipe open for ever.
        _end_group(process)

    with _signals_raise():
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which ends the program in order
            preexec_fn=_die_with_parent,
        )
        try:
            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            assert process.stdout
            for line in process.stdout:
                hear(line.rstrip())
            watcher.join()
        finally:
            with _signals_wait():
                end()
                _end_group(process)
                end()  # what the program had just begun to start when it was ended
                assert process.stdout
                process.stdout.close()
    if late.is_set():
        raise TimeLimit(f"{Path(command[0]).name}: not done after {minutes:g} minutes")
    return process.returncode


def _end_group(process: subprocess.Popen) -> None:
    """End the process and those that it started: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _die_with_parent() -> None:
    if LIBC:
        LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGTERM)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP unwind the stack as SIGINT does."""

    def leave(number: int, frame: FrameType | None) -> None:
        logger.info("ended by %s", signal.Signals(number).name)
        raise SystemExit(128 + number)

    with _handlers({signal.SIGTERM: leave, signal.SIGHUP: leave}):
        yield


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Within, a second Ctrl-C does not interrupt the clearing up of the first."""
    with _handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handlers(handlers: Mapping) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    heard = [number for number in handlers if signal.getsignal(number) != signal.SIG_IGN]  # `nohup` ignores SIGHUP
    before = {number: signal.signal(number, handlers[number]) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
