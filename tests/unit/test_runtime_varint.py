"""Protobuf's numbers are read, and nothing else is."""

import io

import pytest
from google.protobuf.internal.encoder import _VarintBytes

from axbake.runtime.varint import read_varint


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1])
def test_a_number_is_what_protobuf_wrote_and_nothing_behind_it_is_read(number):
    file = io.BytesIO(_VarintBytes(number) + b"\x05")

    assert read_varint(file) == number
    assert file.read() == b"\x05"


def test_a_number_that_is_cut_off_is_an_end_of_file():
    for cut in (b"", b"\x80", _VarintBytes(2**64 - 1)[:-1]):
        with pytest.raises(EOFError, match="the file ends within a number"):
            read_varint(io.BytesIO(cut))


def test_a_number_longer_than_protobuf_writes_is_refused():
    with pytest.raises(ValueError, match="a number of more than 10 bytes"):
        read_varint(io.BytesIO(b"\x80" * 10 + b"\x01"))
