"""SHA-256 of files, computed once: remembered by path, size, inode and modification time."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

MEMORY = Path(".axbake/digests")  # in the working directory; safe to delete


def file_sha256(path: Path) -> str:
    """SHA-256 of *path* in hex. A file that is unchanged by size, inode and mtime is not read again.

    Raises:
        OSError: the file cannot be read.
    """
    if known := remembered_sha256(path):
        return known
    note, state = _note(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    write_atomically(note, json.dumps({"state": state, "sha256": sha256}))
    return sha256


def remembered_sha256(path: Path) -> str | None:
    """SHA-256 of *path* if it was computed before and the file is unchanged by size, inode and mtime."""
    note, state = _note(path)
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged note is no note
        remembered = json.loads(note.read_text())
        if remembered["state"] == state:
            return remembered["sha256"]
    return None


def _note(path: Path) -> tuple[Path, list]:
    """Where the digest of *path* is remembered, and what the file has to be like for it to hold."""
    stat = path.stat()
    place = str(path.resolve())
    note = MEMORY / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    return note, [place, stat.st_size, stat.st_ino, stat.st_mtime_ns]


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, that of a table of their names, from their common folder on, and their digests.

    Raises:
        OSError: one cannot be read.
    """
    if len(paths) == 1:
        return file_sha256(paths[0])
    base = os.path.commonpath([path.parent for path in paths])
    table = {os.path.relpath(path, base): file_sha256(path) for path in paths}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write *text* to *path* so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
