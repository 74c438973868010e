"""`weights/{component}.safetensors`: a network's tensors under diffusers' names, and what the file says of itself.

Its metadata holds one entry, `axbake`, a JSON of the component's name, its family's name, its config in diffusers' form, and how
a UNet is to be run. So whoever has the file can rebuild the network, and checkpoints that share one give the same bytes.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from axbake.checkpoints.containers import BITS
from axbake.errors import AxbakeError
from axbake.families import Shapes

METADATA = "axbake"


class SamplingError(AxbakeError):
    """The row asks a UNet for a way of drawing that it was not made for."""


@dataclass(frozen=True)
class Sampling:
    """How a UNet is run, which its shapes do not tell."""

    prediction_type: str = "epsilon"  # diffusers' name of what it predicts: epsilon (the noise) or v_prediction
    zero_terminal_snr: bool = False  # trained with a schedule whose last step is pure noise (Lin et al. 2023)
    steps: int | None = None  # the only number of steps it draws in; None: any
    guided: bool = True  # whether a guidance scale above 1 means anything to it
    guidance_embedded: bool = False  # whether it takes the guidance scale as an input and runs once a step (LCM)

    def check(self, *, scheduler: str, steps: int, guidance_scale: float) -> None:
        """Raise SamplingError unless the UNet can draw with *scheduler* in so many steps with such a guidance."""
        faults = [f"column steps: {steps}, wanted {self.steps}"] if self.steps not in (None, steps) else []
        faults += (
            [f"column guidance_scale: {guidance_scale:g}, wanted 1"] if guidance_scale > 1 and not self.guided else []
        )
        faults += (
            [f"column scheduler: {scheduler}, wanted lcm"] if self.guidance_embedded and scheduler != "lcm" else []
        )
        if faults:
            raise SamplingError(f"{'; '.join(faults)}. This UNet was distilled to draw so, and in no other way.")


@dataclass(frozen=True)
class Description:
    """What a `weights/{component}.safetensors` says of itself."""

    component: str
    family: str  # empty: an autoencoder, which is of none
    config: dict  # diffusers' form
    sampling: Sampling | None = None  # of the UNet

    def as_metadata(self) -> dict[str, str]:
        """Metadata to write; one entry, since safetensors writes several in an order that differs from run to run."""
        return {METADATA: json.dumps(asdict(self), sort_keys=True)}


def read_description(weights: Path) -> Description:
    """Description in the metadata of a `weights/{component}.safetensors`."""
    with safe_open(weights, "np") as file:
        said = json.loads(file.metadata()[METADATA])
    sampling = Sampling(**said["sampling"]) if said.get("sampling") else None
    return Description(**said | {"sampling": sampling})


def read_sampling(unet: Path) -> Sampling:
    """How the UNet of a `weights/unet.safetensors` is run."""
    sampling = read_description(unet).sampling
    assert sampling, f"{unet}: no UNet's weights of this version of axbake"
    return sampling


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
