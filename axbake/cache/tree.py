"""A directory that others write to as well: what lies in it is looked at for what it is before it is opened or moved.

Whoever may write to a shared cache may put a link, a named pipe or somebody else's file where a record belongs. So every path
below the cache's directory is walked with descriptors, a name at a time, and no link is followed; only plain files are opened;
and what is removed or moved is the name in that directory, not what the name may lead to.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from axbake.cache.errors import Damaged

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
INNER = DIRECTORY | os.O_NOFOLLOW
ABSENT = (FileNotFoundError, NotADirectoryError)
DEEPEST = 40  # levels of directories whose size is counted
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Tree:
    """The directory *top* and what lies below it.

    *top* itself may be a link: it is what the user named. All paths that the methods take lie below it.
    """

    def __init__(self, top: Path) -> None:
        self.top = top

    @property
    def mode(self) -> int:
        """Permissions of the directory. Everything in a cache has those of the cache's own: to share it, `chmod 2775` that."""
        return stat.S_IMODE(self.top.stat().st_mode)

    @contextlib.contextmanager
    def opened(self, directory: Path) -> Iterator[int]:
        """A descriptor of *directory*.

        Raises:
            NotADirectoryError: a link or something else lies in the place of it, or of one above it.
            OSError: it is not there, or may not be entered.
        """
        with _named(self.top):
            descriptor = os.open(self.top, DIRECTORY)
        place = self.top
        try:
            for name in directory.relative_to(self.top).parts:
                place /= name
                with _named(place):
                    inner = os.open(name, INNER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def plain(self, path: Path) -> Iterator[int]:
        """A descriptor for reading the plain file *path*.

        Raises:
            Damaged: it is no plain file.
            OSError: it is not there, or may not be read.
        """
        with self.opened(path.parent) as directory, _named(path):
            descriptor = open_plain(directory, path.name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, path: Path, *, longest: int, directory: int | None = None) -> bytes:
        """What is in the plain file *path*.

        Args:
            directory: that it is in, if that is open.

        Raises:
            Damaged: it is no plain file, or of more than *longest* bytes.
            OSError: it is not there, or cannot be read.
        """
        if directory is None:
            with self.opened(path.parent) as opened:
                return self.read(path, longest=longest, directory=opened)
        with _named(path):
            descriptor = open_plain(directory, path.name)
            try:
                return read_all(descriptor, longest)
            finally:
                os.close(descriptor)

    def write(self, path: Path, text: str, *, time: int | None = None) -> None:
        """Write *text* to *path* so that it is on disk before it is there, readable as the tree is.

        Args:
            time: that the file is to have, in nanoseconds; otherwise the present one.
        """
        beside = f".{path.name}.{os.urandom(4).hex()}"
        with self.opened(path.parent) as directory, _named(path):
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fchmod(descriptor, self.mode & 0o666)
                    if time is not None:
                        os.utime(descriptor, ns=(time, time))
                    os.fsync(descriptor)
                os.rename(beside, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=directory)
                raise
            sync(directory)

    def state(self, path: Path) -> os.stat_result:
        """What `lstat` says of *path*.

        Raises:
            OSError: it is not there, or may not be looked at.
        """
        with self.opened(path.parent) as directory, _named(path):
            return os.stat(path.name, dir_fd=directory, follow_symlinks=False)

    def touch(self, path: Path) -> None:
        """Make the plain file *path* as new as now, unless it has other names too.

        Raises:
            Damaged: it is no plain file.
            OSError: it is not there, or may not be touched.
        """
        with self.plain(path) as descriptor:
            if os.fstat(descriptor).st_nlink == 1:
                os.utime(descriptor)

    def contents(self, directory: Path) -> list[tuple[Path, os.stat_result]]:
        """What lies in *directory*, sorted by name, with what `lstat` says of it; nothing where there is no such directory."""
        found = []
        with contextlib.suppress(*ABSENT, PermissionError), self.opened(directory) as place:
            for name in names_in(place):
                with contextlib.suppress(FileNotFoundError):
                    found.append((directory / name, os.stat(name, dir_fd=place, follow_symlinks=False)))
        return found

    def make(self, directory: Path) -> None:
        """Make *directory* and those above it, with the permissions of the tree's own.

        What lies in their places and is no directory is set aside.
        """
        if directory == self.top:
            return
        self.make(directory.parent)
        with self.opened(directory.parent) as above, _named(directory):
            try:
                descriptor = os.open(directory.name, INNER, dir_fd=above)
            except NotADirectoryError:
                if directory == self.aside:
                    os.unlink(directory.name, dir_fd=above)
                else:
                    self.set_aside(directory)
                descriptor = _new_directory(above, directory.name)
            except FileNotFoundError:
                descriptor = _new_directory(above, directory.name)
            try:
                found = os.fstat(descriptor)
                # A killed owner may have left it as the umask had it.
                if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != self.mode:
                    os.fchmod(descriptor, self.mode)
            finally:
                os.close(descriptor)

    def refresh(self, directory: Path) -> None:
        """Make a network file system look again which files *directory* has.

        NFS clients remember for up to 30 s that a file is not there. A change of their own makes them ask the server.
        """
        name = f".refresh.{os.urandom(4).hex()}"
        with contextlib.suppress(OSError), self.opened(directory) as place:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=place))
            os.unlink(name, dir_fd=place)

    @property
    def aside(self) -> Path:
        """Where damaged things are moved to."""
        return self.top / "damaged"

    def set_aside(self, path: Path) -> bool:
        """Move what lies at *path*, and is damaged, away for the curious; whether it is gone from there."""
        try:
            self.make(self.aside)
            with self.opened(path.parent) as source, self.opened(self.aside) as target:
                taken = path.name in names_in(target)
                name = f"{path.name[:200]}.{os.urandom(4).hex()}" if taken else path.name
                os.rename(path.name, name, src_dir_fd=source, dst_dir_fd=target)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def remove(self, path: Path) -> None:
        """Remove *path*, a file or a directory; nothing if it is not there.

        Raises:
            OSError: it may not be removed.
        """
        with contextlib.suppress(*ABSENT), self.opened(path.parent) as directory, _named(path):
            remove_all(directory, path.name)

    def size(self, path: Path) -> int:
        """Bytes on disk of a file, or of all in a directory; 0 if it is not there."""
        with contextlib.suppress(OSError), self.opened(path.parent) as directory:
            return size_on_disk(directory, path.name)
        return 0


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors name *path* and not its last part alone."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def open_plain(directory: int, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of the plain file *name* in a directory. Nothing else is opened, since that alone can block or do things.

    Raises:
        Damaged: it is no plain file; or it is to be written to, and has other names too.
        FileExistsError: it was to be made, and somebody made it meanwhile.
        OSError: as `os.open`.
    """
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    try:
        _check(os.stat(name, dir_fd=directory, follow_symlinks=False), writes)
        # Linux refuses O_CREAT for another user's file in a directory that anybody may write to (fs.protected_regular).
        flags &= ~os.O_CREAT
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        flags |= os.O_EXCL
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=directory)
    try:
        _check(os.fstat(descriptor), writes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(state: os.stat_result, writes: bool) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise Damaged(f"{KINDS.get(stat.S_IFMT(state.st_mode), 'something')}, not a file")
    if writes and state.st_nlink > 1:
        raise Damaged("a file with other names (hard links)")


def names_in(descriptor: int) -> list[str]:
    """Names in an open directory, sorted."""
    with os.scandir(descriptor) as found:
        return sorted(entry.name for entry in found)


def read_all(descriptor: int, longest: int) -> bytes:
    """What is in an open file.

    Raises:
        Damaged: more than *longest* bytes.
    """
    size = os.fstat(descriptor).st_size
    content = b""
    while size <= longest and len(content) <= longest and (more := os.read(descriptor, size + 1)):
        content += more
    if max(size, len(content)) > longest:
        raise Damaged(f"{max(size, len(content))} bytes, wanted {longest} at most")
    return content


def sync(descriptor: int) -> None:
    """Return when an open file or directory is on disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not sync directories
            raise


