"""What is read of large files once: their SHA-256 above all; remembered by path, size, inode and modification time."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST = 1 << 26  # bytes of a note; the facts of a LoRA of a thousand modules are 200 kB
MEMORY = Path(".axbake/digests")  # in the working directory; safe to delete


def is_sha256(value: object) -> bool:
    """Whether *value* is a SHA-256 in hex. What others wrote is none, and no part of a path, before this was asked."""
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def file_sha256(path: Path) -> str:
    """SHA-256 of *path* in hex. A file that is unchanged by size, inode and mtime is not read again.

    Raises:
        OSError: the file cannot be read, or is a named pipe, a device or the like, whose content may never end.
    """

    def read() -> str:
        with _opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    known = remembered_sha256(path)
    return known if known else _read_and_remember(path, "sha256", read)


def remembered_sha256(path: Path) -> str | None:
    """SHA-256 of *path* if it was computed before and the file is unchanged by size, inode and mtime."""
    known = _recall(path, "sha256")
    return known if is_sha256(known) else None


def remembered(path: Path, what: str, read: Callable[[], Any]) -> Any:
    """What *read* gives of the file *path*, plain values and not None; read again only when the file changed, as above.

    Args:
        what: it is; part of a file's name.
    """
    known = _recall(path, what)
    return known if known is not None else _read_and_remember(path, what, read)


def _read_and_remember(path: Path, what: str, read: Callable[[], Any]) -> Any:
    note, state = _note(path, what)
    value = read()
    try:
        write_atomically(note, json.dumps({"state": state, what: value}))
    except OSError as error:  # then it is read each time
        logger.warning(
            "%s cannot be written (%s); %s will be read each time", note, os.strerror(error.errno or 0), path
        )
    return value


def _recall(path: Path, what: str) -> Any:
    note, state = _note(path, what)
    # A damaged note counts as missing; anything but a file is noticed when the note is written.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        with _opened(note) as file:
            content = file.read(LONGEST + 1)
        if len(content) <= LONGEST and (told := json.loads(content))["state"] == state:
            return told[what]
    return None


def _opened(path: Path) -> io.BufferedReader:
    """The plain file *path*; what is none can block for ever, or never end.

    Raises:
        OSError
    """
    if stat.S_ISREG(path.stat().st_mode):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise OSError(errno.EINVAL, "Not a plain file", str(path))


def _note(path: Path, what: str) -> tuple[Path, list]:
    """Where *what* of the file *path* is remembered, and what the file has to be like for it to hold."""
    state = path.stat()
    place = str(path.resolve())
    note = MEMORY / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.{what}.json"
    return note, [place, state.st_size, state.st_ino, state.st_mtime_ns]


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
    # Threads of one process write the same file, and jobs on two nodes may have the same process number.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            beside.write_text(text, encoding="utf-8")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
