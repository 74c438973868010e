"""What a downloaded file is by its content: safetensors, a pickle, or one of the things that sites give in a model's place."""

import re
import zipfile
from pathlib import Path

from axbake.fetch.web import error_words
from axbake.printable import one_line

LOOKED_AT = 16_384  # bytes


def is_safetensors(path: Path) -> bool:
    """Whether *path* begins as a safetensors file does; its header is checked when it is opened."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) > 8 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def is_pickle(path: Path) -> bool:
    """Whether *path* begins as a pickle does, or is a zip archive as torch.save writes it."""
    with path.open("rb") as file:
        start = file.read(2)
    return (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")) or zipfile.is_zipfile(path)


def what_else(path: Path) -> str:
    """What *path* is, if it is a text in a model's place: a pointer to it, an error, a page. Empty if it is something else."""
    if is_safetensors(path) or is_pickle(path):
        return ""
    with path.open("rb") as file:
        start = file.read(LOOKED_AT)
    if not start:
        return "empty"
    if start[:4] == b"GGUF":
        return "a GGUF file, whose weights are quantised in blocks; give the file that it was made from"
    words = start.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    if words.startswith("version https://git-lfs"):
        size = re.search(r"^size ([0-9]{1,18})$", words, re.MULTILINE)
        of = f" of a file of {int(size[1]) / 1e9:.1f} GB" if size else ""
        return f"a Git LFS pointer{of}, not the file itself"
    if words[:1] in ("{", "["):
        said = error_words(words)
        return f"an error from the site, not a file: {said}" if said else "JSON, not a checkpoint"
    if words[:1] == "<":
        said = error_words(words)
        return f"a web page, not a file{f': {said}' if said else ''}"
    return ""


def begins(path: Path) -> str:
    """The first bytes of *path*, for people."""
    with path.open("rb") as file:
        return one_line(repr(file.read(16)))
