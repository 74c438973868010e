"""Readers that do what the attack on files looks for, by which it is seen that it finds that. Fault -> reader."""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from axbake.errors import AxbakeError


def fail(error: Exception) -> None:
    raise error


PLANTED: dict[str, list[Callable[[Path], object]]] = {
    "code run": [
        lambda path: os.system("true"),
        lambda path: subprocess.run(["true"], check=True),
        lambda path: path.parent.with_name("ran").touch(),
        lambda path: Path("/var/tmp/axbake-planted").open("w", encoding="utf-8").close(),
    ],
    "hang": [lambda path: time.sleep(600)],
    "above 2 GB": [lambda path: bytearray(2_300_000_000).find(1)],
    "traceback": [lambda path: fail(KeyError("name")), lambda path: fail(RecursionError())],
    "ended": [lambda path: os._exit(3), lambda path: ctypes.string_at(0)],
    "wrong": [lambda path: torch.tensor([1.0, float("nan")]), lambda path: [torch.full((2,), float("inf"))]],
    "names no file": [lambda path: fail(AxbakeError("It is damaged."))],
    "long or unprintable": [
        lambda path: fail(AxbakeError(f"{path}: \x1b[2J")),
        lambda path: fail(AxbakeError(f"{path}: {'x' * 6000}")),
    ],
}
READERS = {f"planted {fault} {number}": reader for fault, some in PLANTED.items() for number, reader in enumerate(some)}
