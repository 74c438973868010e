"""`auto` takes bfloat16 where the processor multiplies it, and a GPU where torch can use one."""

import platform
import subprocess
import sys
from collections import Counter

import pytest
import torch

from axbake.distance import psnr
from axbake.host import CUDA_LIBRARY, DeviceError, chosen_device, chosen_precision
from axbake.weights.networks import PackedConvolution, channels_last, load, packed
from tests.tiny import ROOT
from tests.unit.conftest import SD1

ZEN4 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16 avx512vbmi\nbugs\t\t: none\n"
SKYLAKE = "processor\t: 0\nmodel name\t: Intel Xeon\nflags\t\t: fpu avx512f avx512bw\nbugs\t\t: none\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("said", "precision"), [(ZEN4, "bfloat16"), (SKYLAKE, "float32"), (ARM, "float32"), (None, "float32")]
)
def test_auto_goes_by_the_processor(said, precision, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    if said:
        cpuinfo.write_text(said)

    assert chosen_precision("auto", cpuinfo) == precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_named_is_taken_on_every_processor(precision, tmp_path):
    assert chosen_precision(precision, tmp_path / "none") == precision


def test_on_a_gpu_auto_is_bfloat16_whatever_the_processor_does(tmp_path):
    assert chosen_precision("auto", tmp_path / "none", "cuda") == "bfloat16"
    assert chosen_precision("float32", tmp_path / "none", "cuda") == "float32"


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize("library", [True, False])
def test_auto_takes_a_gpu_where_both_the_driver_and_torch_can(driver, library, tmp_path):
    package, device = tmp_path / "torch", tmp_path / "nvidiactl"
    (package / "lib").mkdir(parents=True)
    if library:
        (package / CUDA_LIBRARY).touch()
    if driver:
        device.touch()

    assert chosen_device("auto", device, package) == ("cuda" if driver and library else "cpu")
    assert [chosen_device(named, device, package) for named in ("cpu", "cuda")] == ["cpu", "cuda"]


def test_where_torch_lies_is_found_without_importing_it(tmp_path):
    (driver := tmp_path / "nvidiactl").touch()

    assert chosen_device("auto", driver) == ("cuda" if torch.version.cuda else "cpu")


def test_a_gpu_that_is_not_there_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(DeviceError, match=r"device: cuda, but torch .* finds no CUDA GPU here"):
        load(tmp_path / "unet.safetensors", SD1.denoiser.build, device="cuda")


def test_packed_convolutions_give_what_the_network_gives_and_its_modules_keep_their_names(model):
    denoiser = model.family.denoiser
    plain, packed_one = (channels_last(load(model.weights["unet"], denoiser.build)) for _ in range(2))
    packed_one = packed(packed_one)
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 4, 8, 8, generator=random), torch.tensor([3.0, 500.0])]
    given.append(torch.randn(2, 77, plain.config.cross_attention_dim, generator=random))

    with torch.inference_mode():
        wanted, found = (network(*given, return_dict=False)[0] for network in (plain, packed_one))

    assert psnr(wanted.numpy(), found.numpy()) > 100
    assert [name for name, _ in packed_one.named_modules()] == [name for name, _ in plain.named_modules()]
    kinds = Counter(type(module) for module in packed_one.modules())
    assert kinds[torch.nn.Conv2d] == 0 < kinds[PackedConvolution]


def test_what_onednn_does_not_compute_stays_as_it_is():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), torch.nn.Conv2d(1, 1, 3, padding="same")
    )

    assert {type(one) for one in packed(network)} == {torch.nn.Conv2d}
    assert type(packed(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3)).double())[0]) is torch.nn.Conv2d


FREED = """
import resource, sys, torch
from contextlib import nullcontext
from axbake.host import freed_memory_kept

def faults(kept):
    with freed_memory_kept() if kept else nullcontext():
        for _ in range(12):  # glibc's aligned chunks fit each other only after some
            torch.ones(1 << 24)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(1 << 24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(False), faults(True))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by rules of their own"
)
def test_large_tensors_take_the_memory_of_those_before_only_where_it_is_kept():
    """Four tensors of 64 MiB: 16384 pages each, which the kernel clears when they are new."""
    said = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, check=True, capture_output=True, encoding="utf-8")
    given_back, kept = map(int, said.stdout.split())

    assert kept < 1000 < 40_000 < given_back
