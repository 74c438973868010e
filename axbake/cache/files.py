"""Files that appear whole or not at all, and share the disk's blocks where the file system can."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

FICLONE = 0x40049409  # linux/fs.h: both files use the same blocks until one is written to
NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def share(source: Path, target: Path) -> str:
    """Give *target*, which must not exist, the content of *source*, on disk when this returns.

    Returns:
        How: `clone` (own file, same blocks), `link` (the same file) or `copy`.

    Raises:
        OSError: nothing is left of *target*.
    """
    try:
        if _clone(source, target):
            return "clone"
        if _link(source, target):
            return "link"
        shutil.copyfile(source, target)
        sync(target)
        return "copy"
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _clone(source: Path, target: Path) -> bool:
    with source.open("rb") as original, target.open("xb") as file:
        try:
            fcntl.ioctl(file.fileno(), FICLONE, original.fileno())
        except OSError as error:
            if error.errno not in NO_CLONE:
                raise
            target.unlink()
            return False
        os.fsync(file.fileno())
        return True


def _link(source: Path, target: Path) -> bool:
    # Snakemake sets the time of each output, which only a file's owner may; so another user's is copied.
    if source.stat().st_uid != os.geteuid():
        return False
    try:
        target.hardlink_to(source)
        return True
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False


def sync(path: Path) -> None:
    """Return when the file or directory *path* is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not sync directories
            raise
    finally:
        os.close(descriptor)


def write(path: Path, text: str, *, mode: int) -> None:
    """Write *text* to *path* so that it is on disk before it is there."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        beside.chmod(mode)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def refresh(directory: Path) -> None:
    """Make a network file system look again which files *directory* has.

    NFS clients remember for up to 30 s that a file is not there. A change of their own makes them ask the server.
    """
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=directory, prefix=".refresh."):
        pass
