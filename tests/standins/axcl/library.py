"""The stand-in for AXCL's library (`axcl_rt.c`), compiled, and what a test asks of it."""

import ctypes
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("axcl_rt.c")
NUMBERS = {"int32": 7, "uint32": 8, "int64": 9, "float32": 15}  # NumPy's type -> axclrtEngineDataType
BF16 = 14
COMPUTE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_void_p)
)
Ports = Sequence[tuple[str, tuple[int, ...], str]]  # name, shape, type


class Counts(ctypes.Structure):
    """What was done so far; sizes in bytes."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("loads", "unloads", "runs", "bindings", "allocations"),
            *("frees", "uploaded", "downloaded", "peak", "used"),
        )
    ]


def compile_library(path: Path) -> Path:
    """The library, written to *path*."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, SOURCE], check=True)
    return path


def write_ports(
    model: Path, usage: int, inputs: Ports, outputs: Ports, *, second: tuple[Ports, Ports] | None = None
) -> None:
    """Say what *model* takes, gives, and needs of the card's memory; *second*: a second group of its shapes."""
    lines = [f"usage {usage}"]
    for group, sides in enumerate([(inputs, outputs), *([second] if second else [])]):
        lines += [f"group {group}"] if group else []
        for side, ports in zip(("input", "output"), sides, strict=True):
            for name, shape, dtype in ports:
                number = BF16 if dtype == "bfloat16" else NUMBERS[dtype]
                size = math.prod(shape) * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
                lines.append(" ".join(map(str, (side, name, number, size, *shape))))
    model.with_name(f"{model.name}.ports").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Standin:
    """The library of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._compute = COMPUTE(lambda path, inputs, outputs: 0)

    def reset(self, memory: int, compute: Callable[[Path, list[int], list[int]], None] | None = None) -> None:
        """A card with *memory* bytes, and what its models compute: path, addresses of inputs, of outputs; None: nothing."""

        def run(path: bytes, inputs, outputs) -> int:
            assert compute
            compute(Path(path.decode()), inputs, outputs)
            return 0

        self._compute = COMPUTE(run) if compute else COMPUTE()
        self._library.standin_reset(ctypes.c_uint64(memory), self._compute)

    def counts(self) -> Counts:
        """Counts since the last reset."""
        found = Counts()
        self._library.standin_counts(ctypes.byref(found))
        return found
