"""What the build cache holds, what of it nobody needs, and its removal."""

import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from axbake.cache import private
from axbake.cache.blobs import NOTE
from axbake.cache.entry import Blob, Entry, OtherFormat
from axbake.cache.errors import CacheUnusable, Damaged, trouble
from axbake.cache.locks import abandoned, lock
from axbake.cache.records import LONGEST
from axbake.cache.store import ENTRY, Cache
from axbake.cache.tree import Tree
from axbake.digest import SHA256
from axbake.printable import shown

logger = logging.getLogger(__name__)
#: What the directories of a cache hold: how many levels down, and what it is called there
FORMS = {
    "entries": (3, ENTRY),
    "blobs": (2, SHA256),
    "verified": (1, re.compile(r"\d+\.json")),
    "placed": (1, NOTE),
    "locks": (1, SHA256),
    "running": (1, private.ANNOUNCEMENT),
}
DAYS = 7  # an entry that was made or used since is kept


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs."""

    path: Path
    what: str  # for people: compile_model/unet, damaged, …
    size: int  # bytes on disk


@dataclass(frozen=True)
class Usage:
    """What the cache holds."""

    entries: int
    blobs: int
    size: int  # bytes on disk of all blobs, each counted once
    linked: int  # of these, bytes that are results at the same time: removing them would free nothing
    garbage: list[Garbage]

    @property
    def freed(self) -> int:
        """Bytes on disk that removing the garbage gives back."""
        return sum(one.size for one in self.garbage)


def usage(cache: Cache, used: Collection[str] = (), *, days: float = DAYS, named: Collection[str] = ()) -> Usage:
    """What *cache* holds and what of it nobody needs.

    Needed is a build that a current result needs, whose content was placed as a result that is still there, that a running
    job holds, or that was made or used lately.

    Args:
        used: digests of the keys that current results need.
        days: how long ago «lately» begins.
        named: digests of keys that may go although they were used lately.
    """
    tree = cache.tree
    found = {name: list(_files(tree, name)) for name in FORMS}
    garbage = [Garbage(path, what, tree.size(path)) for files in found.values() for path, _, what in files if what]
    garbage += [Garbage(path, "damaged", tree.size(path)) for path, _ in tree.contents(tree.aside)]
    garbage += [Garbage(path, "damaged", tree.size(path)) for path in _in_place_of_directories(tree)]
    right = {name: {path: state for path, state, what in files if not what} for name, files in found.items()}
    blobs = right["blobs"]
    linked = {path for path, state in blobs.items() if state.st_nlink > 1}
    in_use = linked | {cache.blobs.path(blob) for _, blob in cache.blobs.placed() if isinstance(blob, Blob)}
    kept: set[Path] = set()
    names: dict[Path, str] = {}
    going: list[Garbage] = []
    for path, state in right["entries"].items():
        entry = _read(tree, path)
        if isinstance(entry, OtherFormat):
            kept |= {cache.blobs.directory / "blobs" / name[:2] / name for name in entry.digests}
            continue
        contents = {cache.blobs.path(blob) for blob in entry.outputs.values()} if isinstance(entry, Entry) else set()
        name = entry.key.name if isinstance(entry, Entry) else ""
        names |= dict.fromkeys(contents, name)
        lately = state.st_mtime > time.time() - days * 86400 and path.stem not in named
        if isinstance(entry, Entry) and (
            path.stem in used or contents & in_use or lately or _is_held(tree, tree.top / "locks" / path.stem)
        ):
            kept |= contents
        else:
            going.append(Garbage(path, f"entry of {name}" if name else "damaged entry", tree.size(path)))
    going += [
        Garbage(path, names.get(path, "blob without a build"), _on_disk(state))
        for path, state in blobs.items()
        if path not in kept and path not in in_use
    ]
    going += [
        Garbage(path, "damaged", tree.size(path)) for path, blob in cache.blobs.placed() if isinstance(blob, Damaged)
    ]
    going += garbage
    going += [Garbage(path, "from a killed job", size) for path, size in private.leftovers(tree)]
    going += _half_fetched(tree, days)
    size = sum(map(_on_disk, blobs.values()))
    return Usage(len(right["entries"]), len(blobs), size, sum(_on_disk(blobs[path]) for path in linked), going)


def remove_garbage(
    cache: Cache, used: Collection[str] = (), *, days: float = DAYS, named: Collection[str] = ()
) -> Usage:
    """Remove what `usage` with the same arguments calls garbage, while no job stores or places; gives what it found.

    Raises:
        CacheUnusable: it cannot be written to.
    """
    tree = cache.tree
    try:
        with lock(tree.top / "lock", about="removing garbage", tree=tree):
            found = usage(cache, used, days=days, named=named)
            private.remove_leftovers(tree)
            # Entries stand first, so that one that stays has its blobs whenever this is killed.
            for one in found.garbage:
                if one.path.is_relative_to(tree.top):
                    _remove(tree, one.path)
            _remove_notes(cache)
    except OSError as error:
        raise CacheUnusable(f"{trouble(error, tree.top)}. Nothing can be removed there.") from error
    return found


def _remove_notes(cache: Cache) -> None:
    """Remove locks that killed jobs left, and notes of what is no longer there."""
    tree = cache.tree
    for path, _, what in _files(tree, "locks"):
        if not what:
            with tree.opened(path.parent) as directory, abandoned(directory, path.name) as note:
                if note is not None:
                    _remove(tree, path)
    for path, blob in cache.blobs.placed():
        if blob is None:
            _remove(tree, path)
    numbers = {state.st_ino for _, state, what in _files(tree, "blobs") if not what}
    for path, _, what in _files(tree, "verified"):
        if not what and int(path.stem) not in numbers:
            _remove(tree, path)


def _remove(tree: Tree, path: Path) -> None:
    try:
        tree.remove(path)
    except OSError as error:  # another user's
        logger.warning("%s: %s; not removed", shown(path, 400), os.strerror(error.errno or 0))


def _files(tree: Tree, name: str) -> Iterator[tuple[Path, os.stat_result, str]]:
    """What is in one of the cache's directories, with what is wrong with it; empty if it is a file of the right form."""
    levels, form = FORMS[name]
    directories = [tree.top / name]
    for level in range(levels):
        inner = []
        for directory in directories:
            for path, state in tree.contents(directory):
                if path.name.startswith("."):
                    yield path, state, "half-written"
                elif level < levels - 1 and stat.S_ISDIR(state.st_mode):
                    inner.append(path)
                else:
                    fits = level == levels - 1 and stat.S_ISREG(state.st_mode) and form.fullmatch(path.name)
                    if name == "blobs" and path.name[:2] != path.parent.name:
                        fits = None
                    yield path, state, "" if fits else "damaged"
        directories = inner


