"""Private directories, in which a job writes beside the place of its result; and removal of those that killed jobs left.

A job that is killed leaves its directory beside a result, in any project; the next job that uses the cache removes it. So it is
announced in the cache:

    running/{mark}.json                               the announcement, held by the job as a lock; says where the directory is
    …/.unet.axmodel.axbake-{mark}/                    the private directory
    …/.unet.axmodel.axbake-{mark}/axbake-{mark}-{n}   held by the job as a lock; n is the directory's number on its disk

Others may write to a shared cache, so an announcement is only a hint of where to look. A directory is removed if the announcement
is this user's own, its job is dead, and the directory itself says so: it is this user's, it is called after the announcement, and
it has the file that names both the announcement and the directory's number, which nobody holds. Nobody else can put that file
into a directory of this user's, and no copy of a private directory has its number. A directory whose job was killed before it put
the file there, or after it took it away, is empty; the next job of that place removes it.
"""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from axbake.cache.errors import CacheUnusable, Damaged, writing
from axbake.cache.locks import HOST, Note, abandoned, lock, mark
from axbake.cache.tree import ABSENT, INNER, Tree, names_in, remove_all, size_on_disk
from axbake.printable import shown

logger = logging.getLogger(__name__)
PRIVATE = ".axbake-"  # in the name of each private directory
ANNOUNCEMENT = re.compile(r"([0-9a-f]{16})\.json")


@contextlib.contextmanager
def private_directory(tree: Tree, place: Path, *, about: str) -> Iterator[Path]:
    """A new directory beside *place*, announced in the cache *tree*; gone afterwards, and those of killed jobs before.

    Raises:
        NotWritten: it cannot be made.
    """
    name = os.urandom(8).hex()
    directory = place.with_name(f".{place.name}{_ending(name)}")
    with contextlib.suppress(OSError):  # a cache that cannot be written to, which was said
        remove_leftovers(tree)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a cache that cannot be written to, which was said
            announcement = tree.top / "running" / f"{name}.json"
            held.enter_context(lock(announcement, about=about, tree=tree, directory=str(directory.absolute())))
        with writing(directory):
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_empty_ones(place)
            try:
                descriptor = _make(directory, name, held)
            except FileNotFoundError:  # another job of this place took it for one that a killed job left
                descriptor = _make(directory, name, held)
        try:
            yield directory
        finally:
            # The mark goes last, so that whatever is left when this is killed is found.
            with contextlib.suppress(OSError):
                _empty(descriptor, but=_mark(os.fstat(descriptor), name))


def _make(directory: Path, name: str, held: contextlib.ExitStack) -> int:
    """A descriptor of the new private *directory*, marked; *held* closes and removes it."""
    directory.mkdir()
    held.callback(_remove_empty, directory)
    descriptor = os.open(directory, INNER)
    held.callback(os.close, descriptor)
    held.enter_context(mark(descriptor, _mark(os.fstat(descriptor), name)))
    return descriptor


def leftovers(tree: Tree) -> Iterator[tuple[Path, int]]:
    """Private directories of this user's killed jobs, as far as this machine sees them, with their bytes on disk."""
    for announcement, _, directory in _of_the_dead(tree):
        with contextlib.suppress(OSError, Damaged), _dead(directory, announcement.stem) as descriptor:
            yield directory, sum(size_on_disk(descriptor, name) for name in names_in(descriptor))


def remove_leftovers(tree: Tree) -> None:
    """Remove those, and the announcements of what is gone. What names something else is set aside."""
    for announcement, note, directory in _of_the_dead(tree):
        try:
            with _dead(directory, announcement.stem) as descriptor:
                logger.info("%s: removing files left by %s, which is dead", shown(directory, 400), note.owner)
                _empty(descriptor, but=_mark(os.fstat(descriptor), announcement.stem))
                _empty(descriptor)
                directory.rmdir()
            tree.remove(announcement)
        except Damaged as error:
            logger.warning(
                "%s: names %s, which %s; not removed. If one of your killed jobs left it, remove it yourself.",
                announcement,
                shown(directory, 400),
                error,
            )
            tree.set_aside(announcement)
        except ABSENT:
            # What another machine sees, this one may not.
            if note.host == HOST or os.path.isdir(directory.parent):  # noqa: PTH112, which may raise
                tree.remove(announcement)
        except OSError as error:  # in use, or it may not be removed
            logger.debug("%s: left alone (%s)", announcement, error)


def _of_the_dead(tree: Tree) -> Iterator[tuple[Path, Note, Path]]:
    """This user's announcements of killed jobs: file, what it says, private directory. Locked until the next is asked for."""
    for path, state in tree.contents(tree.top / "running"):
        if not ANNOUNCEMENT.fullmatch(path.name) or not stat.S_ISREG(state.st_mode):
            continue  # garbage
        with contextlib.ExitStack() as held:
            try:
                note = held.enter_context(abandoned(held.enter_context(tree.opened(path.parent)), path.name))
            except ABSENT:
                continue
            if note is None or note.user != os.geteuid():
                continue  # not dead, or for somebody else to judge
            directory = Path(note.directory)
            if directory.is_absolute() and ".." not in directory.parts and directory.name.endswith(_ending(path.stem)):
                yield path, note, directory
            elif note.empty:
                tree.remove(path)  # killed before it made the directory
            else:
                logger.warning("%s: damaged announcement of a job; set aside", path)
                tree.set_aside(path)


@contextlib.contextmanager
def _dead(directory: Path, name: str) -> Iterator[int]:
    """A descriptor of the private *directory* of the killed job that was announced as *name*.

    Raises:
        Damaged: it is another's, or no private directory.
        BlockingIOError: its job is not dead.
        OSError: it is not there, or may not be looked at.
    """
    state = directory.lstat()
    if not _is_mine(state, stat.S_ISDIR):
        raise Damaged("is not your directory")
    mark_name = _mark(state, name)
    try:  # all this before it is opened
        marked = _is_mine((directory / mark_name).lstat(), stat.S_ISREG)
    except ABSENT:
        marked = False
    if not marked:
        raise Damaged("has no mark from axbake")
    descriptor = os.open(directory, INNER)
    with contextlib.ExitStack() as held:
        held.callback(os.close, descriptor)
        if not os.path.samestat(os.fstat(descriptor), state):
            raise BlockingIOError
        try:
            if held.enter_context(abandoned(descriptor, mark_name)) is None:
                raise BlockingIOError
        except CacheUnusable:
            pass  # no locks there; that of the announcement says it too
        yield descriptor


def _is_mine(state: os.stat_result, kind: Callable[[int], bool]) -> bool:
    return kind(state.st_mode) and state.st_uid == os.geteuid()


def _ending(name: str) -> str:
    return f"{PRIVATE}{name}"


def _mark(state: os.stat_result, name: str) -> str:
    """What the file is called that says that the directory of *state* is the one announced as *name*."""
    return f"axbake-{name}-{state.st_ino}"


def _empty(descriptor: int, but: str = "") -> None:
    """Remove what is in an open directory."""
    for name in names_in(descriptor):
        if name != but:
            remove_all(descriptor, name)


def _remove_empty_ones(place: Path) -> None:
    """Remove the empty directories that killed jobs of *place* left."""
    named = re.compile(re.escape(f".{place.name}{PRIVATE}") + r"[0-9a-f]{16}")
    for path in place.parent.iterdir():
        if named.fullmatch(path.name):
            _remove_empty(path)


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
