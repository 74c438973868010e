"""Files that share the disk's blocks where the file system can."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from axbake.cache import tree
from axbake.cache.errors import Damaged

FICLONE = 0x40049409  # linux/fs.h: both files use the same blocks until one is written to
NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Name:
    """A file's name in an open directory; without one, a path."""

    name: str | Path
    directory: int | None = None

    @contextlib.contextmanager
    def new(self) -> Iterator[int]:
        """A descriptor of it, new and empty."""
        descriptor = os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self.directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor for reading it; a link is not followed."""
        descriptor = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def sha256(self) -> str:
        """SHA-256 of its content."""
        with self.opened() as descriptor:
            return content_sha256(descriptor)

    def chmod(self, mode: int) -> None:
        """Give it other permissions."""
        with self.opened() as descriptor:
            os.fchmod(descriptor, mode)

    def unlink(self) -> None:
        """Remove it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.directory)


def share(opened: int, target: Name, *, source: Name | None, sha256: str | None = None) -> str:
    """Give *target*, which must not exist, the content of the file *opened*, on disk when this returns.

    Args:
        source: the name of that file, if *target* may be a hard link to it.
        sha256: what the content must be; it is looked at as it is copied, so it is no link then.

    Returns:
        How: `clone` (own file, same blocks), `link` (the same file) or `copy`.

    Raises:
        Damaged: the content is another, or *source* another file.
        OSError: as below; nothing is left of *target*.
    """
    try:
        if _clone(opened, target):
            how, found = "clone", target.sha256() if sha256 else None
        elif source and not sha256 and _link(opened, source, target):
            return "link"
        else:
            how, found = "copy", _copy(opened, target, hashed=bool(sha256))
        if found != sha256:
            raise Damaged(f"its SHA-256 is {found}")
        return how
    except BaseException:
        target.unlink()
        raise


def content_sha256(opened: int) -> str:
    """SHA-256 of an open file."""
    with os.fdopen(opened, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clone(opened: int, target: Name) -> bool:
    with target.new() as descriptor:
        try:
            fcntl.ioctl(descriptor, FICLONE, opened)
        except OSError as error:
            if error.errno not in NO_CLONE:
                raise
            target.unlink()
            return False
        os.fsync(descriptor)
        return True


def _link(opened: int, source: Name, target: Name) -> bool:
    try:
        os.link(
            source.name,
            target.name,
            src_dir_fd=source.directory,
            dst_dir_fd=target.directory,
            follow_symlinks=False,
        )
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    linked = os.stat(target.name, dir_fd=target.directory, follow_symlinks=False)
    if not os.path.samestat(linked, os.fstat(opened)):
        raise Damaged("replaced by another file")
    return True


def _copy(opened: int, target: Name, *, hashed: bool) -> str | None:
    """Copy; the SHA-256 of what was copied if it is *hashed*."""
    digest = hashlib.sha256()
    with target.new() as descriptor:
        os.lseek(opened, 0, os.SEEK_SET)
        if not hashed:
            while os.sendfile(descriptor, opened, None, 1 << 30):
                pass
        else:
            with os.fdopen(opened, "rb", closefd=False) as source, os.fdopen(descriptor, "wb", closefd=False) as copied:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    copied.write(chunk)
        tree.sync(descriptor)
    return digest.hexdigest() if hashed else None


def sync(path: Path) -> None:
    """Return when the file or directory *path* is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tree.sync(descriptor)
    finally:
        os.close(descriptor)