def _half_fetched(tree: Tree, days: float) -> Iterator[Garbage]:
    """What a broken connection to a remote cache left *days* ago, which a download would go on from."""
    for directory, _ in tree.contents(tree.top / "remote"):
        for path, state in tree.contents(directory):
            old = state.st_mtime < time.time() - days * 86400
            if old and SHA256.fullmatch(path.name) and not _is_held(tree, tree.top / "locks" / path.name):
                yield Garbage(path, "half fetched", _on_disk(state))


def _in_place_of_directories(tree: Tree) -> Iterator[Path]:
    """What has the name of one of the cache's directories, and is none."""
    for path, state in tree.contents(tree.top):
        if path.name in {*FORMS, tree.aside.name} and not stat.S_ISDIR(state.st_mode):
            yield path


def _read(tree: Tree, path: Path) -> Entry | Damaged | OSError:
    try:
        return Entry.parse(tree.read(path, longest=LONGEST), path)
    except (Damaged, OSError) as error:
        return error


def _is_held(tree: Tree, path: Path) -> bool:
    """Whether somebody holds the lock *path*."""
    try:
        tree.state(path)
        with tree.opened(path.parent) as directory, abandoned(directory, path.name) as note:
            return note is None
    except OSError:
        return False


def _on_disk(state: os.stat_result) -> int:
    return state.st_blocks * 512
