"""Content by its SHA-256: kept, placed, and found right before it is used."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from axbake.cache.files import share, sync, write
from axbake.cache.locks import HOST
from axbake.digest import file_sha256

logger = logging.getLogger(__name__)
REMEMBERED = 1 << 20  # bytes; what is smaller is read each time
READ_ONLY = 0o444


@dataclass(frozen=True)
class Blob:
    """Content of one output."""

    sha256: str
    size: int  # bytes


class Blobs:
    """The blobs of a cache.

    A blob is placed as a clone where the file system can (btrfs, XFS), else as a hard link where cache and place share a
    file system and the blob is this user's, else as a copy. Never as a symbolic link: ONNX refuses tensors behind one.

    About hard links:
        A linked result and its blob are one file. It is writable for its owner, because Snakemake refuses to make a
        write-protected output again; whoever writes into it, instead of replacing it, damages the blob, which is noticed.
        It also has one modification time in all checkouts: placing it in one makes it look newer in the others, and so does
        Snakemake itself, which touches every output when its job ends. There Snakemake then compares contents at each
        start (about 0.6 s of CPU a GB) and finds them equal. Nothing is built again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, blob: Blob) -> Path:
        """Where *blob* is, if it is there."""
        return self.directory / "blobs" / blob.sha256[:2] / blob.sha256

    def damage(self, blob: Blob) -> str | None:
        """What is wrong with *blob*. One that is unchanged since it was last read, by inode, size and time, is not read.

        Raises:
            OSError: it is there and may not be read.
        """
        path = self.path(blob)
        try:
            state = path.stat()
            if state.st_size != blob.size:
                return f"{state.st_size} bytes, wanted {blob.size}"
            if self._remembered(state) == blob.sha256:
                return None
            sha256 = _content(path)
        except FileNotFoundError:
            return "not there"
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return "the disk cannot read it"
        if sha256 != blob.sha256:
            return f"its SHA-256 is {sha256}"
        self._remember(state, sha256)
        return None

    def keep(self, made: Path) -> Blob:
        """Take the file *made* in, unless its content is there and whole.

        Raises:
            OSError: nothing half-written is left.
        """
        sync(made)
        blob = Blob(_content(made), made.stat().st_size)
        path = self.path(blob)
        damage = self.damage(blob)
        if damage is None:
            return blob
        if damage != "not there":
            logger.warning("%s: damaged blob (%s); replaced", path, damage)
            self.set_aside(path)
        make_directory(path.parent, within=self.directory)
        beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        try:
            if share(made, beside) != "link":
                beside.chmod(READ_ONLY)
            self._remember(beside.stat(), blob.sha256)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)
        return blob

    def place(self, blob: Blob, target: Path) -> str:
        """Give *target*, which must not exist, the content of *blob*, as new as now; says how, as `share` does."""
        source = self.path(blob)
        before = source.stat()
        how = share(source, target)
        make_writable(target)
        os.utime(target)
        if how == "link" and self._remembered(before) == blob.sha256:
            self._remember(target.stat(), blob.sha256)  # our touch does not make the blob unknown
        return how

    def note_places(self, blobs: Mapping[str, Blob], places: Mapping[str, Path]) -> None:
        """Note that *blobs* are at *places*; not of hard links, which their file counts itself."""
        for name, blob in blobs.items():
            place = places[name].absolute()
            note = self.directory / "placed" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"
            with contextlib.suppress(OSError):  # a cache that cannot be written to, which was said
                if os.path.samestat(place.stat(), self.path(blob).stat()):
                    note.unlink(missing_ok=True)
                else:
                    said = {"place": str(place), "host": HOST, "sha256": blob.sha256, "size": blob.size}
                    write(note, json.dumps(said), mode=mode_of(self.directory) & 0o666)

    def placed(self) -> Iterator[tuple[Path, Blob | None]]:
        """Notes of places, each with the blob that is there; None if it is not there any more.

        What another machine has on a disk that this one does not see counts as there.
        """
        for note in self.directory.glob("placed/[!.]*.json"):
            blob = None
            with contextlib.suppress(OSError, ValueError, KeyError):
                said = json.loads(note.read_text())
                place = Path(said["place"])
                elsewhere = said["host"] != HOST and not place.parent.is_dir()
                # Not its time, which Snakemake changes; what is of another size was replaced.
                if elsewhere or place.stat().st_size == said["size"]:
                    blob = Blob(said["sha256"], said["size"])
            yield note, blob

    def set_aside(self, path: Path) -> None:
        """Move what is damaged away, for the curious."""
        with contextlib.suppress(FileNotFoundError):
            path.replace(self.directory / "damaged" / path.name)

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file. One that is linked to a blob is not read if the blob was; if it is read, that counts for both.

        Raises:
            OSError: the file cannot be read.
        """
        state = path.stat()
        blob = self._linked(state)
        if blob and self._remembered(state) == blob.sha256:
            return blob.sha256
        sha256 = file_sha256(path)
        if blob and blob.sha256 == sha256:
            self._remember(state, sha256)
        return sha256

    def memory(self, inode: int) -> Path:
        """Note of when the file of that number was last read and found right."""
        return self.directory / "verified" / f"{inode}.json"

    def _linked(self, state: os.stat_result) -> Blob | None:
        """The blob that is the file of *state*, if one is."""
        if state.st_nlink > 1:
            with contextlib.suppress(OSError, ValueError, KeyError):
                blob = Blob(json.loads(self.memory(state.st_ino).read_text())["sha256"], state.st_size)
                return blob if os.path.samestat(state, self.path(blob).stat()) else None
        return None

    def _remembered(self, state: os.stat_result) -> str | None:
        """SHA-256 that the file of *state* had when it was last read, if it is unchanged."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            note = json.loads(self.memory(state.st_ino).read_text())
            if (note["size"], note["mtime_ns"]) == (state.st_size, state.st_mtime_ns):
                return note["sha256"]
        return None

    def _remember(self, state: os.stat_result, sha256: str) -> None:
        if state.st_size >= REMEMBERED:
            note = {"sha256": sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
            with contextlib.suppress(OSError):  # then it is read again
                write(self.memory(state.st_ino), json.dumps(note), mode=mode_of(self.directory) & 0o666)


def mode_of(directory: Path) -> int:
    """Permissions of *directory*. Everything in a cache has those of the cache's own: to share it, `chmod 2775` that."""
    return stat.S_IMODE(directory.stat().st_mode)


def make_directory(directory: Path, *, within: Path) -> None:
    """Make *directory* and those above it, with the permissions of *within*."""
    if not directory.is_dir():
        make_directory(directory.parent, within=within)
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            directory.chmod(mode_of(within))


def make_writable(path: Path) -> None:
    """Let the owner write to *path*, and others what the umask lets them; a file that is shared stays readable for all."""
    umask = os.umask(0)
    os.umask(umask)
    state = path.stat()
    path.chmod((0o666 & ~umask) | (READ_ONLY if state.st_nlink > 1 else 0))


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
