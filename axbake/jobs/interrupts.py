"""Ctrl-C ends a job wherever the job is."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType

SOON = 0.1  # s; by then the code has returned that lost the interrupt


def interrupt_in_a_word() -> None:
    """Have a Ctrl-C that ends this process say so, where Python would print where the process was."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


@contextlib.contextmanager
def interrupts_insist() -> Iterator[None]:
    """Within, an interrupt that is lost comes again.

    Python raises KeyboardInterrupt wherever the program is. Where that is a `__del__` or a callback, out of which nothing can be
    raised, Python says «Exception ignored», and the job would go on to its end: of minutes, or hours.
    """
    before = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            return before(lost)
        again = threading.Timer(SOON, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        return again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
