"""Names of users' files that mean something to Snakemake, as inputs of jobs.

Snakemake reads {…} in an input as a wildcard and <…> as a variable, and has no way to write them as they are. A link with a plain
name stands for such a file in the workflow; jobs get the file's own name again.
"""

import hashlib
import os
import re
from pathlib import Path

LINKS = Path(".axbake", "inputs")
SYNTAX = re.compile(r"[{}<>]")


def as_input(path: str) -> str:
    """What stands for the file *path* in the workflow: itself, or a link, which is made."""
    if not SYNTAX.search(path):
        return path
    link = LINKS / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    target = Path(path) if Path(path).is_absolute() else Path(os.path.relpath(path, LINKS))
    if not link.is_symlink() or link.readlink() != target:
        LINKS.mkdir(parents=True, exist_ok=True)
        made = link.with_name(f"{link.name}.{os.getpid()}")
        made.symlink_to(target)
        made.replace(link)
    return str(link)


def meant(path: Path) -> Path:
    """The file that an input stands for."""
    if path.parent != LINKS:
        return path
    return Path(os.path.normpath(LINKS / path.readlink()))
