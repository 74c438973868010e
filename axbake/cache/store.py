"""Find a job's result in the build cache, or build it and store it there."""

import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from axbake.cache.blobs import Blob, Blobs, make_directory, make_writable, mode_of
from axbake.cache.errors import (
    ELSEWHERE,
    FULL,
    REFUSED,
    CacheUnusable,
    InputChanged,
    NoResult,
    NotWritten,
    Overtaken,
    readable,
    trouble,
    writing,
)
from axbake.cache.files import refresh, sync, write
from axbake.cache.key import Key, explain, made_any
from axbake.cache.locks import HOST, abandoned, lock, now

logger = logging.getLogger(__name__)
PRIVATE = ".axbake-"  # in the name of each private directory
Paths = dict[str, Path]  # by output or input


@dataclass(frozen=True)
class Entry:
    """A build that is stored."""

    key: Key
    outputs: dict[str, Blob]
    seconds: float  # wall time of the build
    peak_memory: float  # GiB, of the building process or of the largest program it ran
    created: str  # UTC, ISO 8601

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """The entry in the file *path*.

        Raises:
            ValueError: it is not whole, or not the entry of that name.
            FileNotFoundError: there is none.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            key = Key(**content.pop("key"))
            outputs = {name: Blob(**blob) for name, blob in content.pop("outputs").items()}
            entry = cls(key=key, outputs=outputs, **content)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not an entry: {error}") from error
        if key.digest != path.stem or outputs.keys() != key.outputs.keys():
            raise ValueError(f"it is the entry of {key.digest}")
        return entry


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
    """The build cache in a directory, which is made when a job first needs it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.blobs = Blobs(self.directory)
        self.sha256 = self.blobs.sha256

    def find(self, key: Key) -> Entry | None:
        """The stored build of *key*, by its presence alone; for whoever plans.

        Raises:
            CacheUnusable: it may not be read.
        """
        try:
            entry = Entry.read(self.entry_path(key))
            whole = all(self.blobs.path(blob).stat().st_size == blob.size for blob in entry.outputs.values())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise CacheUnusable(f"{trouble(error, self.directory)}. It is in the build cache; {ELSEWHERE}.") from error
        return entry if whole else None

    def entries(self, step: str = "*", component: str | None = "*") -> Iterator[Entry]:
        """Builds that are stored and readable: all, or those of a step and component."""
        for path in sorted(self.directory.glob(f"entries/{step}/{component or '-'}/[!.]*.json")):
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield Entry.read(path)

    def newest(self, step: str, component: str | None) -> Entry | None:
        """The build of a step and component that was stored or placed last; None if there is none."""
        paths = self.directory.glob(f"entries/{step}/{component or '-'}/[!.]*.json")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            with contextlib.suppress(FileNotFoundError, ValueError):
                return Entry.read(path)
        return None

    def makers(self, contents: set[str]) -> Iterator[Entry]:
        """Builds that made one of *contents*, by SHA-256."""
        for path in self.directory.glob("entries/*/*/[!.]*.json"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                text = path.read_text(encoding="utf-8")
                # Ten times as fast as parsing them all.
                if any(content in text for content in contents) and made_any(entry := Entry.read(path), contents):
                    yield entry

    def why(self, key: Key) -> str:
        """Why *key* is not stored: what is new in it."""
        return explain(key, self.entries(key.step, key.component), self.makers)

    def entry_path(self, key: Key) -> Path:
        """The file of *key*'s entry."""
        return self.directory / "entries" / key.step / (key.component or "-") / f"{key.digest}.json"

    def fetch_or_build(
        self, key: Key, places: Paths, build: Callable[[Paths], None], *, inputs: Paths | None = None
    ) -> Outcome:
        """Put the result of *key* at *places*: the stored one, or else the one that *build* makes, which is then stored.

        *build* gets paths of the outputs' own names in a private directory beside the first place: containers see the
        working directory, the compiler writes to the disk that the user chose, and a cache that is full or lost meanwhile
        cannot cost the result. Of all who ask for one key at once, one builds.

        Args:
            inputs: files whose content must be the same when the build ends; else nothing is stored.

        Raises:
            CacheUnusable: no cache can be there.
            NotWritten: a place's disk is full or read-only.
            InputChanged: one of *inputs* changed.
            NoResult: *build* left out an output.
            Overtaken: another job has written to one of *places* since.
        """
        names = {name: place.name for name, place in places.items()}
        if names != key.outputs or len(set(names.values())) < len(names):
            raise ValueError(f"{key.name}: places are named {names}, the key says {key.outputs}; each name once")
        self._prepare(key)
        with self.unswept(key.name):
            entry = self._whole(key)
            if entry:
                return self._fetch(entry, places)
        with contextlib.ExitStack() as held:
            stores = self._hold(held, key)
            if stores:
                refresh(self.entry_path(key).parent)
                with self.unswept(key.name):
                    entry = self._whole(key, repair=True)
                    if entry:
                        return self._fetch(entry, places)
                self.remove_leftovers()
            return self._build(key, places, build, inputs=inputs or {}, stores=stores)

    def leftovers(self) -> list[Path]:
        """Private directories of killed owners, as far as this machine sees them."""
        return [directory for _, _, directory in self._of_the_dead() if _is_private(directory)]

    def remove_leftovers(self) -> None:
        """Remove the private directories of killed owners, as far as this machine sees them and may."""
        for announcement, note, directory in self._of_the_dead():
            elsewhere = note and note["host"] != HOST and not directory.parent.is_dir()
            if _is_private(directory):
                logger.info("%s: removing what %s left, who is dead", directory, note["owner"])
                shutil.rmtree(directory, ignore_errors=True)
            if not elsewhere and not _is_private(directory):
                announcement.unlink(missing_ok=True)

    def _of_the_dead(self) -> Iterator[tuple[Path, dict, Path]]:
        """Announcements of killed owners: file, what it says, private directory. Locked until the next is asked for."""
        for path in sorted((self.directory / "running").glob("[!.]*.json")):
            with contextlib.suppress(PermissionError), abandoned(path) as note:
                if note is not None:
                    yield path, note, Path(note.get("directory", os.devnull))

    @contextlib.contextmanager
    def unswept(self, about: str) -> Iterator[None]:
        """Nobody removes garbage meanwhile. Where the cache cannot be written to, nobody can anyway."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(lock(self.directory / "lock", about=about, shared=True))
            except OSError as error:
                if error.errno not in FULL | REFUSED:
                    raise
            yield

    def _prepare(self, key: Key) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheUnusable(
                f"{trouble(error, self.directory)}. It was to be the build cache; {ELSEWHERE}."
            ) from error
        with contextlib.suppress(OSError):  # a cache that is full or read-only can still be read
            for name in ("locks", "running", "verified", "placed", "damaged", "blobs"):
                make_directory(self.directory / name, within=self.directory)
            make_directory(self.entry_path(key).parent, within=self.directory)

    def _hold(self, held: contextlib.ExitStack, key: Key) -> bool:
        """Whether *held* got the lock of *key*; if not, the cache cannot be written to, and that is said."""
        try:
            held.enter_context(lock(self.directory / "locks" / key.digest, about=key.name))
            return True
        except OSError as error:
            if error.errno not in FULL | REFUSED | {errno.ENOENT}:
                raise
            logger.warning(
                "%s: %s. The result will NOT BE STORED; %s.", key.name, trouble(error, self.directory), ELSEWHERE
            )
            return False

    def _whole(self, key: Key, *, repair: bool = False) -> Entry | None:
        """The stored build of *key*, if all its content is there and right.

        Args:
            repair: move away what is damaged; only with the key's lock held.
        """
        path = self.entry_path(key)
        try:
            entry = Entry.read(path)
            damage = {blob: what for blob in entry.outputs.values() if (what := self.blobs.damage(blob))}
        except FileNotFoundError:
            return None
        except ValueError as error:
            if repair:
                logger.warning("%s: damaged entry of %s (%s); building again", path, key.name, error)
                self.blobs.set_aside(path)
            return None
        except OSError as error:
            raise CacheUnusable(f"{trouble(error, path)}. It is in the build cache; {ELSEWHERE}.") from error
        if damage and repair:
            for blob, what in damage.items():
                logger.warning("%s: damaged blob of %s (%s); building again", self.blobs.path(blob), key.name, what)
                self.blobs.set_aside(self.blobs.path(blob))
        return None if damage else entry

    def _fetch(self, entry: Entry, places: Paths) -> Outcome:
        started = time.monotonic()
        with self._private_directory(entry.key, places) as paths:
            before = _occupants(places)
            with writing(next(iter(places.values()))):
                ways = Counter(self.blobs.place(blob, paths[name]) for name, blob in entry.outputs.items())
                _publish(paths, places, before)
        self.blobs.note_places(entry.outputs, places)
        with contextlib.suppress(OSError):
            os.utime(self.entry_path(entry.key))  # last use, for whoever removes garbage
        size = readable(sum(blob.size for blob in entry.outputs.values()))
        how = ", ".join(f"{count} by {way}" for way, count in sorted(ways.items()))
        reason = f"stored {entry.created}, built in {entry.seconds:.0f} s"
        seconds = time.monotonic() - started
        logger.info(
            "%s: from the build cache (%s): %s placed in %.1f s, %s", entry.key.name, reason, size, seconds, how
        )
        return Outcome(True, entry, reason)

    def _build(
        self, key: Key, places: Paths, build: Callable[[Paths], None], *, inputs: Paths, stores: bool
    ) -> Outcome:
        reason = self.why(key)
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
                    f"{key.name}: {', '.join(changed)} changed while the job ran, so what was made of it is neither"
                    " stored nor placed. Let nothing else write there, and run again."
                )
            with self.unswept(key.name):
                entry = self._store(key, made, seconds) if stores else None
                with writing(next(iter(places.values()))):
                    for name, path in made.items():
                        self._settle(path, entry.outputs[name] if entry else None)
                    _publish(made, places, before)
                if entry:
                    self.blobs.note_places(entry.outputs, places)
        return Outcome(False, entry, reason)

    def _store(self, key: Key, made: Paths, seconds: float) -> Entry | None:
        """Store the files *made*, the entry last; None and a warning if the cache cannot take them."""
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak_memory = max(resource.getrusage(one).ru_maxrss for one in who) / 2**20  # KiB -> GiB
        try:
            outputs = {name: self.blobs.keep(path) for name, path in made.items()}
            entry = Entry(key, outputs, round(seconds, 1), round(peak_memory, 2), now())
            text = json.dumps(asdict(entry), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            write(self.entry_path(key), text, mode=mode_of(self.directory) & 0o666)
            return entry
        except OSError as error:
            logger.warning(
                "%s: %s. The result is placed but NOT STORED; who needs it next builds it again."
                " `python -m axbake.cache` shows what could go from the cache; %s.",
                key.name,
                trouble(error, self.directory),
                ELSEWHERE,
            )
            return None

    def _settle(self, made: Path, blob: Blob | None) -> None:
        """Make *made* ready for its place: it shares the disk with its *blob*, is on disk, and writable."""
        if blob:
            kept = self.blobs.path(blob).stat()
            own = made.stat()
            if kept.st_dev == own.st_dev and not os.path.samestat(kept, own):
                made.unlink()
                self.blobs.place(blob, made)
        sync(made)
        make_writable(made)

    @contextlib.contextmanager
    def _private_directory(self, key: Key, places: Paths) -> Iterator[Paths]:
        """Paths of the outputs in a new directory beside the first place, announced to whoever may have to clean up."""
        first = next(iter(places.values()))
        directory = first.with_name(f".{first.name}{PRIVATE}{os.urandom(4).hex()}")
        announcement = self.directory / "running" / f"{os.urandom(8).hex()}.json"
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # a cache that cannot be written to, which was said
                held.enter_context(lock(announcement, about=key.name, directory=str(directory.absolute())))
            with writing(directory):
                first.parent.mkdir(parents=True, exist_ok=True)
                directory.mkdir()
            try:
                yield {name: directory / place.name for name, place in places.items()}
            finally:
                shutil.rmtree(directory, ignore_errors=True)


def _run(key: Key, build: Callable[[Paths], None], made: Paths) -> None:
    """Have *build* make all files of *made*."""
    try:
        build(made)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = next(iter(made.values())).parent
        raise NotWritten(f"{key.name}: {trouble(error, where)}. Make room, and run again.") from error
    missing = [path.name for path in made.values() if path.is_symlink() or not path.is_file()]
    if missing:
        raise NoResult(f"{key.name}: ended well, but made no file {', '.join(missing)}.")


def _is_private(directory: Path) -> bool:
    return PRIVATE in directory.name and directory.is_dir()


def _occupants(places: Paths) -> dict[str, int | None]:
    """Inode of what lies at each place."""
    return {name: place.stat().st_ino if place.exists() else None for name, place in places.items()}


def _publish(made: Paths, places: Paths, before: dict[str, int | None]) -> None:
    """Move the files to their places, unless another job has put something there since *before*."""
    for name, inode in _occupants(places).items():
        if inode not in (None, before[name]):
            raise Overtaken(
                f"{places[name]}: another job has put its result there since this one began; that one stays."
                " A Snakemake that was killed has likely left this one running."
            )
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        made[name].replace(place)
        sync(place.parent)
