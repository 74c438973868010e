"""What this machine's processors can do."""

import importlib.util
from pathlib import Path

from axbake.errors import AxbakeError

CPUINFO = Path("/proc/cpuinfo")  # Linux
# Flags of x86 processors that multiply bfloat16. Without them torch is slower in bfloat16 than in float32; processors of
# other kinds have not been measured.
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
CPU, CUDA = "cpu", "cuda"
DRIVER = Path("/dev/nvidiactl")  # there while NVIDIA's driver is loaded, in containers that were given a GPU too
CUDA_LIBRARY = "lib/libtorch_cuda.so"  # of torch's builds for CUDA, in its package


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
