"""SHA-256 of files, computed once: remembered by path, size, inode and modification time."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

MEMORY = Path(".axbake/digests")  # in the working directory; safe to delete


def file_sha256(path: Path) -> str:
    """SHA-256 of *path* in hex. A file that is unchanged by size, inode and mtime is not read again.

    Raises:
        OSError: the file cannot be read.
    """
    stat = path.stat()
    place = str(path.resolve())
    state = [place, stat.st_size, stat.st_ino, stat.st_mtime_ns]
    note = MEMORY / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged note is no note
        remembered = json.loads(note.read_text())
        if remembered["state"] == state:
            return remembered["sha256"]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    write_atomically(note, json.dumps({"state": state, "sha256": sha256}))
    return sha256


def write_atomically(path: Path, text: str) -> None:
    """Write *text* to *path* so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
