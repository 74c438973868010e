"""`run`: a compiled model, or the ONNX graph, on raw inputs."""

import tempfile
from pathlib import Path
from typing import Any

from axbake.emulator import run as emulated
from tests.double.arguments import UsageError
from tests.double.container import unwrap


def run(flags: dict[str, Any]) -> int:
    """Exit code; each output as a file of raw numbers, in the directories that `--list` names."""
    missing = [flag for flag in ("model", "input_dir", "output_dir") if flag not in flags]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}")
    model = Path(flags["model"])
    listing = Path(flags["list"]) if "list" in flags else None
    print("Building native ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 100% 0:00:00")
    with tempfile.TemporaryDirectory() as directory:
        if model.suffix == ".axmodel":
            unwrap(model, Path(directory) / "model.onnx")
            model = Path(directory) / "model.onnx"
        emulated.run(model, Path(flags["input_dir"]), Path(flags["output_dir"]), listing, False)
    for name in listing.read_text().split() if listing else ["0"]:
        print(f">>> [{name}] start\n>>> [{name}] finish")
    return 0
