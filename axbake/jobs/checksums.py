"""Each file is hashed once in a run.

When a job ends, Snakemake hashes all its inputs once for each of its outputs (https://github.com/snakemake/snakemake/issues/4240),
while nothing else goes on: an import with six outputs would read its checkpoint six times.
"""

from pathlib import Path
from typing import Any


def hash_once(file_class: Any) -> None:
    """Have Snakemake's class of files remember its checksums, each as long as the file is the same to the file system.

    Args:
        file_class: `snakemake.io._IOFile`, whose `checksum` hashes. A file in a storage of Snakemake's is left to it.
    """
    hashed = file_class.checksum
    known: dict[tuple, str | None] = {}

    async def checksum(self: Any, *limits: Any, **more: Any) -> str | None:
        if self.is_storage:
            return await hashed(self, *limits, **more)
        try:
            now = Path(self.file).stat()
        except OSError:
            return await hashed(self, *limits, **more)
        of = (self.file, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns, limits, *more.items())
        if of not in known:
            known[of] = await hashed(self, *limits, **more)
        return known[of]

    file_class.checksum = checksum
