"""The networks of a model as torch modules, made from `weights/{component}.safetensors`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from axbake.host import CPU, CUDA, DeviceError
from axbake.weights.files import read_description, read_shapes, read_tensor

#: Config in diffusers' form -> the network, with whatever weights the surrounding device context gives
Build = Callable[[dict], Any]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # by the names that settings have


def wanted_shapes(build: Build, config: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the network of *config* has; nothing is allocated."""
    return dict(_wanted_shapes(build, json.dumps(config)))


@functools.lru_cache(maxsize=32)
def _wanted_shapes(build: Build, config: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(json.loads(config)).state_dict().items()}


def load(weights: Path, build: Build, *, dtype: torch.dtype = torch.float32, device: str = CPU) -> Any:
    """The network of a `weights/{component}.safetensors`, in evaluation mode.

    One tensor at a time is read and converted, so the peak is the network's own size.

    Raises:
        DeviceError: *device* is cuda, and torch finds none.
    """
    check_device(device)
    tensors = {name: read_tensor(weights, name).to(device, dtype) for name in read_shapes(weights)}
    return filled(build, read_description(weights).config, tensors)


def check_device(device: str) -> None:
    """Raise DeviceError if torch cannot compute on *device*; on a GPU, keep it to float32 and to one order of sums."""
    if device != CUDA:
        return
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device: {device}, but torch {torch.__version__} finds no CUDA GPU here. Set device to cpu, or install a build of"
            " torch for CUDA (`make TORCH=auto`) on a machine with NVIDIA's driver."
        )
    # Convolutions would be computed in TF32, of 10 bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def filled(build: Build, config: dict, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The network of *config* with *tensors* as its own, in evaluation mode."""
    with torch.device("meta"):
        module = build(config)
    module.load_state_dict(tensors, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # CLIP's position ids, the only buffer that no checkpoint holds
            owner = module.get_submodule(name.rpartition(".")[0])
            place = next(iter(tensors.values())).device
            setattr(owner, name.rpartition(".")[2], torch.arange(buffer.shape[-1], device=place).expand(buffer.shape))
    return module.eval().requires_grad_(False)


def channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """*network* with the channels of its convolutions of pictures last, which halves their time on CPUs."""
    for parameter in network.parameters():
        if parameter.ndim == len("NCHW"):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


class PackedConvolution(torch.nn.Module):
    """A convolution of pictures on a CPU whose weights have the order in which oneDNN computes."""

    def __init__(self, convolution: torch.nn.Conv2d) -> None:
        super().__init__()
        self.how = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self.bias = convolution.bias
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.weight = pack(convolution.weight.detach().to_mkldnn(), *self.how)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise(given, self.weight, self.bias, *self.how, "none", [], "")


def packed(network: torch.nn.Module) -> torch.nn.Module:
    """*network* with its convolutions of pictures packed for a CPU once, and not in every run: an eighth of a UNet's time.

    `bench/packed.py` measures that. The operators are those that torch's own compiler uses. On a GPU, and where oneDNN does not
    compute in the network's type, it stays as it is.
    """
    (found,) = {(parameter.device.type, parameter.dtype) for parameter in network.parameters()}
    if found not in _packable():
        return network
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is torch.nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                setattr(module, name, PackedConvolution(child))
    return network


def _packable() -> set[tuple[str, torch.dtype]]:
    """Where, and in which type, oneDNN computes convolutions."""
    if not torch.backends.mkldnn.is_available():
        return set()
    halves = {(CPU, torch.bfloat16)} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()
    return {(CPU, torch.float32)} | halves
