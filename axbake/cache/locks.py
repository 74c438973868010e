"""Locks that the kernel takes from a dead owner, and what the owner says of itself."""

import contextlib
import datetime
import errno
import fcntl
import getpass
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from axbake.cache.errors import ELSEWHERE, CacheUnusable

logger = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
REMIND = 600  # s between two lines that say we are still waiting
HOST = socket.gethostname()
_held: set[int] = set()  # descriptors of this process's locks


def _let_go() -> None:
    """A forked worker lets go of what it inherited; else it would hold the locks of an owner that is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def lock(path: Path, *, about: str, shared: bool = False, **more: str) -> Iterator[None]:
    """Hold the lock *path*, waiting for it if needed.

    An exclusive lock's file tells others who holds it and is removed at the end; so one that nobody holds was left by a
    killed owner.

    Args:
        about: what it is held for, for those who wait.
        more: what else is to be read in the lock's file.

    Raises:
        CacheUnusable: the file system has no locks.
        OSError: the file cannot be made.
    """
    descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, about)
    _held.add(descriptor)
    try:
        if not shared:
            note = {"owner": owner(), "host": HOST, "about": about, "since": now(), **more}
            with contextlib.suppress(OSError):  # a full disk: held all the same, by nobody one could name
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        if descriptor in _held:  # not in a fork, whose parent holds it
            if not shared:
                path.unlink(missing_ok=True)
            _held.remove(descriptor)
            os.close(descriptor)


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[dict | None]:
    """What the lock *path* says, held meanwhile, if its owner is dead; None if somebody holds it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        yield _note(descriptor) if _try(descriptor, fcntl.LOCK_EX, path) and _is(path, descriptor) else None
    finally:
        os.close(descriptor)


def owner() -> str:
    """This process, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # containers have users without a name
    return f"{user}@{HOST}, process {os.getpid()}"


def now() -> str:
    """The time, for people."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _acquire(path: Path, kind: int, about: str) -> int:
    started = reminded = time.monotonic()
    pause = 0.01
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o666)  # who may enter the directory may wait for its locks
            while not _try(descriptor, kind, path):
                if pause == 0.01 or time.monotonic() - reminded > REMIND:
                    reminded = time.monotonic()
                    note = _note(descriptor)
                    holder = f"{note['owner']}, at it since {note['since']}" if note else "another process"
                    logger.info("%s: waiting for %s (waited %.0f s so far)", about, holder, reminded - started)
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
            if _is(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed the file while we waited; the lock is another file now


def _try(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise CacheUnusable(
            f"{path}: this file system has no locks ({os.strerror(error.errno)}). The build cache needs flock, as local disks"
            f" and NFSv4 have it. {ELSEWHERE}."
        ) from error


def _is(path: Path, descriptor: int) -> bool:
    """Whether *path* still is the open file. Opened and not just looked up, since NFS remembers old answers to that."""
    try:
        other = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(other))
    finally:
        os.close(other)


def _note(descriptor: int) -> dict:
    try:
        return json.loads(os.pread(descriptor, 1 << 16, 0))
    except ValueError:
        return {}  # its owner had no time to write it
