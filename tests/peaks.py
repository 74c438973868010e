"""The most memory that this process has held, counted from a moment on.

Not `ru_maxrss`: it cannot be counted anew, and a child begins with that of its parent, even a program that it starts.
"""

from pathlib import Path


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(value)


def count_anew() -> int:
    """What the process holds now, in bytes; `peak` counts from here (`clear_refs` of proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak() -> int:
    """The most that the process has held since its beginning or the last `count_anew`, in bytes."""
    return _status("VmHWM")
