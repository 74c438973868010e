"""What sites offer under an address: the file that is meant, verified, with what is known of it; or why not."""

import hashlib
import json
from pathlib import Path

import pytest

from axbake.fetch.errors import AccessRefused, FetchError, NotAFile, NotBakeable, NotThere, SiteUnreachable, WrongDigest
from tests.services.model_sites import SIZE, Fault, weights

AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
HUB = "hf://someone/tiny/tiny.safetensors"
STORED = "/bucket/tiny.safetensors"
DOWNLOADS = Path("downloads")


def test_a_civitai_link_becomes_a_verified_file_and_what_is_known_of_it(sites, get, left):
    digest = sites.publish(weights())

    found = get(AIR)

    assert found.path == DOWNLOADS / f"{digest}.safetensors"
    assert found.path.read_bytes() == weights()
    assert found.sha256 == digest
    record = json.loads((DOWNLOADS / f"{digest}.safetensors.json").read_text())
    assert record == found.record
    assert record["source"] == AIR and record["sha256"] == digest and record["bytes"] == SIZE
    assert record["model"] == "Tiny Mix!" and record["version"] == "v4.0" and record["author"] == "tinymaker"
    assert record["base_model"] == "SD 1.5" and record["trained_words"] == ["tinystyle"]
    assert record["page"] == "https://civitai.com/models/47274?modelVersionId=102222"
    assert record["licence"]["allowCommercialUse"] == ["Image", "RentCivit"]
    assert record["licence"]["allowNoCredit"] is False
    assert left() == [f"{digest}.safetensors", f"{digest}.safetensors.json"]


@pytest.mark.parametrize(
    "cell",
    [
        "https://civitai.com/models/47274",
        "https://civitai.com/models/47274/tiny-mix?modelVersionId=102222",
        "https://civitai.com/api/download/models/102222?type=Model&format=SafeTensor&size=pruned&fp=fp16",
    ],
)
@pytest.mark.parametrize("digits", [0, 10, 64])
def test_every_form_of_civitais_links_leads_to_the_file_with_any_pin(cell, digits, sites, get):
    digest = sites.publish(weights())

    assert get(cell, digest[:digits]).sha256 == digest


def test_a_hugging_face_file_is_fetched_at_its_commit(sites, get):
    digest = sites.publish_on_hub(weights())

    found = get(HUB, digest)

    assert found.sha256 == digest
    assert found.record["commit"] == "0123456789abcdef0123456789abcdef01234567"
    assert found.record["licence"] == {"license": "creativeml-openrail-m"}
    assert found.record["base_model"] == "a/base"


def test_a_file_that_is_there_is_not_asked_for_again(sites, get):
    digest = sites.publish(weights())
    get(AIR, digest)
    sites.log.clear()

    get(AIR, digest)
    assert not sites.log
    get("https://civitai.com/models/47274", digest)  # another address of the same: asked about, not downloaded
    assert not sites.asked("storage")


def test_a_download_that_was_damaged_is_downloaded_anew(sites, get):
    digest = sites.publish(weights())
    path = get(AIR, digest).path
    path.write_bytes(weights(1))

    assert get(AIR, digest).path.read_bytes() == weights()


@pytest.mark.parametrize(
    ("about", "error", "said"),
    [
        ({"baseModel": "SDXL 1.0"}, NotBakeable, "base model is SDXL 1.0"),
        ({"model": {"type": "LORA"}}, NotBakeable, "a LORA"),
        ({"usageControl": "Generation"}, AccessRefused, "lets nobody download"),
        (
            {"files": [], "model": {"type": "Checkpoint", "mode": "Archived"}},
            NotThere,
            "no files: Civitai has it as Archived",
        ),
    ],
)
def test_what_cannot_be_had_or_baked_is_refused_before_a_byte_is_downloaded(about, error, said, sites, get):
    sites.publish(weights())
    sites.api["/api/v1/model-versions/102222"] |= about
    with pytest.raises(error, match=said):
        get(AIR)
    assert not sites.asked("site", "/api/download")


def test_of_several_files_the_primary_one_is_taken_or_the_one_that_is_meant(sites, get):
    full = sites.publish(weights(1), name="full.safetensors", primary=False, metadata={"size": "full", "fp": "fp32"})
    half = sites.publish(weights(2), name="half.safetensors", primary=True, metadata={"size": "full", "fp": "fp16"})
    pruned = sites.publish(weights(3), name="pruned.safetensors", primary=False)
    sites.publish(weights(4), name="vae.safetensors", primary=False, type="VAE")
    pickled = sites.publish(b"\x80\x02pickle", name="a.ckpt", primary=False, metadata={"format": "PickleTensor"})
    link = "https://civitai.com/api/download/models/102222?type=Model&format=SafeTensor"

    assert get(AIR).sha256 == half
    assert get(AIR, full).sha256 == full
    assert get(AIR, pruned[:10]).sha256 == pruned
    assert get(f"{AIR}+7000").sha256 == full
    assert get(f"{link}&size=pruned").sha256 == pruned
    assert get(f"{link}&size=full&fp=fp32").sha256 == full
    assert get(f"{AIR}.ckpt").path == DOWNLOADS / f"{pickled}.ckpt"
    with pytest.raises(
        NotThere, match=r"no SafeTensor file of that kind; there are full\.safetensors \(SafeTensor, full, fp32"
    ):
        get(f"{link}&fp=bf16")
    for file in sites.api["/api/v1/model-versions/102222"]["files"]:
        file["primary"] = False
    assert get(AIR).sha256 == pruned


