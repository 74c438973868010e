"""Files beside a bundle's models, read within bounds. What is damaged in one is an error that names it."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError

MOST_BYTES = 500_000_000  # of a file's arrays; those of Stable Diffusion XL's added embedding have 21 MB
MOST_JSON_BYTES = 10_000_000
# What zipfile and NumPy raise on archives that are damaged, encrypted, or whose arrays claim to be other than they are.
DAMAGED = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, EOFError)
FAULTS = (*DAMAGED, OSError, ValueError, LookupError, RuntimeError, MemoryError, TypeError, ArithmeticError)


def shown(value: object, most: int = 400) -> str:
    """The first *most* characters of *value*, those that a terminal may obey written as `\\x1b`."""
    text = str(value)[:most]
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def read_arrays(
    path: Path, wanted: Mapping[str, tuple[str, int]], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name.

    Args:
        wanted: name -> NumPy's kind of its type (`f`, `b`, `U`), and number of its axes.
        optional: those of them that may be missing.

    Raises:
        BundleError: not such a file, too large, or an array is missing, of another kind, or not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise BundleError(f"{path}: {size} bytes of arrays; wanted {MOST_BYTES} at most. Copy the bundle again.")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in wanted if name in arrays.files}
    except FAULTS as error:
        raise BundleError(
            f"{path}: {type(error).__name__}: {shown(error)}; wanted the arrays {', '.join(wanted)}. Copy the bundle again."
        ) from error
    missing = sorted(set(wanted) - set(found) - set(optional))
    if missing:
        raise BundleError(f"{path}: no array {', '.join(missing)}; wanted a file of this version of axbake.")
    wrong = [
        f"{name}: {found[name].dtype} {found[name].shape}"
        for name, (kind, axes) in wanted.items()
        if name in found
        if found[name].dtype.kind != kind or found[name].ndim != axes
    ]
    wrong += [name for name, array in found.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if wrong:
        raise BundleError(
            f"{path}: {shown('; '.join(wrong))}: not of the type that axbake writes, or not finite. Copy the bundle again."
        )
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BundleError: not there, too large, or not such a file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON_BYTES + 1)
        if len(content) > MOST_JSON_BYTES:
            raise ValueError(f"more than {MOST_JSON_BYTES} bytes")
        value = json.loads(content.decode("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {type(error).__name__}: {shown(error)}. Copy the bundle again.") from error
    return value
