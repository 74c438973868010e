"""Safetensors files, written one tensor at a time."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import BITS


def write_tensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    read: Callable[[str], bytes | bytearray | memoryview],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file one tensor at a time; the bytes are those of safetensors' own `save_file`.

    That one wants all tensors at once.

    Args:
        tensors: name -> type in safetensors' name (F16, BF16, F32 …), shape.
        read: name -> the tensor's bytes.
    """
    header, order = header_of(tensors, metadata=metadata)
    with path.open("wb") as file:
        file.write(header)
        for name in order:
            file.write(read(name))


def header_of(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], *, metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """What a safetensors file of *tensors* begins with, and the order in which they follow.

    The largest types come first, so that all tensors are aligned.
    """
    widths = {kind: BITS[kind] // 8 for kind, _ in tensors.values()}
    order = sorted(tensors, key=lambda name: (-widths[tensors[name][0]], tensors[name][0], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        kind, shape = tensors[name]
        start, end = end, end + math.prod(shape) * widths[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def tensor_bytes(tensor: Any) -> memoryview:
    """The bytes of a torch tensor of any type, NumPy's or not."""
    import torch  # here, since who only reads descriptions does without

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
