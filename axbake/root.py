"""Where what axbake ships besides its code lies: in a checkout, or in a folder of the installed package."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE / "workflow_files"  # pyproject.toml puts them there when it builds a wheel
#: Folder of Snakefile, workflow/, config/, profiles/, resources/ and envs/
ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent
#: What stands before the names of programs where messages tell what to type
BIN = "" if ROOT == INSTALLED else ".venv/bin/"


def shipped(path: str) -> Path:
    """The file or folder that lies at *path* in a checkout: `resources/clip`, `axbake/pages`."""
    return (PACKAGE.parent if path.startswith("axbake/") else ROOT) / path


def run_own_code() -> None:
    """Have the processes that this one starts run a checkout's code, whatever axbake is installed beside their Python."""
    if PACKAGE.parent == ROOT:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
