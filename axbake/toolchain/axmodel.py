"""What an .axmodel says of itself, read without its blobs: of Pulsar2's container, and of the emulator's ONNX graph.

Pulsar2's container is an ONNX ModelProto whose one node (or one a shape group) is `neu mode`, with weights and program as UINT8
initializers, and what it was built for in the metadata `extra_data`: a protobuf in base64. Its fields are not documented; those
read here were found in published models of Pulsar2 1.6 to 7.0, which agree, among them the package `silero-vad-axera` on PyPI.
"""

import base64
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from axbake.errors import AxbakeError
from axbake.runtime.producer import EMULATOR
from axbake.runtime.varint import read_varint

PULSAR2 = "Pulsar2"  # producer of a compiled model
NODE = "neu mode"
# Numbers of fields of `extra_data`, and of its values. Other chips' numbers are not known.
CHIP, MODE, HARDWARE = 4, 3, 5
MODES = {0: "NPU1", 1: "NPU2", 2: "NPU3"}
CHIPS = {0: "AX650", 1: "AX620E"}
# Numbers of fields in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
MOST_FIELDS, MOST_KEPT = 1_000_000, 64_000_000  # of a message; a UNet's graph has thousands of nodes in a few megabytes
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types


class AxmodelError(AxbakeError):
    """A file is not an .axmodel, or not the requested one."""


@dataclass(frozen=True)
class Value:
    """An input or output as the run time takes or gives it."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Axmodel:
    """A compiled model's own words."""

    producer: str
    version: str  # of Pulsar2, `4.2`; of an emulated model, axbake's
    commit: str  # of Pulsar2; empty for an emulated model
    hardware: str  # in Pulsar2's words, or `number 7` where its name is not known; empty: it does not say
    npu_mode: str
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    blobs: dict[str, int]  # name -> bytes


def read_axmodel(path: Path) -> Axmodel:
    """What the .axmodel *path* is. Its blobs are not read, so a model of a gigabyte takes milliseconds.

    Raises:
        AxmodelError: it is cut off, or no model, or lacks parts of one.
    """
    try:
        with path.open("rb") as file:
            blobs: dict[str, int] = {}
            model = onnx.ModelProto.FromString(
                _without_blobs(file, 0, path.stat().st_size, (GRAPH, INITIALIZER), blobs)
            )
        return _described(path, model, blobs)
    # base64 raises a ValueError, a type that onnx does not know a KeyError, a text that is not UTF-8 a TypeError.
    except (DecodeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise AxmodelError(
            f"{path.name}: not a complete .axmodel ({str(error)[:200] or 'no protobuf'}); {path.stat().st_size} bytes. "
            "The disk may have been full, or the compiler ended while it wrote."
        ) from error


def _described(path: Path, model: onnx.ModelProto, blobs: dict[str, int]) -> Axmodel:
    """What *model*, read without its *blobs*, says of itself."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if model.producer_name == EMULATOR:
        hardware, mode = properties.get("target_hardware", ""), properties.get("npu_mode", "")
        version, commit = model.producer_version, ""
    else:
        _check_container(path, model, blobs)
        hardware, mode = _built_for(properties.get("extra_data", ""))
        version, commit = _found(r"Version:\s*(\S+)", model.doc_string), _found(r"Commit:\s*(\S+)", model.doc_string)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: _value(value) for value in model.graph.input if value.name not in constants}
    outputs = {value.name: _value(value) for value in model.graph.output}
    return Axmodel(model.producer_name, version, commit, hardware, mode, inputs, outputs, blobs)


def _check_container(path: Path, model: onnx.ModelProto, blobs: dict[str, int]) -> None:
    """Raise AxmodelError unless *model* is a container with a program in it."""
    if model.producer_name != PULSAR2:
        raise AxmodelError(
            f"{path.name}: made by {model.producer_name or 'an unknown producer'!r}, wanted {PULSAR2} or {EMULATOR}"
        )
    kinds = sorted({node.op_type for node in model.graph.node})
    if kinds != [NODE] or not any(blobs.values()):
        raise AxmodelError(
            f"{path.name}: holds nodes {kinds} and {sum(blobs.values())} bytes of blobs, wanted `{NODE}` with its "
            "program. Another program, such as a simplifier, may have written it and dropped the parts that only the "
            "NPU reads."
        )
    for tensor in model.graph.initializer:
        if blobs[tensor.name] != math.prod(tensor.dims):
            raise AxmodelError(
                f"{path.name}: {tensor.name} has {blobs[tensor.name]} bytes, wanted {math.prod(tensor.dims)}"
            )


def _built_for(extra: str) -> tuple[str, str]:
    """Chip and NPU mode of an `extra_data`; empty where there is none, as in the first versions' models."""
    if not extra:
        return "", ""
    fields = dict(_fields(base64.b64decode(extra)))
    chip, hardware = fields.get(CHIP, b""), fields.get(HARDWARE, 0)  # proto3 leaves out zeros
    mode = dict(_fields(chip)).get(MODE, 0) if isinstance(chip, bytes) else chip
    return _name(CHIPS, hardware), _name(MODES, mode)


def _name(names: dict[int, str], value: int | bytes) -> str:
    return names.get(value, f"number {value}") if isinstance(value, int) else "unreadable"


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _value(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return Value(dtype, tuple(dim.dim_value for dim in tensor.shape.dim))


def _without_blobs(file: BinaryIO, start: int, end: int, way: tuple[int, ...], blobs: dict[str, int]) -> bytes:
    """The message in *file* from *start* to *end* without the `raw_data` of its initializers, whose sizes come into *blobs*.

    Args:
        way: numbers of the fields that lead from this message to the initializers; empty: this is one.
    """
    kept = bytearray()
    size = fields = 0
    file.seek(start)
    while file.tell() < end:
        key = read_varint(file)
        fields += 1
        number, wire = key >> 3, key & 7
        if wire != BYTES:
            kept += _encoded(key) + _scalar(file, wire)
            continue
        length = read_varint(file)
        here = file.tell()
        if here + length > end:
            raise EOFError(f"a field of {length} bytes, {end - here} left")
        inside = (way and number == way[0]) or (not way and number == RAW_DATA)
        if fields > MOST_FIELDS or len(kept) + (0 if inside else length) > MOST_KEPT:
            raise ValueError(f"more than {MOST_FIELDS} fields, or {MOST_KEPT} bytes besides its blobs")
        if way and number == way[0]:
            inner = _without_blobs(file, here, here + length, way[1:], blobs)
            kept += _encoded(key) + _encoded(len(inner)) + inner
        elif not way and number == RAW_DATA:
            size = length
        else:
            kept += _encoded(key) + _encoded(length) + file.read(length)
        file.seek(here + length)
    if not way:
        blobs[TensorProto.FromString(bytes(kept)).name] = size
    return bytes(kept)


def _scalar(file: BinaryIO, wire: int) -> bytes:
    sizes = {FIXED64: 8, FIXED32: 4}
    if wire == VARINT:
        return _encoded(read_varint(file))
    if wire not in sizes:
        raise ValueError(f"wire type {wire}")
    return file.read(sizes[wire])


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of *message*: a number, or the bytes of a text or message."""
    file = io.BytesIO(message)
    while file.tell() < len(message):
        key = read_varint(file)
        if key & 7 == VARINT:
            yield key >> 3, read_varint(file)
        elif key & 7 == BYTES:
            yield key >> 3, file.read(read_varint(file))
        else:
            _scalar(file, key & 7)
