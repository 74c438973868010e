"""Prompts that a bundle's text encoders have read, kept in its folder: they are loaded for a new prompt alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError
from .prompt import Embedded
from .reading import read_arrays

FOLDER = "prompts"
MOST_BYTES = 256 << 20  # of all together; the oldest leave
ARRAYS = {"tokens": ("f", 3), "pooled": ("f", 2), "mask": ("f", 2)}


class Remembered:
    """What the text encoders of one bundle have made of prompts."""

    def __init__(self, folder: Path, *, made_by: Any) -> None:
        """
        Args:
            folder: of the bundle.
            made_by: all that decides an encoding besides the prompt, as JSON has it: digests of models and tokenizers.
        """
        self.folder, self.made_by = folder / FOLDER, made_by

    def get(self, prompt: str, *, negative: bool, chunks: int) -> Embedded | None:
        """What was made of *prompt*; None if nothing was, or the file is damaged."""
        path = self._path(prompt, negative, chunks)
        try:
            arrays = read_arrays(path, ARRAYS, optional=("pooled", "mask"))
            path.touch()  # in use
        except (BundleError, OSError):
            return None
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return None
        return Embedded(arrays["tokens"], arrays.get("pooled"), arrays.get("mask"))

    def keep(self, embedded: Embedded, prompt: str, *, negative: bool, chunks: int) -> None:
        """Keep what was made of *prompt*, if the folder can be written and it is not too large."""
        arrays = {name: getattr(embedded, name) for name in ARRAYS if getattr(embedded, name) is not None}
        path = self._path(prompt, negative, chunks)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # of a folder that cannot be written: the picture is drawn all the same
            self.folder.mkdir(exist_ok=True)
            try:
                with beside.open("wb") as file:
                    np.savez(file, **arrays)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
            self._leave_out()

    def _leave_out(self) -> None:
        """Delete the oldest until the rest is small enough."""
        files = sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)

    def _path(self, prompt: str, negative: bool, chunks: int) -> Path:
        key = json.dumps([self.made_by, prompt, negative, chunks], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
