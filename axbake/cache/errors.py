"""What can go wrong with the build cache, and with the disks it works on."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from axbake.errors import AxbakeError

FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
ELSEWHERE = "AXBAKE_CACHE, or config entry cache, puts the build cache elsewhere"


class CacheUnusable(AxbakeError):
    """The cache's directory cannot be made or has no locks."""


class NotWritten(AxbakeError):
    """A result cannot be written to its place."""


class InputChanged(AxbakeError):
    """An input is not what it was when the job began."""


class NoResult(AxbakeError):
    """A job ended well without one of its outputs."""


class Overtaken(AxbakeError):
    """Another job has put its result where this one's belongs."""


def trouble(error: OSError, path: Path) -> str:
    """*error* in our words: where, what, and how much room there is."""
    place = Path(error.filename2 or error.filename or path)
    there = next(parent for parent in [place.absolute(), *place.absolute().parents] if parent.exists())
    if error.errno in FULL:
        quota = " under this user's quota" if error.errno == errno.EDQUOT else ""
        return f"{place}: no space left{quota}, {readable(shutil.disk_usage(there).free)} free on its file system"
    return (
        f"{place}: {os.strerror(error.errno or 0)}, {readable(shutil.disk_usage(there).free)} free on its file system"
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written here is a result: a full disk or a lacking permission becomes `NotWritten`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL | REFUSED:
            hint = "Make room, or keep the results on another disk" if error.errno in FULL else "Make it writable"
            raise NotWritten(f"{trouble(error, path)}. {hint}, and run again.") from error
        raise


def readable(size: float) -> str:
    """*size* in bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
