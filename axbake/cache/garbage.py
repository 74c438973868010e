"""What the build cache holds, what of it nobody needs, and its removal."""

import contextlib
import datetime
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from axbake.cache.blobs import Blob
from axbake.cache.locks import abandoned, lock
from axbake.cache.store import Cache, Entry

DAYS = 7  # an entry that was made or used since is kept


@dataclass(frozen=True)
class Holding:
    """Something in the cache."""

    path: Path
    what: str  # for people: compile_model/unet, blob of no build, …
    size: int  # bytes on disk that go with it
    kept: str  # why it stays; empty if nobody needs it


@dataclass(frozen=True)
class Usage:
    """What the cache holds."""

    holdings: list[Holding]
    entries: int
    blobs: int
    size: int  # bytes on disk of all blobs, each counted once

    @property
    def garbage(self) -> list[Holding]:
        """What nobody needs."""
        return [holding for holding in self.holdings if not holding.kept]

    @property
    def freed(self) -> int:
        """Bytes on disk that removing the garbage gives back."""
        return sum(holding.size for holding in self.garbage)


def usage(cache: Cache, used: Collection[str] = (), *, days: float = DAYS, named: Collection[str] = ()) -> Usage:
    """What *cache* holds and what of it nobody needs.

    Args:
        used: digests of the keys that current results need.
        days: an entry that was made or used in the last *days* is kept.
        named: digests of keys that are to go although they are that young.
    """
    entries = {path: _read(path) for path in cache.directory.glob("entries/*/*/[!.]*.json")}
    states = {path: path.stat() for path in cache.directory.glob("blobs/*/[!.]*")}
    needed: set[Path] = set()
    reasons = {
        path: _reason(cache, path, entry, states, set(used), days, set(named)) for path, entry in entries.items()
    }
    for path, entry in entries.items():
        if entry and reasons[path]:
            needed |= _paths(cache, entry)
    holdings, counted = [], set(needed)
    for path, entry in sorted(entries.items()):
        going = {blob for blob in _paths(cache, entry) if blob in states} - counted if entry else set()
        counted |= going if not reasons[path] else set()
        size = sum(
            _on_disk(states[blob])
            for blob in (_paths(cache, entry) & states.keys() if reasons[path] and entry else going)
        )
        holdings.append(Holding(path, entry.key.name if entry else "damaged entry", size, reasons[path]))
    ...
    return Usage([], 0, 0, 0)
