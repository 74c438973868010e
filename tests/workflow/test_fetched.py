"""A row whose checkpoint is an address: planned without the network, fetched once, described with where it is from."""

import json
import re
from pathlib import Path

import pytest

from axbake.cache import Cache
from tests.services.model_sites import SIGNATURE, TOKEN, model_sites
from tests.workflow.project import ROW

AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
FETCHED = ROW | {"checkpoint": AIR, "family": "sd1"}
TINY, RECORD = "results/tiny/checkpoint.json", "results/tiny/fetched/source.json"
OTHER = "results/other/fetched/source.json"


@pytest.fixture
def sites(monkeypatch, tmp_path):
    with model_sites() as sites:
        monkeypatch.setenv("CIVITAI_ENDPOINT", sites.site)
        monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        yield sites


def secrets_in(directory: Path) -> list[str]:
    """Files below *directory* that hold a secret."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".part")]
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in (TOKEN, SIGNATURE))]


def test_rows_of_one_digest_are_planned_without_the_network_and_fetched_once(fresh, checkpoint, sites):
    digest = sites.publish(checkpoint.read_bytes())
    sites.private.add("/api/download/models/102222")
    mirror = f"{sites.storage}/bucket/tiny.safetensors"
    (fresh.directory / ROW["checkpoint"]).unlink()
    fresh.write_rows(
        FETCHED | {"sha256": digest},
        FETCHED | {"model": "other", "checkpoint": mirror, "sha256": digest},
    )

    planned = fresh.planner("results/tiny/weights/unet.safetensors", TINY, OTHER)

    assert not sites.log
    assert re.search(rf"^fetch +fetch_checkpoint +\S.*  from {re.escape(AIR)}$", planned, re.MULTILINE)
    assert "build    import_sd1 " in planned  # the table tells its input's digest
    assert "first build of import_denoiser/unet" in planned
    assert "3 jobs: 2 to fetch, 0 stored, 1 to build" in planned

    said = fresh.bake(TINY, OTHER)

    assert len(sites.asked("storage")) == 1
    assert all("authorization" not in seen.headers for seen in sites.asked("storage"))
    place = fresh.directory / "checkpoints" / "downloads" / f"{digest}.safetensors"
    for model in ("tiny", "other"):
        assert (fresh.directory / "results" / model / "fetched" / "checkpoint").resolve() == place
    described = json.loads((fresh.directory / TINY).read_text())
    assert described["sha256"] == digest and described["autov2"] == digest[:10]
    assert described["fetched"]["source"] == AIR and described["fetched"]["base_model"] == "SD 1.5"
    assert described["fetched"]["licence"]["allowCommercialUse"] == ["Image", "RentCivit"]
    assert json.loads((fresh.directory / OTHER).read_text())["source"] == mirror
    assert not secrets_in(fresh.directory) and not secrets_in(fresh.cache)
    assert TOKEN not in said and SIGNATURE not in said
    assert list(Cache(fresh.cache).entries("describe_checkpoint"))


def test_a_download_outlives_its_link_and_is_fetched_again_only_when_it_is_gone(fresh, checkpoint, sites):
    """Links are outputs, which Snakemake removes before it makes them again; the download is none."""
    digest = sites.publish(checkpoint.read_bytes())
    cell = "civitai.com/models/47274?modelVersionId=102222&ref=friend"
    fresh.write_rows(FETCHED | {"checkpoint": cell, "sha256": digest})
    assert fresh.bake(RECORD).count("parameters that change nothing here: ref") == 1
    assert json.loads((fresh.directory / RECORD).read_text())["unused_parameters"] == ["ref"]
    place = fresh.directory / "checkpoints" / "downloads" / f"{digest}.safetensors"
    sites.log.clear()

    fresh.bake(RECORD, "--forcerun", "fetch_checkpoint")
    assert not sites.log and place.is_file()
    assert "Nothing to be done" in fresh.bake(RECORD)
    place.unlink()
    fresh.bake(RECORD, "results/tiny/fetched/checkpoint")
    assert len(sites.asked("storage")) == 1


def test_what_cannot_be_fetched_says_why_and_nothing_that_looks_finished_is_left(fresh, checkpoint, sites):
    digest = sites.publish(checkpoint.read_bytes())
    fresh.write_rows(FETCHED)
    said = fresh.refusal("--dry-run", TINY)
    assert "Unpinned: tiny: the column sha256 is empty" in said and "axbake add --pin tiny" in said

    fresh.write_rows(FETCHED | {"sha256": "0" * 64})
    said = fresh.refusal(RECORD)
    assert f"WrongDigest: {AIR}: the table says SHA-256 {'0' * 64}; there are tiny.safetensors" in said
    assert "Traceback" not in said
    assert not sites.asked("storage")
    assert not [name for name in fresh.results() if "fetched" in name]

    fresh.write_rows(FETCHED)
    fresh.edit("config/config.yaml", "allow_unpinned: false", "allow_unpinned: true")
    assert f"write this into the column sha256 of its row: {digest}" in fresh.bake(RECORD)
    assert not secrets_in(fresh.directory)
