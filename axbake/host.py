"""What this machine's processors can do, and how its memory is given."""

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axbake.errors import AxbakeError

CPUINFO = Path("/proc/cpuinfo")  # Linux
# Flags of x86 processors that multiply bfloat16. Without them torch is slower in bfloat16 than in float32; processors of
# other kinds have not been measured.
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
CPU, CUDA = "cpu", "cuda"
DRIVER = Path("/dev/nvidiactl")  # there while NVIDIA's driver is loaded, in containers that were given a GPU too
CUDA_LIBRARY = "lib/libtorch_cuda.so"  # of torch's builds for CUDA, in its package
# Parameters of glibc's `mallopt`, from its malloc.h, with their defaults, and the largest value
TRIM_THRESHOLD, MMAP_MAX = (-1, 128 << 10), (-4, 1 << 16)
MOST = 2**31 - 1


class DeviceError(AxbakeError):
    """Config asks for a GPU that torch does not find."""


def chosen_device(wanted: str, driver: Path = DRIVER, package: Path | None = None) -> str:
    """cpu or cuda as *wanted*; of `auto`, cuda where NVIDIA's driver is loaded, and torch is a build for CUDA.

    Args:
        package: torch's directory; None: the installed one's. torch itself is not imported, which takes seconds.
    """
    if wanted != "auto":
        return wanted
    if package is None:
        found = importlib.util.find_spec("torch")
        package = Path(found.origin).parent if found and found.origin else None
    return CUDA if package and (package / CUDA_LIBRARY).is_file() and driver.exists() else CPU


def chosen_precision(wanted: str, cpuinfo: Path = CPUINFO, device: str = CPU) -> str:
    """float32 or bfloat16 as *wanted*; of `auto`, bfloat16 where this processor multiplies it, and on a GPU."""
    if wanted != "auto":
        return wanted
    if device == CUDA:
        return "bfloat16"
    try:
        with cpuinfo.open(encoding="utf-8") as lines:
            flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    except FileNotFoundError:
        flags = []
    return "bfloat16" if BFLOAT16.intersection(flags) else "float32"


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, memory that is freed stays with this process, for the next tensors, up to 2 GiB more than it needs.

    By default glibc gives each tensor of more than 32 MB back to the system, and the kernel clears pages for the next one: a
    quarter to a third of the processor time of an autoencoder in torch (`bench/kept_memory.py`). Other C libraries do as ever.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    try:
        for (parameter, _), value in ((TRIM_THRESHOLD, MOST), (MMAP_MAX, 0)):
            mallopt(parameter, value)
        yield
    finally:
        for parameter, default in (TRIM_THRESHOLD, MMAP_MAX):
            mallopt(parameter, default)
        ctypes.CDLL(None).malloc_trim(0)
