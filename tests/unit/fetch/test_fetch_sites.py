"""What sites offer under an address: the file that is meant, verified, with what is known of it; or why not."""

import hashlib
import json
from pathlib import Path

import pytest

from axbake.fetch.errors import (
    AccessRefused,
    BadSource,
    FetchError,
    NotAFile,
    NotBakeable,
    NotThere,
    SiteUnreachable,
    WrongDigest,
)
from axbake.fetch.sources import parse_source
from axbake.fetch.store import fetch
from axbake.printable import printable
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
        (
            {"baseModel": "Flux.2 D"},
            NotBakeable,
            r"base model is Flux\.2 D, which axbake does not bake",
        ),
        ({"baseModel": "Pony V7"}, NotBakeable, "base model is Pony V7"),
        ({"model": {"type": "LORA"}}, NotBakeable, "a LORA"),
        ({"usageControl": "Generation"}, AccessRefused, "does not allow downloads"),
        (
            {"files": [], "model": {"type": "Checkpoint", "mode": "Archived"}},
            NotThere,
            "no files: Civitai marks it as Archived",
        ),
    ],
)
def test_what_cannot_be_had_or_baked_is_refused_before_a_byte_is_downloaded(about, error, said, sites, get):
    sites.publish(weights())
    sites.api["/api/v1/model-versions/102222"] |= about
    with pytest.raises(error, match=said):
        get(AIR)
    assert not sites.asked("site", "/api/download")


@pytest.mark.parametrize("base", ["SD 2.1 768", "SDXL 1.0", "SDXL Lightning", "Pony", "Illustrious", "NoobAI", "Other"])
def test_base_models_that_axbake_bakes_are_fetched(base, sites, get):
    digest = sites.publish(weights())
    sites.api["/api/v1/model-versions/102222"] |= {"baseModel": base}

    assert get(AIR).sha256 == digest


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
        NotThere, match=r"no SafeTensor file of that kind; found full\.safetensors \(SafeTensor, full, fp32"
    ):
        get(f"{link}&fp=bf16")
    for file in sites.api["/api/v1/model-versions/102222"]["files"]:
        file["primary"] = False
    assert get(AIR).sha256 == pruned


VERSION, MODEL = "/api/v1/model-versions/102222", "/api/v1/models/47274"
OTHER_TYPES = [None, True, 7, 1.5, float("nan"), "", "text", [], [None], {}, {"a": None}, "\ud800", "\x1b[2J"]


@pytest.mark.parametrize("value", [*OTHER_TYPES, "gone"], ids=repr)
@pytest.mark.parametrize(
    "field",
    [
        ["id"],
        ["modelId"],
        ["name"],
        ["air"],
        ["model"],
        ["trainedWords"],
        ["earlyAccessEndsAt"],
        ["files", 0, "id"],
        ["files", 0, "name"],
        ["files", 0, "sizeKB"],
        ["files", 0, "hashes"],
        ["files", 0, "hashes", "SHA256"],
        ["files", 0, "metadata"],
        ["files", 0, "primary"],
        ["files", 0, "pickleScanResult"],
        ["files", 0, "downloadUrl"],
    ],
    ids=lambda field: "/".join(map(str, field)),
)
def test_a_field_of_civitais_that_is_null_or_of_another_type_is_as_if_it_were_not_there(field, value, sites, get):
    digest = sites.publish(weights())
    *way, last = field
    holder = sites.api[VERSION]
    for name in way:
        holder = holder[name]
    if value == "gone":
        del holder[last]
    else:
        holder[last] = value
    if field in (["id"], ["modelId"]) and value == 7:  # it is of another version, or of another model
        with pytest.raises(NotThere):
            get(AIR)
        return

    found = get(AIR)

    assert found.sha256 == digest
    assert printable(json.dumps(found.record, ensure_ascii=False)) == json.dumps(found.record, ensure_ascii=False)
    assert found.record["air"] in (AIR, None)


@pytest.mark.parametrize("value", OTHER_TYPES, ids=repr)
def test_a_file_without_a_usable_digest_is_downloaded_once(value, sites, get):
    digest = sites.publish(weights())
    sites.api[VERSION]["files"][0]["hashes"] = {"SHA256": value}

    for pin in ("", digest[:10], digest):
        sites.log.clear()
        assert get(AIR, pin).sha256 == digest
        assert len(sites.asked("storage")) <= 1


