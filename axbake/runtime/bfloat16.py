"""bfloat16, which NumPy does not have: its numbers are kept as their 16 bits, in uint16."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BITS = np.dtype(np.uint16)
ONNX_TYPE = 16  # TensorProto.BFLOAT16 of onnx.proto


def to_bits(values: np.ndarray) -> np.ndarray:
    """Finite float32 *values* as bfloat16's bits, rounded to the nearest, ties to even."""
    whole = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((whole + (0x7FFF + ((whole >> 16) & 1))) >> 16).astype(BITS)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The numbers of *bits*, float32: exact."""
    return (np.ascontiguousarray(bits, BITS).astype(np.uint32) << 16).view(np.float32)


def run_with_bits(
    session: Any, outputs: Sequence[str], feed: Mapping[str, np.ndarray], halves: Sequence[str]
) -> list[np.ndarray]:
    """What ONNX Runtime's *session* gives, tensors of bfloat16 as bits.

    Args:
        halves: inputs and outputs that are of bfloat16.
    """
    from onnxruntime import OrtValue

    given = {
        name: OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPE)
        if name in halves
        else OrtValue.ortvalue_from_numpy(array)
        for name, array in feed.items()
    }
    made = session.run_with_ort_values(list(outputs), given)
    return [_bits_of(value) if name in halves else value.numpy() for name, value in zip(outputs, made)]


def _bits_of(value: Any) -> np.ndarray:
    """A copy of a tensor of bfloat16, which ONNX Runtime gives to NumPy in no other way."""
    shape = tuple(value.shape())
    memory: Any = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    return np.frombuffer(memory, BITS).reshape(shape).copy()
