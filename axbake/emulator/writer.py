"""Writes an ONNX file tensor by tensor, so that its weights are never in memory together."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from axbake.errors import AxbakeError

MOST = 2**31 - 1  # bytes of a protobuf message

# Tags of protobuf fields of wire type 2 (onnx.proto): number << 3 | 2.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7 << 3 | 2, 5 << 3 | 2, 9 << 3 | 2


class TooLargeError(AxbakeError):
    """The quantised model does not fit into one ONNX file."""


class ModelWriter:
    """Takes the initializers of a model one by one, then the model."""

    def __init__(self, path: Path, spool: BinaryIO):
        self.path = path
        self.names: set[str] = set()
        self._spool = spool  # the initializers, encoded as fields of a GraphProto

    def add(self, name: str, values: np.ndarray) -> None:
        """Add an initializer; its values may be freed afterwards."""
        data_type = helper.np_dtype_to_tensor_dtype(values.dtype.newbyteorder("="))
        head = TensorProto(name=name, data_type=data_type, dims=values.shape).SerializeToString(deterministic=True)
        raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        head += bytes([TENSOR_RAW_DATA]) + _varint(raw.nbytes)
        self._spool.write(bytes([GRAPH_INITIALIZER]) + _varint(len(head) + raw.nbytes) + head)
        self._spool.write(raw.reshape(-1).view(np.uint8).data)
        self.names.add(name)
        if self._spool.tell() > MOST:
            raise TooLargeError(
                f"{self.path}: the quantised weights alone exceed the {MOST} bytes of one ONNX file at `{name}`; leave "
                "weight_data_type FP32 out, or split the model"
            )

    def finish(self, model: onnx.ModelProto, file: BinaryIO) -> None:
        """Write *model*, which has no initializers of its own, with those added here."""
        graph = model.graph.SerializeToString(deterministic=True)
        shell = onnx.ModelProto()
        shell.CopyFrom(model)
        shell.ClearField("graph")
        size = len(graph) + self._spool.tell()
        head = shell.SerializeToString(deterministic=True) + bytes([MODEL_GRAPH]) + _varint(size)
        if len(head) + size > MOST:
            raise TooLargeError(f"{self.path}: {len(head) + size} bytes, wanted at most {MOST}; split the model")
        file.write(head + graph)
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, file, 1 << 20)


@contextmanager
def written_beside(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes *path* when all went well, and vanishes when not; never is *path* half written."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _varint(number: int) -> bytes:
    """Protobuf's base-128 encoding."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
