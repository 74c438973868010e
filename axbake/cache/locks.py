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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from axbake.cache.errors import ELSEWHERE, CacheUnusable, Damaged, NotWritten
from axbake.cache.records import parse
from axbake.cache.tree import Tree, open_plain

logger = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
REMIND = 600  # s between two lines that say we are still waiting
LONGEST = 1 << 16  # bytes of a note
TRIES = 20  # to open a lock's file, after a damaged one was set aside or somebody made one
HOST = socket.gethostname()
_descriptors: set[int] = set()  # of this process's locks


def _let_go() -> None:
    """A forked worker lets go of what it inherited; else it would hold the locks of an owner that is killed."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def _held(descriptor: int) -> Iterator[int]:
    """Keep a lock until the end; a fork has let go of it before."""
    _descriptors.add(descriptor)
    try:
        yield descriptor
    finally:
        if descriptor in _descriptors:
            _descriptors.remove(descriptor)
            os.close(descriptor)


@dataclass(frozen=True)
class Note:
    """What the file of a lock says. Texts that do not have their form are empty."""

    user: int  # whose file it is
    empty: bool = False  # its owner had no time to write
    owner: str = ""
    host: str = ""
    since: str = ""
    directory: str = ""  # any text without a zero byte


@contextlib.contextmanager
def lock(path: Path, *, about: str, shared: bool = False, tree: Tree | None = None, **more: str) -> Iterator[None]:
    """Hold the lock *path*, waiting for it if needed.

    An exclusive lock's file tells others who holds it and is removed at the end; so one that nobody holds was left by a
    killed owner.

    Args:
        about: what it is held for, for those who wait.
        tree: that it lies in, if others write there: what is no lock in its place is set aside.
        more: what else is to be read in the lock's file.

    Raises:
        CacheUnusable: the file system has no locks.
        NotWritten: something other than a file is in its place.
        OSError: the file cannot be made.
    """
    with _held(_acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, about, tree)) as descriptor:
        try:
            if not shared:
                note = {"owner": owner(), "host": HOST, "about": about, "since": now(), **more}
                with contextlib.suppress(OSError):  # a full disk: held all the same, by nobody one could name
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(note).encode(), 0)
            yield
        finally:
            if descriptor in _descriptors and not shared:  # not in a fork, whose parent holds it
                with contextlib.suppress(OSError), _directory(path, tree) as directory:
                    os.unlink(path.name, dir_fd=directory)


@contextlib.contextmanager
def mark(directory: int, name: str) -> Iterator[None]:
    """Hold the new and empty file *name* of an open directory as a lock, where there are locks; it is gone afterwards."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with _held(os.open(name, flags, 0o600, dir_fd=directory)) as descriptor:
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            if descriptor in _descriptors:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def abandoned(directory: int, name: str) -> Iterator[Note | None]:
    """What the lock *name* of an open directory says, held meanwhile, if its owner is dead.

    None if somebody holds it, or it is gone, or no file that can be written to.
    """
    try:
        descriptor = open_plain(directory, name, os.O_RDWR)
    except (OSError, Damaged):
        yield None
        return
    try:
        free = _try(descriptor, fcntl.LOCK_EX, Path(name)) and _is(directory, name, descriptor)
        yield _note(descriptor) if free else None
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


@contextlib.contextmanager
def _directory(path: Path, tree: Tree | None) -> Iterator[int]:
    """A descriptor of the directory that a lock lies in."""
    with (tree or Tree(path.parent)).opened(path.parent) as directory:
        yield directory


def _acquire(path: Path, kind: int, about: str, tree: Tree | None) -> int:
    started = reminded = time.monotonic()
    pause = 0.01
    while True:
        descriptor = _open(path, tree)
        try:
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o666)  # who may enter the directory may wait for its locks
            while not _try(descriptor, kind, path):
                if pause == 0.01 or time.monotonic() - reminded > REMIND:
                    reminded = time.monotonic()
                    note = _note(descriptor)
                    holder = f"{note.owner}, since {note.since}" if note.owner else "another process"
                    logger.info("%s: waiting for %s (waited %.0f s so far)", about, holder, reminded - started)
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
            with _directory(path, tree) as directory:
                if _is(directory, path.name, descriptor):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed the file while we waited; the lock is another file now


def _open(path: Path, tree: Tree | None) -> int:
    """A descriptor of the lock's file, which is made if needed."""
    for _ in range(TRIES):
        try:
            with _directory(path, tree) as directory:
                return open_plain(directory, path.name, os.O_RDWR | os.O_CREAT, 0o666)
        except FileExistsError:
            continue  # somebody was quicker
        except Damaged as error:
            if not tree:
                raise NotWritten(f"{path}: {error}; wanted a lock's file. Remove it, and run again.") from error
            if tree.set_aside(path):
                logger.warning("%s: %s; not a lock, moved aside", path, error)
            else:
                break
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


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
            f"{path}: this file system does not support locks ({os.strerror(error.errno)}). The build cache needs "
            f"flock, which local disks and NFSv4 support; {ELSEWHERE}."
        ) from error


def _is(directory: int, name: str, descriptor: int) -> bool:
    """Whether *name* still is the open file. Opened and not just looked up, since NFS remembers old answers to that."""
    try:
        other = open_plain(directory, name)
    except (FileNotFoundError, Damaged):
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(other))
    finally:
        os.close(other)


def _note(descriptor: int) -> Note:
    user = os.fstat(descriptor).st_uid
    content = os.pread(descriptor, LONGEST, 0)
    try:
        said = parse(content) if content else {}
    except Damaged:
        said = {}
    line, path = partial(_text, longest=200, printable=True), partial(_text, longest=4096, printable=False)
    return Note(
        user,
        not content,
        line(said.get("owner")),
        line(said.get("host")),
        line(said.get("since")),
        path(said.get("directory")),
    )


def _text(value: Any, *, longest: int, printable: bool) -> str:
    """*value*, if it is a text that can be shown, or be a path; otherwise an empty one."""
    if not isinstance(value, str) or len(value) > longest or "\0" in value or (printable and not value.isprintable()):
        return ""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half a character
        return ""
    return value
