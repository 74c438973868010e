"""What a build's log says while it runs: stages, how far each is, figures; and its last lines, where it fails.

The lines are those of the log in AXERA-TECH/pulsar2-docs-en, `user_guides_quick/quick_start_ax650.md`.
"""

import json
import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from axbake.errors import AxbakeError

logger = logging.getLogger(__name__)
SECONDS = 5  # between two lines of one stage
KEPT = 500  # last lines, in which a failure is looked for; a TileFailException prints a hundred

#: A line of Pulsar2's log -> the stage that it begins, in our words
STAGES = (
    (re.compile(r"extract_archive|File\(s\) Loaded"), "reading samples"),
    (re.compile(r"^Building onnx|save optimized onnx"), "optimising the graph"),
    (re.compile(r"AX [\w ]+ Running"), "preparing quantisation"),
    (re.compile(r"Calibration Progress"), "calibrating"),
    (re.compile(r"Network Quantization Finished"), "quantised"),
    (re.compile(r"^Building native|schedule npu subgraph"), "compiling for the NPU"),
    (re.compile(r"^tiling op"), "tiling operators"),
    (re.compile(r"^build op"), "building operators"),
    (re.compile(r"^(add ddr swap|calc \w+ dependencies)"), "planning memory"),
    (re.compile(r"^assign eu"), "scheduling"),
    (re.compile(r"^build jobs"), "building jobs"),
    (re.compile(r"fuse \d+ subgraph"), "fused"),
)
COUNTED = re.compile(r"[ |](\d+)/(\d+)[ \[]")  # of a progress bar: done, and all
CYCLES = re.compile(r"max_cycle = ([\d,]+)")


class BuildLog:
    """The log of one build, read line by line.

    Attributes:
        stage: in our words; empty before the first.
        cycles: of the NPU, that the compiler expects one run to take; None until it says so.
        last: the last lines.
    """

    def __init__(self, stages: Sequence[tuple[re.Pattern[str], str]] = STAGES) -> None:
        """
        Args:
            stages: a line of the log -> the stage that it begins.
        """
        self._stages = stages
        self.stage = ""
        self.cycles: int | None = None
        self.last: deque[str] = deque(maxlen=KEPT)
        self._begun = time.monotonic()
        self._told = self._begun

    def hear(self, line: str) -> None:
        """Take the next *line*: all go to the job's log; stages, and every few seconds how far one is, to the screen."""
        logger.log(logging.INFO if "emulated" in line else logging.DEBUG, "%s", line)
        if not line:
            return
        self.last.append(line)
        if cycles := CYCLES.search(line):
            self.cycles = int(cycles[1].replace(",", ""))
        # An engine may put the bar, which is on stderr, into a line of stdout: what comes later counts.
        stages = [name for pattern, name in self._stages if pattern.search(line)]
        if not stages:
            return
        stage = stages[-1]
        counted = COUNTED.search(line + " ")
        done, total = (int(counted[1]), int(counted[2])) if counted else (0, 0)
        if stage != self.stage or (total and done == total) or time.monotonic() - self._told >= SECONDS:
            self.stage, self._told = stage, time.monotonic()
            logger.info("%s%s, %s", stage, f" {done} of {total}" if total else "", self.elapsed)

    @property
    def elapsed(self) -> str:
        """Since the build began: `0:07`, minutes and seconds."""
        seconds = int(time.monotonic() - self._begun)
        return f"{seconds // 60}:{seconds % 60:02}"


class ContextError(AxbakeError):
    """`build_context.json` is not a JSON object."""


def read_context(path: Path) -> dict:
    """What Pulsar2 says of a build in `build_context.json`; empty if it died before it had said it."""
    try:
        context = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(context, dict):
        raise ContextError(f"{path.name}: holds a {type(context).__name__}, wanted an object, as Pulsar2 writes it")
    return context
