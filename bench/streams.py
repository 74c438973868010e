"""How fast files of gigabytes go through: digests, import, tars; beside what hash and disk can do at all.

    python bench/streams.py DIRECTORY [--repeats 3]

DIRECTORY keeps a random checkpoint of Stable Diffusion 1.5's size (made where it is not yet). Each row is a process of its own.
"""

import argparse
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

from measure import full_size, import_part, median, run

BLOCK = 1 << 20  # bytes


def hash_memory(directory: Path) -> int:
    """SHA-256 of 2 GB in memory: what the processor can do."""
    block, digest = bytes(BLOCK), hashlib.sha256()
    for _ in range(2000):
        digest.update(block)
    return 2000 * BLOCK


def digest_checkpoint(directory: Path) -> int:
    """`axbake.digest.file_sha256` of the checkpoint."""
    from axbake.digest import file_sha256

    path = directory / "random-sd15.safetensors"
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)  # where no digest is remembered
        file_sha256(path)
    return path.stat().st_size


def copy_unet(directory: Path) -> int:
    """The UNet's weights copied in Python and put on disk: what the disk can do."""
    source = directory / "unet.safetensors"
    with tempfile.NamedTemporaryFile(dir=directory) as copy, source.open("rb") as file:
        shutil.copyfileobj(file, copy, BLOCK)
        os.fsync(copy.fileno())
    return source.stat().st_size


def import_unet(directory: Path) -> int:
    """`axbake.weights.importing.import_denoiser` of the UNet, put on disk."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        weights = Path(place) / "unet.safetensors"
        import_part(directory / "random-sd15.safetensors", component="unet", weights=weights)
        with weights.open("rb") as file:
            os.fsync(file.fileno())
        return weights.stat().st_size


def read_tar(directory: Path) -> int:
    """Every sample of a calibration tar of 256 × 1 MB, read by the emulator."""
    import numpy as np

    from axbake.emulator.calibration_data import Source, samples
    from axbake.emulator.config import InputCalibration
    from axbake.emulator.graph import TensorSpec

    shape = (1, 4, 256, 256)
    path = directory / "streams.tar"
    settings = InputCalibration(tensor_name="x", dataset=path, format="Numpy", size=-1, mean=(), std=())
    source = Source(settings, (TensorSpec("x", np.dtype(np.float32), shape),), "RGB")
    return sum(sample["x"].nbytes for sample in samples((source,)))


def write_tar(path: Path) -> None:
    """256 arrays of 1 MB."""
    import io

    import numpy as np

    packed = io.BytesIO()
    np.save(packed, np.zeros((1, 4, 256, 256), np.float32))
    with tarfile.open(path, "w") as archive:
        for number in range(256):
            member = tarfile.TarInfo(f"{number}.npy")
            member.size = packed.seek(0, io.SEEK_END)
            packed.seek(0)
            archive.addfile(member, packed)


WAYS = {way.__name__: way for way in (hash_memory, digest_checkpoint, copy_unet, import_unet, read_tar)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--way", choices=WAYS, help="run this one here, and print its bytes and seconds")
    options = arguments.parse_args()
    if options.way:
        started = time.monotonic()
        print(json.dumps([WAYS[options.way](options.directory.resolve()), time.monotonic() - started]))
        return
    full_size(options.directory)
    write_tar(options.directory / "streams.tar")
    rounds = [{way: run("streams.py", options.directory, "--way", way) for way in WAYS} for _ in range(options.repeats)]
    print(f"Medians of {options.repeats}:\n\n| | a second | wall time | peak memory |\n|---|---:|---:|---:|")
    for way, function in WAYS.items():
        costs = [costs[way] for costs in rounds]
        size, seconds = sorted((json.loads(c.said) for c in costs), key=lambda pair: pair[1])[len(costs) // 2]
        what = (function.__doc__ or "").splitlines()[0].rstrip(".")
        print(f"| {what} | {size / seconds / 1e6:.0f} MB | {seconds:.1f} s | {median(costs).gib:.2f} GiB |")


if __name__ == "__main__":
    main()
