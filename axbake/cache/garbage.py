"""What the build cache holds, what of it nobody needs, and its removal."""

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from axbake.cache.locks import abandoned, lock
from axbake.cache.store import Cache, Entry

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
    entries = {path: _read(path) for path in sorted(cache.directory.glob("entries/*/*/[!.]*.json"))}
    blobs = {path: path.stat() for path in sorted(cache.directory.glob("blobs/*/[!.]*"))}
    linked = {path for path, state in blobs.items() if state.st_nlink > 1}
    in_use = linked | {cache.blobs.path(blob) for _, blob in cache.blobs.placed() if blob}
    going = {}
    kept: set[Path] = set()
    names: dict[Path, str] = {}
    for path, entry in entries.items():
        contents = {cache.blobs.path(blob) for blob in entry.outputs.values()} if entry else set()
        names |= dict.fromkeys(contents, entry.key.name if entry else "")
        lately = path.stat().st_mtime > time.time() - days * 86400 and path.stem not in named
        if entry and (
            path.stem in used or contents & in_use or lately or _is_held(cache.directory / "locks" / path.stem)
        ):
            kept |= contents
        else:
            going[path] = entry.key.name if entry else "damaged entry"
    garbage = [
        Garbage(path, f"entry of {name}" if entries[path] else name, _on_disk(path)) for path, name in going.items()
    ]
    garbage += [
        Garbage(path, names.get(path, "blob of no build"), _on_disk(path))
        for path in blobs
        if path not in kept and path not in in_use
    ]
    garbage += [Garbage(path, "damaged", _on_disk(path)) for path in sorted(cache.directory.glob("damaged/*"))]
    garbage += [Garbage(path, "half-written", _on_disk(path)) for path in _half_written(cache)]
    garbage += [Garbage(path, "of a killed job", _on_disk(path)) for path in cache.leftovers()]
    size = sum(_on_disk(path) for path in blobs)
    return Usage(len(entries), len(blobs), size, sum(_on_disk(path) for path in linked), garbage)


def remove_garbage(
    cache: Cache, used: Collection[str] = (), *, days: float = DAYS, named: Collection[str] = ()
) -> Usage:
    """Remove what `usage` with the same arguments calls garbage, while no job stores or places; gives what it found."""
    with lock(cache.directory / "lock", about="removing garbage"):
        found = usage(cache, used, days=days, named=named)
        cache.remove_leftovers()
        # Entries stand first, so that one that stays has its blobs whenever this is killed.
        for one in found.garbage:
            if one.path.is_relative_to(cache.directory):
                one.path.unlink(missing_ok=True)
        for path in cache.directory.glob("locks/*"):
            with abandoned(path) as note:
                if note is not None:
                    path.unlink()
        for path, blob in cache.blobs.placed():
            if blob is None:
                path.unlink(missing_ok=True)
        inodes = {path.stat().st_ino for path in cache.directory.glob("blobs/*/*")}
        for path in cache.directory.glob("verified/*.json"):
            if path.stem.isdigit() and int(path.stem) not in inodes:
                path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> Entry | None:
    with contextlib.suppress(ValueError):
        return Entry.read(path)
    return None


def _half_written(cache: Cache) -> Iterator[Path]:
    for place in ("blobs/*/.*", "entries/*/*/.*", "verified/.*", "placed/.*"):
        yield from sorted(cache.directory.glob(place))


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    with abandoned(path) as note:
        return note is None and path.exists()


def _on_disk(path: Path) -> int:
    if path.is_dir():
        return sum(_on_disk(inner) for inner in path.iterdir())
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(path).st_blocks * 512
    return 0
