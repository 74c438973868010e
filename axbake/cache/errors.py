"""What can go wrong with the build cache, and with the disks it works on."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from axbake.errors import AxbakeError
from axbake.units import size_of

FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
ELSEWHERE = "set AXBAKE_CACHE, or the config entry cache, to move the build cache elsewhere"


class CacheUnusable(AxbakeError):
    """The cache's directory cannot be created or does not support locks."""


class NotWritten(AxbakeError):
    """A result cannot be written to its place."""


class InputChanged(AxbakeError):
    """An input has changed since the job began."""


class NoResult(AxbakeError):
    """A job ended without an error, but one of its outputs is missing."""


class Overtaken(AxbakeError):
    """Another job has written its result to this job's place."""


class KeepUnreadable(AxbakeError):
    """The file of keys to keep cannot be read, or is not a file of keys."""


class Damaged(Exception):
    """What lies in the cache is not what axbake wrote there; says what it is. For the cache alone, which sets it aside."""


def trouble(error: OSError, path: Path) -> str:
    """*error* in our words: where, what, and how much room there is."""
    named = error.filename2 or error.filename
    place = Path(os.fsdecode(named)) if isinstance(named, (str, bytes)) else path
    what = os.strerror(error.errno or 0)
    if error.errno in FULL:
        what = "no space left" + (" under this user's quota" if error.errno == errno.EDQUOT else "")
    parents = [place.absolute(), *place.absolute().parents]
    there = next(parent for parent in parents if os.path.exists(parent))  # noqa: PTH110, which raises where it may not look
    with contextlib.suppress(OSError):
        what += f", {size_of(shutil.disk_usage(there).free)} free on its file system"
    return f"{place}: {what}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written here is a result: a full disk, a lacking permission, a directory in its place becomes `NotWritten`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            hint = "Free some space, or keep the results on another disk"
        elif error.errno in REFUSED:
            hint = "Make it writable"
        else:
            hint = "Check what is there"
        raise NotWritten(f"{trouble(error, path)}. {hint}, and run again.") from error
