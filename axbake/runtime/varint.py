"""Numbers as protobuf writes them."""

from __future__ import annotations

from typing import BinaryIO

MOST_BYTES = 10  # that 64 bits take, 7 a byte


def read_varint(file: BinaryIO) -> int:
    """The next protobuf varint of *file*: 7 bits a byte, the low ones first, the eighth bit set where more follow.

    Raises:
        EOFError: the file ends within it.
        ValueError: it has more than 10 bytes.
    """
    value = 0
    for i in range(MOST_BYTES):
        byte = file.read(1)
        if not byte:
            raise EOFError("the file ends within a number")
        value |= (byte[0] & 0x7F) << 7 * i
        if byte[0] < 0x80:
            return value
    raise ValueError(f"a number of more than {MOST_BYTES} bytes")
