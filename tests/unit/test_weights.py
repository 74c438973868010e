"""Weights files are written and read one tensor at a time."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoints.writing import tensor_bytes, write_tensors
from axbake.weights.files import read_shapes, read_tensor

TENSORS = {
    "b.half": torch.arange(6, dtype=torch.float16).reshape(2, 3) / 3,
    "a.half": torch.full((3,), -0.5, dtype=torch.float16),
    "c.single": torch.linspace(-1, 1, 5)[:, None],
    "d.brain": torch.tensor([[1e30, -1e-30]], dtype=torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
    "yes": torch.tensor([True, False]),
}
# safetensors' names
KINDS = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.bool: "BOOL"}
METADATA = {"axbake": '{"größe": 1}'}


@pytest.fixture
def written(tmp_path):
    tensors = {name: (KINDS[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    write_tensors(tmp_path / "ours", tensors, lambda name: tensor_bytes(TENSORS[name]), metadata=METADATA)
    return tmp_path / "ours"


def test_the_bytes_are_those_that_safetensors_writes(written, tmp_path):
    save_file(TENSORS, tmp_path / "theirs", metadata=METADATA)

    assert written.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_every_tensor_comes_back_as_it_was(written):
    found = load_file(written)

    assert read_shapes(written) == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(read_tensor(written, name), tensor)
        assert read_tensor(written, name).dtype == tensor.dtype


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what a process has mapped")
def test_nothing_stays_mapped_of_a_file_whose_tensors_were_read(written):
    for name in TENSORS:
        read_tensor(written, name).sum()

    assert str(written) not in Path("/proc/self/maps").read_text(encoding="utf-8")
