"""A bundle of the layout `axbake`: its manifest, and what is loaded by it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BundleError
from .sampler import Schedule, load_schedule
from .session import Session, open_model
from .tokenizer import ClipTokenizer, load_tokenizer

FORMAT = 1  # of the manifest
LAYOUT = "axbake"


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """How the model's reference picture is drawn: prompt, seed, size and the like."""
        return self.manifest["settings"]

    def open(self, component: str, *, runtime: str, device: int, threads: int) -> tuple[Session, float]:
        """A model, and how many seconds loading it took."""
        start = time.perf_counter()
        path = self.folder / self.manifest["models"][component]["file"]
        session = open_model(path, runtime=runtime, device=device, threads=threads)
        return session, time.perf_counter() - start

    def tokenizer(self) -> ClipTokenizer:
        """CLIP's tokenizer, with the names of the model's embeddings."""
        return load_tokenizer(self.folder / "tokenizer", self.folder / "embeddings.json")

    def schedule(self, steps: int) -> Schedule:
        """The model's scheduler, set to *steps* steps.

        Raises:
            BundleError: the bundle has no such schedule.
        """
        if steps == self.settings["steps"]:
            return load_schedule(self.folder / "schedule.npz")
        path = self.folder / "schedules" / f"{self.settings['scheduler']}-{steps}.npz"
        if not path.is_file():
            others = (int(other.stem.rpartition("-")[2]) for other in path.parent.glob("*.npz"))
            known = ", ".join(map(str, sorted({self.settings["steps"], *others})))
            raise BundleError(
                f"{steps} steps: the bundle has schedules of {known} steps. Take one of these, or bake the model with a"
                f" row of {steps} steps."
            )
        return load_schedule(path)


def read_bundle(folder: Path) -> Bundle:
    """The bundle in *folder*, all its files there, of the sizes that they had when it was made.

    Raises:
        BundleError: it is no bundle of this layout, or not whole.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["layout"], manifest["format"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: {type(error).__name__}: {error}; wanted the manifest of a bundle.") from error
    if found != (LAYOUT, FORMAT):
        raise BundleError(f"{path}: layout and format {found}; wanted {(LAYOUT, FORMAT)}. Make the bundle anew.")
    wrong = [
        f"{name}: {_size(folder / name)}, wanted {file['bytes']} bytes"
        for name, file in manifest["files"].items()
        if _size(folder / name) != f"{file['bytes']} bytes"
    ]
    if wrong:
        raise BundleError(f"{folder}: not whole; {'; '.join(wrong)}. Copy the bundle again.")
    return Bundle(folder, manifest)


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.is_file() else "not there"
