"""What can go wrong with the build cache, and with the disks it works on."""

import contextlib
import errno
import os
import shutil
import tempfile
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
def disks(path: Path = Path()) -> Iterator[None]:
    """A full disk, or a lacking permission, that is met where nobody expects one becomes `NotWritten`.

    Args:
        path: its place, if the error names none.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        # Without a name it may be a connection's: a firewall refuses those so.
        if not full and not (error.errno in REFUSED and error.filename):
            raise
        hint = "Make room there, or for temporary files (TMPDIR)" if full else "Let this user read and write it"
        raise NotWritten(f"{trouble(error, path)}. {hint}, and run again.") from error


def check_temporary_room() -> None:
    """Raise `NotWritten` unless a file of 1 MB can be written to the directory of temporary files."""
    place = os.environ.get("TMPDIR", "")
    if os.access(place, os.W_OK):  # Python takes another one where it is not there
        with disks(Path(place)), tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**20))


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
