"""The ways in which builds are known to fail. Texts are those that people reported, where they did."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TRACEBACK = "Traceback (most recent call last):\n"
REFUSED = TRACEBACK + "yamain.common.error.CodeException: (<ErrorCode.{code}: {number}>, {error!r})"


@dataclass
class Failure(Exception):
    """A build that failed, with the code in its context and what it printed."""

    text: str
    code: str
    printed: str

    def __str__(self) -> str:
        return self.text


def _refusal(code: str, number: int, error: str) -> Failure:
    return Failure(error, code, REFUSED.format(code=code, number=number, error=error))


RAISED = {
    "unsupported-operator": ("frontend", _refusal("FrontendError", 6, "KeyError('dont support LRN opr in AXOPS')")),
    "no-backend": ("sample 1", _refusal("QuantError", 3, "NotImplementedError('Einsum: no backend implementation')")),
    "dynamic-shape": (
        "frontend",
        _refusal("UnknownError", 1, "AssertionError: illegal value_info sample: ['s99', 4, 64, 64]"),
    ),
    "reshape": ("frontend", _refusal("FrontendError", 6, "AssertionError: Reshape: assert v.is_const, shape")),
    "tiling": (
        "compile",
        _refusal(
            "NPUBackendError",
            8,
            "yasched.exceptions.TileFailException: AxQuantizedSub, tuple index out of range",
        ),
    ),
    "licence": (
        "start",
        Failure("Sentinel key not found (H0007)", "UnknownError", "Sentinel key not found (H0007)"),
    ),
    "disk-full": (
        "compile",
        Failure(
            os.strerror(errno.ENOSPC),
            "UnknownError",
            TRACEBACK + f"OSError: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: 'out/compiler/subgraph_npu_0'",
        ),
    ),
    "too-large": (
        "compile",
        _refusal("NPUBackendError", 8, "DecodeError: Error parsing message with type onnx.TensorProto"),
    ),
    "unknown": ("compile", _refusal("NPUBackendError", 8, "ValueError: a failure that nobody has seen")),
}
SPOILT: dict[str, dict[str, Any]] = {
    "other-version": {"version": "3.3"},
    "other-mode": {"mode": "NPU1"},
    "other-hardware": {"hardware": "AX620E"},
}
KILLED = {"out-of-memory": "sample 2", "hang": "sample 1"}


def fail(wanted: str, stage: str) -> None:
    """Fail as *wanted* says, if *stage* is where builds fail so."""
    if wanted not in {"", "truncated", *RAISED, *SPOILT, *KILLED}:
        raise ValueError(f"the double knows no failure {wanted}")
    if RAISED.get(wanted, ("",))[0] == stage:
        raise RAISED[wanted][1]
    if KILLED.get(wanted) == stage and wanted == "hang":
        # What it started has to end as well.
        subprocess.run([sys.executable, "-c", "import time; time.sleep(3600)"])
    elif KILLED.get(wanted) == stage:
        os.kill(os.getpid(), signal.SIGKILL)


def spoil(wanted: str) -> dict[str, Any]:
    """What a model has that it should not have, for failures that end in such a model."""
    return SPOILT.get(wanted, {})
