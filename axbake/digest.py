"""What is read of large files once: their SHA-256 above all; remembered by path, size, inode and modification time."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MEMORY = Path(".axbake/digests")  # in the working directory; safe to delete


def file_sha256(path: Path) -> str:
    """SHA-256 of *path* in hex. A file that is unchanged by size, inode and mtime is not read again.

    Raises:
        OSError: the file cannot be read.
    """

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered(path, "sha256", read)


def remembered_sha256(path: Path) -> str | None:
    """SHA-256 of *path* if it was computed before and the file is unchanged by size, inode and mtime."""
    return _recall(path, "sha256")


def remembered(path: Path, what: str, read: Callable[[], Any]) -> Any:
    """What *read* gives of the file *path*, plain values and not None; read again only when the file changed, as above.

    Args:
        what: it is; part of a file's name.
    """
    known = _recall(path, what)
    if known is not None:
        return known
    note, state = _note(path, what)
    value = read()
    write_atomically(note, json.dumps({"state": state, what: value}))
    return value


def _recall(path: Path, what: str) -> Any:
    note, state = _note(path, what)
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged note is no note
        told = json.loads(note.read_text())
        if told["state"] == state:
            return told[what]
    return None


def _note(path: Path, what: str) -> tuple[Path, list]:
    """Where *what* of the file *path* is remembered, and what the file has to be like for it to hold."""
    stat = path.stat()
    place = str(path.resolve())
    note = MEMORY / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.{what}.json"
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
    # Threads of one process write the same file, and jobs on two nodes may have the same process number.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
