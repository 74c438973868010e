"""`auto` takes bfloat16 where the processor multiplies it."""

import pytest

from axbake.host import chosen_precision

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
