"""How long a result takes that the build cache has, and how much is read for it.

    python bench/from_cache.py DIRECTORY results/random-sd15/unet.axmodel

DIRECTORY is a project in which the target was baked (`full_size.py` makes one). First the target alone is removed and made again,
then everything in `results/`. Bytes read are those of all system calls of Snakemake and its jobs, as the kernel counts
them, whether from disk or from memory; the start of Python and its libraries is part of them, so that of a run with nothing to do
stands beside. No file is removed from the build cache.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


def bytes_read() -> int:
    """Bytes that this process and the children it waited for have read so far (`rchar`, proc_pid_io(5))."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def bake(directory: Path, target: str) -> tuple[float, float]:
    """Seconds of a run for *target*, and GB that it read."""
    before, started = bytes_read(), time.monotonic()
    command = [SNAKEMAKE, "--snakefile", ROOT / "Snakefile", "--cores", "2", "--quiet", "all", "--", target]
    subprocess.run(command, cwd=directory, check=True, stderr=subprocess.DEVNULL)
    return time.monotonic() - started, (bytes_read() - before) / 1e9


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("target")
    options = arguments.parse_args()
    directory, target = options.directory, options.target
    results = directory / "results"
    print("| made again from the cache | placed | seconds | read |\n|---|---:|---:|---:|")
    print("| {} | {:.2f} GB | {:.1f} s | {:.2f} GB |".format("nothing", 0, *bake(directory, target)))
    size = (directory / target).stat().st_size / 1e9
    (directory / target).unlink()
    print("| {} | {:.2f} GB | {:.1f} s | {:.2f} GB |".format(target, size, *bake(directory, target)))
    size = sum(path.stat().st_size for path in results.rglob("*") if "settings" not in path.parts) / 1e9
    shutil.rmtree(results)
    shutil.rmtree(directory / ".snakemake")
    print("| {} | {:.2f} GB | {:.1f} s | {:.2f} GB |".format("all that it needs", size, *bake(directory, target)))


if __name__ == "__main__":
    main()
