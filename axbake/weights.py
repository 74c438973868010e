"""`weights/{component}.safetensors`: a network's tensors under diffusers' names, and what the file says of itself.

Its metadata holds one entry, `axbake`, a JSON of the component's name, its family's name, and its config in diffusers' form. So
whoever has the file can rebuild the network, and two checkpoints that share a network give the same bytes.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from axbake.families import FAMILIES, Shapes

METADATA = "axbake"


@dataclass(frozen=True)
class Description:
    """What a `weights/{component}.safetensors` says of itself."""

    component: str
    family: str
    config: dict  # diffusers' form

    def as_metadata(self) -> dict[str, str]:
        """Metadata to write; one entry, since safetensors writes several in an order that differs from run to run."""
        return {METADATA: json.dumps(asdict(self), sort_keys=True)}


def read_description(weights: Path) -> Description:
    """Description in the metadata of a `weights/{component}.safetensors`."""
    with safe_open(weights, "np") as file:
        return Description(**json.loads(file.metadata()[METADATA]))


def prediction_type(unet: Path) -> str:
    """diffusers' name of what the UNet of a `weights/unet.safetensors` was trained to predict."""
    return FAMILIES[read_description(unet).family].prediction_type


def read_shapes(weights: Path) -> Shapes:
    """Shape of each tensor of a safetensors file."""
    with safe_open(weights, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a dict


def read_tensor(weights: Path, name: str) -> Any:
    """Tensor *name* of a safetensors file as torch's, in the type that it is stored in.

    The file is opened for this tensor alone: one that stays open keeps every page mapped that was ever read, and all of
    them count as the process' memory.
    """
    with safe_open(weights, "pt") as file:
        return file.get_tensor(name)


def read_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a safetensors file the bytes of each tensor begin and end.

    The format is public (safetensors' README), and its library does not tell: the header's length, the header, the tensors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def write_tensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    read: Callable[[str], bytes],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file one tensor at a time; the bytes are those of safetensors' own `save_file`.

    That one wants all tensors at once. The largest types come first, so that all tensors are aligned.

    Args:
        tensors: name -> type in safetensors' name (F16, BF16, F32 …), shape.
        read: name -> the tensor's bytes.
    """
    widths = {kind: int(re.search(r"\d+", kind)[0]) // 8 for kind, _ in tensors.values()}  # type: ignore[index]
    order = sorted(tensors, key=lambda name: (-widths[tensors[name][0]], tensors[name][0], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        kind, shape = tensors[name]
        start, end = end, end + math.prod(shape) * widths[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(read(name))
