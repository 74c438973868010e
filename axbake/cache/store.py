"""Find a job's result in the build cache, or build it and store it there."""

import contextlib
import errno
import json
import logging
import os
import re
import resource
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from axbake.cache import private
from axbake.cache.blobs import Blobs, make_writable
from axbake.cache.entry import Blob, Entry, OtherFormat
from axbake.cache.errors import (
    ELSEWHERE,
    FULL,
    CacheUnusable,
    Damaged,
    InputChanged,
    NoResult,
    NotWritten,
    Overtaken,
    trouble,
    writing,
)
from axbake.cache.files import sync
from axbake.cache.key import Key
from axbake.cache.locks import lock, now
from axbake.cache.reasons import explain, made_any
from axbake.cache.records import LONGEST
from axbake.cache.remote.remote import Remote
from axbake.cache.tree import ABSENT, Tree, names_in
from axbake.units import size_of

logger = logging.getLogger(__name__)
ENTRY = re.compile(r"[0-9a-f]{64}\.json")
Paths = dict[str, Path]  # by output or input


@dataclass(frozen=True)
class Outcome:
    """How a job came to its result."""

    hit: bool
    entry: Entry | None  # None: built, and could not be stored
    reason: str  # what is new about a build; where a stored result is from


def cache_directory(configured: str | None) -> Path:
    """Where the build cache is: the environment's AXBAKE_CACHE, else *configured*, else in the user's cache directory."""
    place = os.environ.get("AXBAKE_CACHE") or configured
    if place:
        return Path(place).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "axbake"