def test_a_pinned_file_is_looked_for_among_those_whose_digest_the_site_does_not_say(sites, get):
    sites.publish(weights(1), name="full.safetensors", primary=True)
    meant = sites.publish(weights(2), name="half.safetensors", primary=False)
    sites.api[VERSION]["files"][1]["hashes"] = None

    assert get(AIR, meant).sha256 == meant


@pytest.mark.parametrize("where", ["civitai", "hub"])
@pytest.mark.parametrize(
    "lie",
    [
        "{victim}",
        "/..{victim}",
        "../../victim",
        "/victim",
        "{digest}/../../victim",
        "{digest}\n",
        "{digest}0",
        "\0",
        "/",
    ],
)
def test_what_is_called_a_digest_and_is_none_is_never_part_of_a_path(where, lie, sites, get, tmp_path):
    digest = sites.publish(weights())
    sites.publish_on_hub(weights())
    victim = tmp_path / "victim"
    for name in ("victim", "victim.safetensors", "victim.part"):
        (tmp_path / name).write_text("theirs")
    said = lie.format(victim=victim, digest=digest)
    sites.api[VERSION]["files"][0]["hashes"]["SHA256"] = said
    sites.api["/api/models/someone/tiny"]["siblings"][0]["lfs"]["sha256"] = said

    found = get(AIR if where == "civitai" else HUB)

    assert found.path == DOWNLOADS / f"{digest}.safetensors"
    assert {path.read_text() for path in tmp_path.glob("victim*")} == {"theirs"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "downloads",
        "victim",
        "victim.part",
        "victim.safetensors",
    ]


@pytest.mark.parametrize("pin", ["../x", "0" * 63, f"{'0' * 64}\n", f"{'0' * 10}/../x"])
def test_a_pin_of_another_form_is_refused(pin, sites):
    sites.publish(weights())

    with pytest.raises(FetchError, match="is not a SHA-256; wanted its 64 hex digits, or the first ten"):
        fetch(parse_source(AIR), pin, DOWNLOADS)
    assert not sites.log


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("../../etc/tiny.safetensors", "tiny.safetensors"),
        ("C:\\x\\tiny.safetensors", "tiny.safetensors"),
        ("..", "civitai-102222"),
        (None, "civitai-102222"),
        ("\x1b]0;owned\x07ti\u202eny\n.safetensors", "tiny .safetensors"),
        ("x" * 100_000, "x" * 199 + "…"),
    ],
)
def test_a_files_name_is_one_line_and_no_path(name, wanted, sites, get):
    sites.publish(weights())
    sites.api[VERSION]["files"][0]["name"] = name

    assert get(AIR).record["file_name"] == wanted


@pytest.mark.parametrize(
    "answer", [(404, {}, {"error": "Model not found"}), (403, {}, {}), (200, {}, None), (200, {}, [])]
)
def test_a_version_whose_models_page_is_gone_is_fetched_without_author_and_terms(answer, sites, get, caplog):
    digest = sites.publish(weights())
    sites.api[MODEL] = answer

    found = get(AIR)

    assert found.sha256 == digest
    assert found.record["author"] is None and found.record["licence"] == {}
    assert "its author and terms are unknown" in caplog.text


def test_what_kind_of_model_it_is_may_stand_on_its_page_alone(sites, get):
    sites.publish(weights())
    sites.api[VERSION]["model"] = None
    sites.api[MODEL]["type"] = "LORA"
    with pytest.raises(NotBakeable, match="a LORA"):
        get(AIR)


def test_a_version_that_was_not_asked_about_is_not_taken(sites, get):
    sites.publish(weights())
    sites.api[VERSION]["id"] = 7
    with pytest.raises(NotThere, match="Civitai answered a request for version 102222 with 7"):
        get(AIR)


@pytest.mark.parametrize(
    "air",
    ["urn:air:sd1:checkpoint:civitai:1@2", "../x", f"{AIR}\tx", f"{AIR}\nevil", "https://evil.example/x.safetensors"],
)
def test_an_air_of_something_else_is_not_believed(air, sites, get):
    sites.publish(weights())
    sites.api[VERSION]["air"] = air

    assert get(AIR).record["air"] is None


