"""`weights/{component}.safetensors`: a network's tensors under diffusers' names, and what the file says of itself.

Its metadata holds one entry, `axbake`, a JSON of the component's name, its family's name, its config in diffusers' form, and how
a UNet is to be run. So whoever has the file can rebuild the network, and checkpoints that share one give the same bytes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from axbake.networks.component import Shapes
from axbake.networks.sampling import Sampling, sampling_of

METADATA = "axbake"


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
    sampling = sampling_of(said["sampling"]) if said.get("sampling") else None
    return Description(**said | {"sampling": sampling})


def read_sampling(unet: Path) -> Sampling:
    """How the UNet of a `weights/unet.safetensors` is run."""
    sampling = read_description(unet).sampling
    assert sampling, f"{unet}: not a UNet's weights from this version of axbake"
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
