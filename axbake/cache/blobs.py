"""Content by its SHA-256: kept, placed, and found right before it is used."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from axbake.cache.entry import Blob
from axbake.cache.errors import Damaged
from axbake.cache.files import Name, content_sha256, share, sync
from axbake.cache.locks import HOST
from axbake.cache.records import parse
from axbake.cache.tree import ABSENT, Tree, open_plain, read_all
from axbake.digest import file_sha256, is_sha256

logger = logging.getLogger(__name__)
REMEMBERED = 1 << 20  # bytes; what is smaller is read each time
CHEAP = 64 << 20  # bytes; what is smaller is read whenever anything about its file changed
READ_AGAIN = 7 * 86400  # s after which a blob that seems unchanged is read again
LONGEST = 1 << 14  # bytes of a note
HOLLOW = 1 << 30  # bytes; a larger file of which a hundredth is on disk is not one that a job wrote
READ_ONLY = 0o444
#: Results of these endings are never hard links: ONNX and ONNX Runtime refuse external tensors in a file of several names
ONE_NAME = (".onnx.data",)
NOTE = re.compile(r"[0-9a-f]{64}\.json")


@dataclass(frozen=True)
class Look:
    """When a file was read, what it was like, and what it held."""

    sha256: str
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int  # of the last change of anything about it; nobody can set it
    links: int
    read: int  # when, ns of the epoch

    def still_holds(self, state: os.stat_result) -> bool:
        """Whether a file of the same number on disk, now of *state*, may be taken to hold the same.

        A change of content always changes the file's ctime, and so do a new or removed hard link and a touch. Where the number of
        links differs, that is what changed a large file; what is smaller is read. Rot on the disk changes
        nothing of all this, so no look holds for long.
        """
        explained = state.st_size > CHEAP and state.st_nlink != self.links
        return (
            (self.size, self.mtime_ns) == (state.st_size, state.st_mtime_ns)
            and (self.ctime_ns == state.st_ctime_ns or explained)
            and abs(time.time() - self.read / 1e9) < READ_AGAIN
        )


class Blobs:
    """The blobs of a cache.

    A blob is placed as a clone where the file system can (btrfs, XFS), else as a hard link where cache and place share a
    file system and the blob is this user's, else as a copy. External tensors of a graph are never hard links, and nothing is
    a symbolic link: onnx 1.21 and newer refuse tensors in a file of several names, or behind a symbolic link (onnx/onnx#7686).

    What is believed:
        A blob that this user's axbake has read, and that is this user's file, is not read again for a week while its file seems
        unchanged. Another user's could change at any time, so it is never linked, and is read as it is copied.

    About hard links:
        A linked result and its blob are one file. It is writable for its owner, because Snakemake refuses to make a
        write-protected output again; whoever writes into it, instead of replacing it, damages the blob, which is noticed.
        It also has one modification time in all checkouts: placing it in one makes it look newer in the others, and so does
        Snakemake itself, which touches every output when its job ends. There Snakemake then compares contents at each
        start (about 0.6 s of CPU a GB) and finds them equal. Nothing is built again.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.directory = tree.top
        self._looks: dict[int, Look] = {}  # that this process knows of, by the file's number on disk
        self._saved: dict[int, Look] = {}

    def path(self, blob: Blob) -> Path:
        """Where *blob* is, if it is there."""
        return self.directory / "blobs" / blob.sha256[:2] / blob.sha256

    def is_there(self, blob: Blob) -> bool:
        """Whether a file of its name and size is."""
        try:
            state = self.tree.state(self.path(blob))
        except OSError:
            return False
        return stat.S_ISREG(state.st_mode) and state.st_size == blob.size

    def damage(self, blob: Blob, *, anew: bool = False) -> str | None:
        """What is wrong with *blob*, as far as that is known before it is placed: another user's is read then.

        Args:
            anew: read it in any case.
        """
        try:
            with self.tree.plain(self.path(blob)) as opened:
                state = os.fstat(opened)
                if state.st_size != blob.size:
                    return f"{state.st_size} bytes, wanted {blob.size}"
                if state.st_size > HOLLOW and state.st_blocks * 512 * 100 < state.st_size:
                    return f"{state.st_size} bytes, of which {state.st_blocks * 512} are on disk"
                if not anew and (not _is_mine(state) or self._known(state) == blob.sha256):
                    return None
                sha256 = content_sha256(opened)
        except ABSENT:
            return "not there"
        except Damaged as error:
            return str(error)
        except OSError as error:
            return "the disk cannot read it" if error.errno == errno.EIO else os.strerror(error.errno or 0)
        if sha256 != blob.sha256:
            return f"its SHA-256 is {sha256}"
        self._remember(state, sha256)
        return None

    def keep(self, made: Path) -> Blob:
        """Take the file *made* in, unless its content is there and whole, which is looked at by reading it.

        Raises:
            OSError: nothing half-written is left.
        """
        sync(made)
        opened = os.open(made, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            blob = Blob(content_sha256(opened), os.fstat(opened).st_size)
            path = self.path(blob)
            damage = self.damage(blob, anew=True)
            if damage is None:
                return blob
            if damage != "not there":
                logger.warning("%s: damaged blob (%s); replaced", path, damage)
                self.tree.set_aside(path)
            self.tree.make(path.parent)
            with self.tree.opened(path.parent) as directory:
                beside = Name(f".{path.name}.{os.urandom(4).hex()}", directory)
                try:
                    make_writable(made, shared=True)  # readable for all before others find it
                    if share(opened, beside, source=_source(Name(made), made)) != "link":
                        beside.chmod(READ_ONLY)
                    os.rename(beside.name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
                finally:
                    beside.unlink()
                self._remember(os.stat(path.name, dir_fd=directory, follow_symlinks=False), blob.sha256)
                os.fsync(directory)
            return blob
        finally:
            os.close(opened)

    def place(self, blob: Blob, target: Path) -> str:
        """Give *target*, which must not exist, the content of *blob*, as new as now; says how, as `share` does.

        Raises:
            Damaged: there is no such content.
            OSError: *target* cannot be written.
        """
        path = self.path(blob)
        with contextlib.ExitStack() as held:
            try:
                directory = held.enter_context(self.tree.opened(path.parent))
                opened = open_plain(directory, path.name)
            except OSError as error:
                raise Damaged(os.strerror(error.errno or 0)) from error
            held.callback(os.close, opened)
            state = os.fstat(opened)
            known = _is_mine(state) and self._known(state) == blob.sha256
            source = _source(Name(path.name, directory), target) if known and _may_be_linked(state) else None
            try:
                how = share(opened, Name(target), source=source, sha256=None if known else blob.sha256)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise Damaged("the disk cannot read it") from error
        make_writable(target, shared=how == "link")
        os.utime(target)
        if how == "link":
            self._renew(target.lstat())
        return how

    def note_places(self, blobs: Mapping[str, Blob], places: Mapping[str, Path]) -> None:
        """Note that *blobs* are at *places*; not of hard links, which their file counts itself."""
        for name, blob in blobs.items():
            place = places[name].absolute()
            note = self.directory / "placed" / f"{_place_digest(str(place))}.json"
            with contextlib.suppress(OSError):  # a cache that cannot be written to, which was said
                found, kept = place.lstat(), self.tree.state(self.path(blob))
                if os.path.samestat(found, kept):
                    self._renew(found)  # our own link, touch and move do not make the blob unknown
                    self.tree.remove(note)
                else:
                    said = {"place": str(place), "host": HOST, "sha256": blob.sha256, "size": blob.size}
                    self.tree.write(note, json.dumps(said))
                self._save(kept.st_ino)

    def placed(self) -> Iterator[tuple[Path, Blob | Damaged | None]]:
        """Notes of places, each with the blob that is there; None if it is not there any more.

        What another machine has on a disk that this one does not see counts as there.
        """
        for path, state in self.tree.contents(self.directory / "placed"):
            if NOTE.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                try:
                    yield path, _placed(self.tree.read(path, longest=LONGEST), path.stem)
                except Damaged as error:
                    yield path, error
                except OSError:  # it is another user's, and is not for us to read
                    continue

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file. One that is linked to a blob is not read if the blob was; if it is read, that counts for both.

        Raises:
            OSError: the file cannot be read.
        """
        state = path.stat()
        blob = self._linked(state)
        if not blob:
            return file_sha256(path)
        if self._known(state) == blob.sha256:
            return blob.sha256
        with path.open("rb") as file:  # and not what the project remembers of it, which rot does not change
            sha256 = content_sha256(file.fileno())
        if blob.sha256 == sha256:
            self._remember(state, sha256)
            self._save(state.st_ino)
        return sha256

    def _linked(self, state: os.stat_result) -> Blob | None:
        """The blob that is the file of *state*, if one is."""
        if state.st_nlink > 1 and (look := self._look(state.st_ino)):
            blob = Blob(look.sha256, state.st_size)
            with contextlib.suppress(OSError):
                if os.path.samestat(state, self.tree.state(self.path(blob))):
                    return blob
        return None

    def _known(self, state: os.stat_result) -> str | None:
        """SHA-256 of the file of *state*, if it was read and seems unchanged."""
        look = self._look(state.st_ino)
        return look.sha256 if look and look.still_holds(state) else None

    def _look(self, inode: int) -> Look | None:
        """When the file of that number was last read, if this user's axbake did so."""
        if inode not in self._looks:
            path = self._note(inode)
            try:
                with self.tree.plain(path) as opened:
                    state = os.fstat(opened)
                    look = _parse_look(read_all(opened, LONGEST), state.st_mtime_ns) if _is_mine(state) else None
            except OSError:
                return None
            except Damaged as error:
                logger.warning("%s: damaged note of a blob (%s); set aside", path, error)
                self.tree.set_aside(path)
                return None
            if not look:
                return None
            self._looks[inode] = self._saved[inode] = look
        return self._looks[inode]

    def _note(self, inode: int) -> Path:
        """Note of when the file of that number was last read and found right."""
        return self.directory / "verified" / f"{inode}.json"

    def _remember(self, state: os.stat_result, sha256: str, *, read: int | None = None) -> None:
        """Know from now on that the file of *state* has that SHA-256, read at the time *read*, or just now."""
        look = Look(sha256, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_nlink, read or time.time_ns())
        self._looks[state.st_ino] = look

    def _renew(self, state: os.stat_result) -> None:
        """Take what has become of the file of *state* for our own doing."""
        if look := self._looks.get(state.st_ino):
            self._remember(state, look.sha256, read=look.read)

    def _save(self, inode: int) -> None:
        """Let other processes know what this one knows of the file of that number."""
        look = self._looks.get(inode)
        if look and look.size >= REMEMBERED and self._saved.get(inode) != look:
            said = {name: value for name, value in asdict(look).items() if name != "read"}
            with contextlib.suppress(OSError):  # then it is read again
                self.tree.write(self._note(inode), json.dumps(said), time=look.read)
                self._saved[inode] = look


def _source(file: Name, result: Path) -> Name | None:
    """What *result* and its blob may be hard links of."""
    return None if result.name.endswith(ONE_NAME) else file


def make_writable(path: Path, *, shared: bool) -> None:
    """Let the owner write to *path*, and others what the umask lets them; a file that is *shared* stays readable for all."""
    umask = os.umask(0)
    os.umask(umask)
    if not (shared and _is_open(path.lstat())):
        path.chmod((0o666 & ~umask) | (READ_ONLY if shared else 0))


def _is_open(state: os.stat_result) -> bool:
    """Whether a file has the permissions of a result that is shared, whatever more it has."""
    return state.st_mode & 0o644 == 0o644


def _may_be_linked(state: os.stat_result) -> bool:
    """Whether a link to a blob changes nobody else's file: it has no other name, or need not be given permissions."""
    return state.st_nlink == 1 or _is_open(state)


def _is_mine(state: os.stat_result) -> bool:
    # Snakemake sets the time of each output, which only a file's owner may; and only an owner changes it.
    return state.st_uid == os.geteuid()


def _parse_look(content: bytes, read: int) -> Look | None:
    """The note of a blob that was read at that time; None of the form that it had before there was a ctime in it.

    Raises:
        Damaged
    """
    said = parse(content)
    names = {"sha256", "size", "mtime_ns", "ctime_ns", "links"}
    if said.keys() == names - {"ctime_ns", "links"}:
        return None
    if said.keys() != names or not is_sha256(said["sha256"]):
        raise Damaged("not what axbake writes")
    if any(type(said[name]) is not int for name in names - {"sha256"}):
        raise Damaged("not what axbake writes")
    return Look(**said, read=read)


def _placed(content: bytes, name: str) -> Blob | None:
    """The blob that is at the place which a note of that name says; None if it is not there any more.

    Raises:
        Damaged
    """
    said = parse(content)
    place, host = said.get("place"), said.get("host")
    if not isinstance(place, str) or not isinstance(host, str) or len(place) > 4096 or "\0" in place:
        raise Damaged("no note of a place")
    path = Path(place)
    try:
        blob = Blob(said.get("sha256"), said.get("size"))  # type: ignore[arg-type]
        if not path.is_absolute() or ".." in path.parts or _place_digest(place) != name:
            raise Damaged("no note of this place")
    except ValueError as error:
        raise Damaged(str(error)) from error
    try:
        # Not its time, which Snakemake changes; what is of another size was replaced.
        return blob if path.lstat().st_size == blob.size else None
    except ABSENT:
        return blob if host != HOST and not os.path.isdir(path.parent) else None  # noqa: PTH112, which may raise
    except OSError:
        return blob


def _place_digest(place: str) -> str:
    return hashlib.sha256(os.fsencode(place)).hexdigest()