def test_a_file_without_a_link_is_asked_for_by_what_it_is(sites, get):
    sites.publish(weights(1), name="a.safetensors")
    full = sites.publish(weights(2), name="b.safetensors", primary=False, metadata={"size": "full", "fp": "fp32"})
    sites.api[VERSION]["files"][1]["downloadUrl"] = None
    sites.downloads["/api/download/models/102222?type=Model&format=SafeTensor&size=full&fp=fp32"] = "b.safetensors"

    assert get(AIR, full).sha256 == full


def test_a_links_type_says_which_file_and_a_vaes_is_refused(sites, get):
    model = sites.publish(weights(1), name="a.safetensors")
    pruned = sites.publish(weights(2), name="b.safetensors", primary=False, type="Pruned Model")
    sites.publish(weights(3), name="c.vae.safetensors", primary=False, type="VAE")
    link = "https://civitai.com/api/download/models/102222?format=SafeTensor&type="

    assert get(f"{link}Model").sha256 == model
    assert get(f"{link}Pruned%20Model").sha256 == pruned
    for kind in ("VAE", "Config", "Training+Data"):
        with pytest.raises(BadSource, match="the column checkpoint takes a checkpoint"):
            get(f"{link}{kind}")


def test_parameters_without_effect_and_what_a_pin_overrules_are_reported_once(sites, get, caplog):
    sites.publish(weights(1), name="a.safetensors", metadata={"size": "full"})
    pruned = sites.publish(weights(2), name="b.safetensors", primary=False)
    cell = "https://civitai.com/api/download/models/102222?size=full&dialog=x&ref=y"

    found = get(cell, pruned)

    assert found.sha256 == pruned
    assert found.record["unused_parameters"] == ["dialog", "ref"]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        f"{cell}: parameters that change nothing here: dialog, ref",
        f"{cell}: the column sha256 selects the file, but the file is not of size=full",
    ]


def test_what_a_file_does_not_say_of_itself_does_not_speak_against_it(sites, get):
    digest = sites.publish(weights())
    sites.api[VERSION]["files"][0]["metadata"] = {}

    assert get("https://civitai.com/api/download/models/102222?type=Model&format=SafeTensor&size=full").sha256 == digest


@pytest.mark.parametrize(
    "change",
    [
        {"sha": None},
        {"sha": "../../evil"},
        {"author": []},
        {"cardData": None},
        {"cardData": "x"},
        {"cardData": {"license": {"a": [None]}, "base_model": ["a/b", 3, None], "license_link": "\x1b[2J\ud800"}},
        {"siblings": [None, 3, {"rfilename": None}, {"rfilename": "tiny.safetensors", "lfs": None}]},
        {"siblings": [{"rfilename": "tiny.safetensors", "lfs": {"sha256": None, "size": "x"}, "size": None}]},
        {"siblings": [{"rfilename": "tiny.safetensors", "lfs": []}]},
    ],
)
def test_odd_fields_of_hugging_face_are_as_if_they_were_not_there(change, sites, get):
    digest = sites.publish_on_hub(weights())
    sites.api["/api/models/someone/tiny"] |= change
    sites.downloads["/someone/tiny/resolve/main/tiny.safetensors"] = "tiny.safetensors"

    found = get(HUB, digest)

    assert found.sha256 == digest
    assert printable(json.dumps(found.record, ensure_ascii=False)) == json.dumps(found.record, ensure_ascii=False)


@pytest.mark.parametrize("siblings", [None, 3, {}, [None]])
def test_a_repository_without_files_says_so(siblings, sites, get):
    sites.publish_on_hub(weights())
    sites.api["/api/models/someone/tiny"]["siblings"] = siblings
    with pytest.raises(NotThere, match="no such file; checkpoints there: none"):
        get(HUB)


def test_an_encoded_revision_is_asked_for_as_one(sites, get):
    digest = sites.publish_on_hub(weights(), revision="refs%2Fpr%2F1")

    for cell in (
        "https://huggingface.co/someone/tiny/blob/refs%2Fpr%2F1/tiny.safetensors",
        "hf://someone/tiny@refs/pr/1/tiny.safetensors",
    ):
        sites.log.clear()
        assert get(cell, digest[:10]).sha256 == digest
        assert [seen.path for seen in sites.asked("site", "/api/")] == [
            "/api/models/someone/tiny/revision/refs%2Fpr%2F1"
        ]