def test_a_file_that_civitais_scan_calls_dangerous_is_refused(sites, get):
    sites.publish(weights())
    sites.api["/api/v1/model-versions/102222"]["files"][0]["virusScanResult"] = "Danger"
    with pytest.raises(NotBakeable, match=r"scan calls .* dangerous"):
        get(AIR)


@pytest.mark.parametrize("cell", [AIR, "https://civitai.com/models/47274", HUB])
def test_a_pinned_source_that_changed_is_an_error_with_both_digests(cell, sites, get):
    new = sites.publish(weights(1))
    sites.publish_on_hub(weights(1))
    old = hashlib.sha256(weights(0)).hexdigest()

    for pin in (old, old[:10]):
        with pytest.raises(WrongDigest) as caught:
            get(cell, pin)
        assert new in str(caught.value) and pin in str(caught.value)
    assert not sites.asked("storage")


@pytest.mark.parametrize("digits", [10, 64])
def test_a_file_of_another_digest_is_an_error_with_both_and_is_thrown_away(digits, sites, get, left):
    found = sites.put("tiny.safetensors", weights(1))
    pin = hashlib.sha256(weights(0)).hexdigest()[:digits]

    with pytest.raises(WrongDigest) as caught:
        get(sites.url(), pin)

    assert found in str(caught.value) and f"wanted is {pin}" in str(caught.value)
    assert left() == []


def test_an_unpinned_file_of_a_site_that_tells_nothing_is_kept_by_its_digest(sites, get):
    digest = sites.put("tiny.safetensors", weights(), etag=None)

    assert get(sites.url()).path == DOWNLOADS / f"{digest}.safetensors"


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"<!doctype html><p>Log in", {"Content-Type": "text/html; charset=utf-8"}, "gives a web page and not a file"),
        (b"\x80\x02}q\x00.", {}, "a pickle; wanted safetensors. Say so"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n",
            {},
            r"is a pointer of a file of 4\.3 GB that Git LFS keeps",
        ),
        (
            b'{"error": "Unauthorized", "message": "The creator requires you to be logged in"}',
            {},
            "an error of the site, and not a file: Unauthorized: The creator requires you to be logged in",
        ),
        (b"<html><head><title>Just a moment...</title>", {}, r"a web page, and not a file: Just a moment\.\.\."),
        (b"GGUF\x03\0\0\0", {}, "a GGUF file"),
        (b"some words", {}, r"neither safetensors nor a pickle \(it begins b'some words'\)"),
        (b"", {}, "tiny.safetensors is empty"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_kept(content, headers, said, sites, get, left):
    sites.put("tiny.safetensors", content)
    sites.fail(STORED, Fault(headers=headers))
    with pytest.raises(NotAFile, match=said):
        get(sites.url())
    assert not [name for name in left() if not name.startswith(".")]


def test_hugging_faces_api_is_waited_for_and_its_refusals_are_told(sites, get, naps):
    digest = sites.publish_on_hub(weights())
    path = "/api/models/someone/tiny"
    sites.fail(path, Fault(429, {"Retry-After": "3"}), Fault(503))
    assert get(HUB).sha256 == digest
    assert naps == [3, 2]
    for fault, error, said in [
        (
            Fault(403, {"X-Error-Code": "GatedRepo"}),
            AccessRefused,
            "gated repository; no token was sent.*HF_TOKEN.*consent",
        ),
        (Fault(401, {"X-Error-Code": "RepoNotFound"}), NotThere, "no such repository, or a private one"),
        (Fault(404, {"X-Error-Code": "RevisionNotFound"}), NotThere, "no revision"),
        (Fault(418), FetchError, "HTTP 418"),
    ]:
        sites.fail(path, fault)
        with pytest.raises(error, match=said):
            get(HUB)
    with pytest.raises(NotThere, match=r"no such file; checkpoints there: tiny\.safetensors"):
        get("hf://someone/tiny/other.safetensors")
    with pytest.raises(NotThere):
        get("hf://someone/other/tiny.safetensors")
    sites.fail(path, *[Fault(500)] * 9)
    with pytest.raises(SiteUnreachable, match="HTTP 500; 6 times in a row"):
        get(HUB)