class Cache:
    """The build cache in a directory, which is made when a job first needs it.

    Others may write there too: what is damaged in it is set aside with a warning, and counts as not there.
    """

    def __init__(self, directory: Path, remote: Callable[[Tree], Remote | None] | None = None) -> None:
        """
        Args:
            remote: gives the remote cache that is asked for what is not here, for the tree of this one.
        """
        self.directory = directory.absolute()
        self.tree = Tree(self.directory)
        self.remote = remote(self.tree) if remote else None
        self.blobs = Blobs(self.tree)
        self.sha256 = self.blobs.sha256

    def find(self, key: Key) -> Entry | None:
        """The stored build of *key*, by its presence alone; for whoever plans.

        Raises:
            CacheUnusable: it may not be read.
        """
        entry = self._entry(self.entry_path(key))
        return entry if entry and all(map(self.blobs.is_there, entry.outputs.values())) else None

    def entries(self, step: str = "*", component: str | None = "*") -> Iterator[Entry]:
        """Builds that are stored and readable: all, or those of a step and component."""
        for path, directory in self._files(step, component):
            if entry := self._entry(path, directory):
                yield entry

    def makers(self, contents: set[str]) -> Iterator[Entry]:
        """Builds that made one of *contents*, by SHA-256."""
        wanted = [content.encode() for content in contents]
        for path, directory in self._files("*", "*"):
            text = self._read(path, directory)
            # Ten times as fast as parsing them all.
            if text and any(content in text for content in wanted):
                entry = self._parsed(path, text)
                if entry and made_any(entry, contents):
                    yield entry

    def _files(self, step: str, component: str | None) -> Iterator[tuple[Path, int]]:
        """Files that should be entries, each with the open directory it is in: all, or those of a step and component."""
        for above in self._directories(self.directory / "entries", step):
            for directory in self._directories(above, _folder(component)):
                with contextlib.ExitStack() as held:
                    try:
                        opened = held.enter_context(self.tree.opened(directory))
                        names = names_in(opened)
                    except OSError:
                        continue
                    for name in names:
                        if ENTRY.fullmatch(name):
                            yield directory / name, opened

    def _directories(self, above: Path, name: str) -> list[Path]:
        if name != "*":
            return [above / name]
        return [path for path, state in self.tree.contents(above) if stat.S_ISDIR(state.st_mode)]

    def _entry(self, path: Path, directory: int | None = None) -> Entry | None:
        """The entry in a file; None if there is none, or a damaged one, which is then set aside.

        Args:
            directory: that it is in, if that is open.

        Raises:
            CacheUnusable: the cache may not be read.
        """
        text = self._read(path, directory)
        return None if text is None else self._parsed(path, text)

    def _read(self, path: Path, directory: int | None = None) -> bytes | None:
        try:
            return self.tree.read(path, longest=LONGEST, directory=directory)
        except ABSENT:
            return None
        except Damaged as error:
            self._damaged(path, error)
        except OSError as error:
            if not os.access(self.directory, os.R_OK | os.X_OK):
                raise CacheUnusable(f"{trouble(error, path)}. It is in the build cache; {ELSEWHERE}.") from error
            self._damaged(path, Damaged(os.strerror(error.errno or 0)))
        return None

    def _parsed(self, path: Path, text: bytes) -> Entry | None:
        try:
            return Entry.parse(text, path)
        except OtherFormat as error:
            logger.debug("%s: %s", path, error)
        except Damaged as error:
            self._damaged(path, error)
        return None

    def _damaged(self, path: Path, error: Damaged) -> None:
        step, component = path.parts[-3:-1]
        name = step if component == "-" else f"{step}/{component}"
        aside = "; set aside" if self.tree.set_aside(path) else ""
        logger.warning("%s: damaged entry of %s (%s)%s", path, name, error, aside)

    def why(self, key: Key, *, last: str = "") -> str:
        """Why *key* is not stored: what is new in it; *last* as `explain` has it."""
        return explain(key, self.entries(key.step, key.component), self.makers, last=last)

    def entry_path(self, key: Key) -> Path:
        """The file of *key*'s entry."""
        return self.directory / "entries" / key.step / _folder(key.component) / f"{key.digest}.json"

    def fetch_or_build(
        self,
        key: Key,
        places: Paths,
        build: Callable[[Paths], None],
        *,
        inputs: Paths | None = None,
        last: str = "",
    ) -> Outcome:
        """Put the result of *key* at *places*: the stored one, or else the one that *build* makes, which is then stored.

        *build* gets paths of the outputs' own names in a private directory beside the first place: containers see the
        working directory, the compiler writes to the disk that the user chose, and a cache that is full or lost meanwhile
        cannot cost the result. Of all who ask for one key at once, one builds.

        Args:
            inputs: files whose content must be the same when the build ends; else nothing is stored.
            last: when the result was built that was there before, with which a new build is compared in words.

        Raises:
            CacheUnusable: no cache can be there.
            NotWritten: a place's disk is full or read-only.
            InputChanged: one of *inputs* changed.
            NoResult: *build* left out an output.
            Overtaken: another job has written to one of *places* since.
        """
        names = {name: place.name for name, place in places.items()}
        if names != key.outputs or len(set(names.values())) < len(names):
            raise ValueError(
                f"{key.name}: places are named {names}, but the key says {key.outputs}; wanted each name once"
            )
        self._prepare(key)
        with self.unswept(key.name):
            if outcome := self._fetch(key, places):
                return outcome
        with contextlib.ExitStack() as held:
            stores = self._hold(held, key)
            if stores:
                self.tree.refresh(self.entry_path(key).parent)
                with self.unswept(key.name):
                    if outcome := self._fetch(key, places, repair=True):
                        return outcome
                    brought = self.remote and self.remote.bring(key, self.blobs, self.entry_path(key))
                    if brought and (outcome := self._fetch(key, places, repair=True)):
                        return outcome
            return self._build(key, places, build, inputs=inputs or {}, stores=stores, last=last)

    @contextlib.contextmanager
    def unswept(self, about: str) -> Iterator[None]:
        """Nobody removes garbage meanwhile. Where the cache cannot be written to, nobody can anyway."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                held.enter_context(lock(self.directory / "lock", about=about, shared=True, tree=self.tree))
            yield

    def _prepare(self, key: Key) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheUnusable(
                f"{trouble(error, self.directory)}. The build cache cannot use it; {ELSEWHERE}."
            ) from error
        for name in ("damaged", "locks", "running", "verified", "placed", "blobs"):
            with contextlib.suppress(OSError):  # a cache that is full or read-only can still be read
                self.tree.make(self.directory / name)
        with contextlib.suppress(OSError):
            self.tree.make(self.entry_path(key).parent)

    def _hold(self, held: contextlib.ExitStack, key: Key) -> bool:
        """Whether *held* got the lock of *key*; if not, the cache cannot be written to, which is logged."""
        try:
            held.enter_context(lock(self.directory / "locks" / key.digest, about=key.name, tree=self.tree))
            return True
        except OSError as error:
            logger.warning(
                "%s: %s. The result will NOT BE STORED; %s.", key.name, trouble(error, self.directory), ELSEWHERE
            )
            return False

    def _whole(self, key: Key, *, repair: bool) -> Entry | None:
        """The stored build of *key*, if all its content is there and right, as far as `Blobs.damage` knows."""
        entry = self._entry(self.entry_path(key))
        if not entry:
            return None
        damage = {blob: what for blob in entry.outputs.values() if (what := self.blobs.damage(blob))}
        if repair:
            for blob, what in damage.items():
                self._damaged_blob(key, blob, what)
        return None if damage else entry

    def _damaged_blob(self, key: Key, blob: Blob, what: str) -> None:
        path = self.blobs.path(blob)
        logger.warning("%s: damaged blob of %s (%s); building again", path, key.name, what)
        self.tree.set_aside(path)

    def _fetch(self, key: Key, places: Paths, *, repair: bool = False) -> Outcome | None:
        """Put the stored result of *key* at *places*, if there is one that is whole.

        Args:
            repair: move away what is damaged; only with the key's lock held.
        """
        started = time.monotonic()
        entry = self._whole(key, repair=repair)
        if not entry:
            return None
        first, ways = next(iter(places.values())), Counter[str]()
        with self._private_directory(key, places) as paths, writing(first):
            before = _occupants(places)
            for name, blob in entry.outputs.items():
                try:
                    ways[self.blobs.place(blob, paths[name])] += 1
                except Damaged as error:
                    if repair:
                        self._damaged_blob(key, blob, str(error))
                    return None
            _publish(paths, places, before)
        self.blobs.note_places(entry.outputs, places)
        with contextlib.suppress(OSError, Damaged):
            self.tree.touch(self.entry_path(key))  # last use, for whoever removes garbage
        size = size_of(sum(blob.size for blob in entry.outputs.values()))
        how = ", ".join(f"{count} by {way}" for way, count in sorted(ways.items()))
        reason = f"stored {entry.created}, built in {entry.seconds:.0f} s"
        seconds = time.monotonic() - started
        logger.info("%s: from the build cache (%s): %s placed in %.1f s, %s", key.name, reason, size, seconds, how)
        return Outcome(True, entry, reason)

    def _build(
        self, key: Key, places: Paths, build: Callable[[Paths], None], *, inputs: Paths, stores: bool, last: str
    ) -> Outcome:
        reason = self.why(key, last=last)
        logger.info("building %s: %s", key.name, reason)
        contents = {name: self.sha256(path) for name, path in inputs.items()}
        with self._private_directory(key, places) as made:
            before = _occupants(places)
            started = time.monotonic()
            _run(key, build, made)
            seconds = time.monotonic() - started
            # By content: another checkout may have touched a file that it shares with this one.
            changed = [str(path) for name, path in inputs.items() if self.sha256(path) != contents[name]]
            if changed:
                raise InputChanged(
                    f"{key.name}: {', '.join(changed)} changed while the job ran, so axbake neither stores nor places "
                    "the result. Let nothing else write there, and run again."
                )
            with self.unswept(key.name):
                entry = self._store(key, made, seconds) if stores else None
                with writing(next(iter(places.values()))):
                    for name, path in made.items():
                        self._settle(path, entry.outputs[name] if entry else None)
                    _publish(made, places, before)
                if entry:
                    self.blobs.note_places(entry.outputs, places)
                    if self.remote:
                        self.remote.push_built(entry, self.blobs)
        return Outcome(False, entry, reason)

    def _store(self, key: Key, made: Paths, seconds: float) -> Entry | None:
        """Store the files *made*, the entry last; None and a warning if the cache cannot take them."""
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak_memory = max(resource.getrusage(one).ru_maxrss for one in who) / 2**20  # KiB -> GiB
        try:
            outputs = {name: self.blobs.keep(path) for name, path in made.items()}
            entry = Entry(key, outputs, round(seconds, 1), round(peak_memory, 2), now())
            text = json.dumps(entry.record(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            if len(text.encode()) > LONGEST:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.entry_path(key)))
            self.tree.write(self.entry_path(key), text)
            return entry
        except OSError as error:
            logger.warning(
                "%s: %s. The result is placed but NOT STORED; the next job that needs it builds it again. `axbake "
                "cache` shows what can be removed from the cache; %s.",
                key.name,
                trouble(error, self.directory),
                ELSEWHERE,
            )
            return None

    def _settle(self, made: Path, blob: Blob | None) -> None:
        """Make *made* ready for its place: it shares the disk with its *blob*, is on disk, and writable."""
        if blob:
            # The blob was read just now, but nobody knows who can write to another user's.
            with contextlib.suppress(OSError, Damaged):
                kept, own = self.tree.state(self.blobs.path(blob)), made.stat()
                if not os.path.samestat(kept, own) and (kept.st_dev, kept.st_uid) == (own.st_dev, own.st_uid):
                    beside = made.with_name(f".shared.{made.name}")
                    if self.blobs.place(blob, beside) != "copy":
                        beside.replace(made)
        sync(made)
        make_writable(made, shared=made.stat().st_nlink > 1)

    @contextlib.contextmanager
    def _private_directory(self, key: Key, places: Paths) -> Iterator[Paths]:
        """Paths of the outputs in a new directory beside the first place."""
        with private.private_directory(self.tree, next(iter(places.values())), about=key.name) as directory:
            yield {name: directory / place.name for name, place in places.items()}


def _folder(component: str | None) -> str:
    """The directory that entries of a component are in: one level, also of a graph of several."""
    return (component or "-").replace("/", ".")


def _run(key: Key, build: Callable[[Paths], None], made: Paths) -> None:
    """Have *build* make all files of *made*."""
    try:
        build(made)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = next(iter(made.values())).parent
        raise NotWritten(f"{key.name}: {trouble(error, where)}. Free some space and run again.") from error
    missing = [path.name for path in made.values() if path.is_symlink() or not path.is_file()]
    if missing:
        raise NoResult(f"{key.name}: ended without an error, but made no file {', '.join(missing)}.")


def _occupants(places: Paths) -> dict[str, int | None]:
    """Inode of what lies at each place."""
    return {name: place.stat().st_ino if place.exists() else None for name, place in places.items()}


def _publish(made: Paths, places: Paths, before: dict[str, int | None]) -> None:
    """Move the files to their places, unless another job has put something there since *before*."""
    for name, inode in _occupants(places).items():
        if inode not in (None, before[name]):
            raise Overtaken(
                f"{places[name]}: another job wrote its result there after this job began; the other result stays. "
                "Probably a killed Snakemake left this job running."
            )
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        made[name].replace(place)
        sync(place.parent)