@pytest.mark.parametrize("path", [VERSION, MODEL, "/api/models/someone/tiny"])
@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"error":' * 50_000,
        b"9" * 5000,
        b"null",
        b"[]",
        b'"text"',
        b"",
        b"\xff",
        b'{"message": {"a": [null]}}',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_answers_that_are_nested_or_no_object_end_in_a_sentence(path, status, body, sites, get):
    sites.publish(weights())
    sites.publish_on_hub(weights())
    sites.fail(path, *[Fault(status, {"Content-Type": "application/json"}, body=body)] * 9)

    if path == MODEL:
        get(AIR)  # it is asked for author and terms alone
        return
    with pytest.raises(FetchError) as caught:
        get(HUB if path.startswith("/api/models") else AIR)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "Early access", "code": 3}}', r"HTTP 403 \(Early access\)"),
        (b'{"errors": [{"detail": "No such user"}, null]}', r"HTTP 403 \(No such user\)"),
        (b'{"error": "Unauthorized", "message": ["a", "b"]}', r"HTTP 403 \(Unauthorized: a: b\)"),
        (b'{"error": "\\u001b[31mred\\u001b[0m\\n\\ttext"}', r"HTTP 403 \(red text\)"),
        (b"<html><head><title>Attention \x1b[2JRequired</title></head>", r"HTTP 403 \(Attention Required\)"),
        (b'{"error": null}', "HTTP 403;"),
    ],
)
def test_an_errors_own_words_are_found_where_apis_put_them(body, said, sites, get):
    sites.publish(weights())
    sites.fail("/api/download/models/102222", Fault(403, {"Content-Type": "application/json"}, body=body))
    with pytest.raises(AccessRefused, match=said) as caught:
        get(AIR)
    assert printable(str(caught.value)) == str(caught.value)


def test_a_safetensors_file_under_a_pickles_address_is_taken_by_its_content(sites, get):
    digest = sites.put("tiny.ckpt", weights())

    assert get(sites.url("tiny.ckpt"), digest).path == DOWNLOADS / f"{digest}.ckpt"


@pytest.mark.parametrize("pinned", [True, False])
def test_an_error_in_the_files_place_is_called_one_whatever_the_pin(pinned, sites, get, left):
    sites.put("tiny.safetensors", b'{"error": "Unauthorized", "message": "log in first"}')
    with pytest.raises(NotAFile, match="an error from the site, not a file: Unauthorized: log in first"):
        get(sites.url(), "0" * 64 if pinned else "")
    assert left() == []


def test_a_note_of_another_digest_is_no_note_of_this_download(sites, get):
    digest = sites.publish(weights())
    note = get(AIR, digest).path.with_name(f"{digest}.safetensors.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": "../../x"}))

    assert get(AIR, digest).record["sha256"] == digest


@pytest.mark.parametrize("record", ["[" * 100_000, "[]", "null", '"x"', "{", "\x00"])
def test_a_damaged_note_beside_a_download_is_written_anew(record, sites, get):
    digest = sites.publish(weights())
    note = get(AIR, digest).path.with_name(f"{digest}.safetensors.json")
    note.write_text(record)

    assert get(AIR, digest).record["source"] == AIR
    assert json.loads(note.read_text())["source"] == AIR


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

    assert found in str(caught.value) and f"wanted {pin}" in str(caught.value)
    assert left() == []


def test_an_unpinned_file_of_a_site_that_tells_nothing_is_kept_by_its_digest(sites, get):
    digest = sites.put("tiny.safetensors", weights(), etag=None)

    assert get(sites.url()).path == DOWNLOADS / f"{digest}.safetensors"


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"<!doctype html><p>Log in", {"Content-Type": "text/html; charset=utf-8"}, "returns a web page, not a file"),
        (b"\x80\x02}q\x00.", {}, "a pickle; wanted safetensors. To allow a pickle"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n",
            {},
            r"is a Git LFS pointer of a file of 4\.3 GB",
        ),
        (
            b'{"error": "Unauthorized", "message": "The creator requires you to be logged in"}',
            {},
            "an error from the site, not a file: Unauthorized: The creator requires you to be logged in",
        ),
        (b"<html><head><title>Just a moment...</title>", {}, r"a web page, not a file: Just a moment\.\.\."),
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
