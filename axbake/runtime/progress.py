"""How far a long piece of work is, in lines that come every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)
SECONDS = 5  # between two lines


def progress(what: str) -> Callable[[int, int], None]:
    """A function of (done, total) that logs «*what* 12 of 64»: every few seconds, and when all are done."""
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= SECONDS:
            told = time.monotonic()
            logger.info("%s %d of %d", what, done, total)

    return tell
