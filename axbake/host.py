"""What this machine's processor can do."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux
# Flags of x86 processors that multiply bfloat16. Without them torch is slower in bfloat16 than in float32; processors of
# other kinds have not been measured.
BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def chosen_precision(wanted: str, cpuinfo: Path = CPUINFO) -> str:
    """float32 or bfloat16 as *wanted*; of `auto`, bfloat16 where this processor multiplies it."""
    if wanted != "auto":
        return wanted
    try:
        with cpuinfo.open(encoding="utf-8") as lines:
            flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    except FileNotFoundError:
        flags = []
    return "bfloat16" if BFLOAT16.intersection(flags) else "float32"
