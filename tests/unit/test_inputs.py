"""Names of users' files that mean something to Snakemake stand for the same file in the workflow and in jobs."""

from pathlib import Path

import pytest

from axbake.jobs.inputs import as_input, meant


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "path", ["checkpoints/{model}.safetensors", "<x>/a}b{.pt", "{", "{}/unet/config.json", "/tmp/{a}.bin"]
)
def test_a_name_that_snakemake_would_read_has_a_plain_link_and_jobs_the_name(path):
    link = as_input(path)

    assert not set(link) & set("{}<>")
    assert meant(Path(link)) == Path(path)
    assert Path(link).parent.joinpath(Path(link).readlink()).resolve() == Path(path).resolve()
    assert as_input(path) == link


@pytest.mark.parametrize("path", ["checkpoints/my model (1), final.safetensors", "results/tiny/checkpoint.safetensors"])
def test_others_stand_for_themselves(path):
    assert as_input(path) == path
    assert meant(Path(path)) == Path(path)
    assert not Path(".axbake").exists()
