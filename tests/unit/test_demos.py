"""The demo models are what their READMEs and the table of models say."""

from pathlib import Path

import pytest

from axbake.add import read_table
from axbake.digest import file_sha256
from axbake.inspect import inspect_checkpoint

ROOT = Path(__file__).parents[2]
HALVES = ("vae_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def rows():
    return read_table(ROOT / "config" / "models.tsv")


@pytest.mark.parametrize(("name", "family"), [("demo", "sd1"), ("demo_flow", "sd3")])
def test_a_demo_model_is_what_its_readme_and_its_row_say(name, family, rows):
    checkpoint = ROOT / rows[name]["checkpoint"]
    said, digest = inspect_checkpoint(checkpoint), file_sha256(checkpoint)
    readme = (checkpoint.parent / "README.md").read_text(encoding="utf-8")
    networks = {part: found["parameters"] for part, found in said["components"].items()}
    sizes = [number for part, number in networks.items() if part not in HALVES]

    assert (said["family"], said["bakeable"]) == (family, True)
    assert rows[name]["sha256"] == digest and f"`{digest}`" in readme
    assert f"`{checkpoint.name}` ({checkpoint.stat().st_size / 1e6:.0f} MB, fp16" in readme
    for number in [*sizes, sum(networks[half] for half in HALVES)]:
        assert f"({number / 1e6:.1f} M" in readme, number


def test_no_tensor_of_a_demo_model_counts_twice(rows):
    """The transformer's file has queries, keys and values in one tensor."""
    said = inspect_checkpoint(ROOT / rows["demo_flow"]["checkpoint"])

    assert sum(part["stored"]["F16"] for part in said["components"].values()) == said["stored"]["F16"]
