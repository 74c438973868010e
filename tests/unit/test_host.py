"""`auto` takes bfloat16 where the processor multiplies it, and a GPU where torch can use one."""

import pytest
import torch

from axbake.host import CUDA_LIBRARY, DeviceError, chosen_device, chosen_precision
from axbake.weights.networks import load
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