def _new_directory(above: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
    return os.open(name, INNER, dir_fd=above)


def remove_all(directory: int, name: str) -> None:
    """Remove *name* in a directory, and all below it; a link itself and not what it leads to.

    What lies deeper is first moved up beside *name*, so that any depth takes few descriptors.

    Raises:
        OSError: something may not be removed; the rest may be.
    """
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if not stat.S_ISDIR(os.stat(one, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(one, dir_fd=directory)
            continue
        descriptor = os.open(one, INNER, dir_fd=directory)
        try:
            with os.scandir(descriptor) as found:
                for inner in list(found):
                    if inner.is_dir(follow_symlinks=False):
                        waiting.append(f".{os.urandom(8).hex()}")
                        os.rename(inner.name, waiting[-1], src_dir_fd=descriptor, dst_dir_fd=directory)
                    else:
                        os.unlink(inner.name, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(one, dir_fd=directory)


def size_on_disk(directory: int, name: str, levels: int = DEEPEST) -> int:
    """Bytes on disk of *name* in a directory: of a file, or of the files below it."""
    state = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISDIR(state.st_mode):
        return state.st_blocks * 512
    if not levels:
        return 0
    descriptor = os.open(name, INNER, dir_fd=directory)
    try:
        return sum(size_on_disk(descriptor, inner, levels - 1) for inner in names_in(descriptor))
    finally:
        os.close(descriptor)
