"""What the build cache itself takes for a hit, without Snakemake around it.

    python bench/hits.py DIRECTORY [GB]

DIRECTORY is a new one on the disk to measure; GB is the size of the large blob (0.5). Medians: a hit whose result lies on the
cache's disk, also after the earlier result was removed, or after the blob's time changed, so that it is read again; one on
another disk (`/dev/shm`), which copies; a lookup by the planner; the reasons for a new build among 300 stored ones. «Read» is
what all system calls of one such hit read, as the kernel counts them.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from axbake.cache import Cache, Key

SMALL = 100_000  # bytes
REPEATS = 15


def key_of(name: str, **settings: object) -> Key:
    """A key of a job with one output, with as many settings as a compile has."""
    more = {f"setting_{number}": number for number in range(40)}
    return Key(
        "compile_model", "unet", {"settings": {"name": name, **more, **settings}}, {"graph": "1" * 64}, {"x": "x"}
    )


def writer(size: int) -> Callable[[dict[str, Path]], None]:
    """A build whose output is *size* random bytes."""

    def build(made: dict[str, Path]) -> None:
        with made["x"].open("wb") as file:
            for _ in range(max(1, size >> 24)):
                file.write(os.urandom(min(size, 1 << 24)))

    return build


def bytes_read() -> int:
    """Bytes that this process has read so far (`rchar`, proc_pid_io(5))."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def measure(what: str, work: Callable[[int], object], before: Callable[[int], object] = lambda number: None) -> None:
    """Print the median time of *work*, and what it read the last time."""
    times, read = [], 0
    for number in range(REPEATS):
        before(number)
        start, begun = bytes_read(), time.perf_counter()
        work(number)
        times.append(time.perf_counter() - begun)
        read = bytes_read() - start
    print(f"| {what} | {1e3 * statistics.median(times):.2f} ms | {read / 1e6:.1f} MB |", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("gb", type=float, nargs="?", default=0.5, help="of the large blob (default: %(default)s)")
    options = arguments.parse_args()
    directory, size = options.directory.absolute(), int(options.gb * 1e9)
    directory.mkdir(parents=True)
    os.chdir(directory)
    cache = Cache(directory / "cache")
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    keys = {"small": key_of("small"), "large": key_of("large")}
    for name, length in (("small", SMALL), ("large", size)):
        cache.fetch_or_build(keys[name], {"x": directory / name / "x"}, writer(length))
    print("| | median | read |\n|---|---:|---:|")

    def hit(name: str, place: Path) -> Callable[[int], object]:
        return lambda number: cache.fetch_or_build(keys[name], {"x": place / f"{name}{number}" / "x"}, writer(1))

    def again(number: int) -> object:
        return cache.fetch_or_build(keys["large"], {"x": directory / "again" / "x"}, writer(1))

    def touch(number: int) -> None:
        os.utime(cache.blobs.path(cache.find(keys["large"]).outputs["x"]))

    measure("hit, 0.1 MB", hit("small", directory))
    measure(f"hit, {size / 1e9:g} GB", hit("large", directory))
    again(0)
    measure("the same, its result removed before", again, lambda number: (directory / "again" / "x").unlink())
    measure("the same, touched before", again, touch)
    measure(
        "the same, to another disk",
        lambda number: cache.fetch_or_build(keys["large"], {"x": elsewhere / "x"}, writer(1)),
        lambda number: (elsewhere / "x").unlink(missing_ok=True),
    )
    for number in range(300):
        cache.fetch_or_build(key_of("other", number=number), {"x": directory / "other" / "x"}, writer(10))
    measure("lookup by the planner", lambda number: cache.find(keys["large"]))
    measure("why, of 300 builds", lambda number: cache.why(key_of("other", number=-1)))
    measure("all 302 entries", lambda number: list(cache.entries()))
    shutil.rmtree(elsewhere)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
