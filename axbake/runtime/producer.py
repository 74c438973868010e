"""Which program wrote a model, by the head of its file."""

from __future__ import annotations

from pathlib import Path

from .errors import BundleError
from .varint import read_varint

EMULATOR = "axbake-emulator"  # producer of an emulated axmodel: an ONNX graph with quantisers in it
IR_VERSION_KEY, PRODUCER_NAME_KEY = 1 << 3, 2 << 3 | 2  # fields 1 and 2 of ModelProto in onnx.proto: varint, string


def producer(path: Path) -> str:
    """Name of the program that wrote a model, from the head of its file; empty if it does not say.

    Only the few bytes before the graph are read, since a UNet has 900 MB of them: a serialised ModelProto is a row of
    fields in the order of their numbers, each behind a key of number and wire type.

    Raises:
        BundleError: it is not a model.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if read_varint(file) != IR_VERSION_KEY:
                raise ValueError("no version of ONNX where it begins")
            read_varint(file)
            if read_varint(file) != PRODUCER_NAME_KEY:
                return ""
            length, left = read_varint(file), path.stat().st_size - file.tell()
            if length > left:
                raise EOFError(f"a name of {length} bytes, {left} left")
            return file.read(length).decode("utf-8", errors="replace")
    except (EOFError, ValueError) as error:
        raise BundleError(
            f"{path}: does not begin as an ONNX model or axmodel does ({error}). Copy it again."
        ) from error
