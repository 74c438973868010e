"""Downloads from sites that redirect, refuse, break off, change and lie: whole and verified, or an error that says what to do."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axbake.fetch import tokens
from axbake.fetch.download import progress_line
from axbake.fetch.errors import (
    AccessRefused,
    FetchError,
    NoRoom,
    NotAFile,
    NotBakeable,
    NotThere,
    Unreachable,
    WrongDigest,
)
from axbake.fetch.sources import parse_source
from axbake.fetch.store import fetch
from axbake.fetch.web import Web
from tests.services.model_sites import HUB_TOKEN, SIGNATURE, TOKEN, Fault, Sites, model_sites

ROOT = Path(__file__).parents[2]
AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
HUB = "hf://someone/tiny/tiny.safetensors"
STORED = "/bucket/tiny.safetensors"
DOWNLOADS = Path("downloads")
SIZE = 200_000


def weights(seed: int = 0, size: int = SIZE) -> bytes:
    """A safetensors file of *size* bytes."""
    header = (
        json.dumps({"x": {"dtype": "U8", "shape": [size - 100], "data_offsets": [0, size - 100]}}).encode().ljust(92)
    )
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size - 100)


@pytest.fixture(scope="module")
def hosts():
    with model_sites() as sites:
        yield sites


@pytest.fixture
def sites(hosts, tmp_path, monkeypatch) -> Sites:
    """Both hosts with nothing on them, and a user without tokens in an empty directory."""
    for shelf in (hosts.files, hosts.api, hosts.downloads, hosts.private, hosts.faults, hosts.log):
        shelf.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIVITAI_ENDPOINT", hosts.site)
    monkeypatch.setenv("HF_ENDPOINT", hosts.site)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (*tokens.CIVITAI_VARIABLES, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hosts


@pytest.fixture
def naps() -> list[float]:
    """Seconds that would have been waited."""
    return []


@pytest.fixture
def get(naps):
    """A function that fetches without waiting, for as long as it would."""

    def get(cell: str, pin: str = ""):
        return fetch(parse_source(cell), pin, DOWNLOADS, web=Web(sleep=naps.append))

    return get


def left() -> list[str]:
    return sorted(path.name for path in DOWNLOADS.iterdir())


def url(sites: Sites, name: str = "tiny.safetensors") -> str:
    return f"{sites.storage}/bucket/{name}"


def test_a_civitai_link_becomes_a_verified_file_and_what_is_known_of_it(sites, get):
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


def test_tokens_go_to_their_host_and_never_along_with_a_redirect(sites, get, monkeypatch, caplog):
    digest = sites.publish(weights())
    sites.publish_on_hub(weights())
    sites.private |= {"/api/download/models/102222", "/api/models/someone/tiny"}
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    caplog.set_level("DEBUG", "axbake")
    get(AIR, digest)
    get(HUB, digest[:10])
    (DOWNLOADS / f"{digest}.safetensors").unlink()
    get(HUB, digest)

    by_site = {seen.headers.get("authorization") for seen in sites.asked("site")}
    assert by_site == {f"Bearer {TOKEN}", f"Bearer {HUB_TOKEN}"}
    assert {seen.headers.get("authorization") for seen in sites.asked("site", "/api/v1/")} == {f"Bearer {TOKEN}"}
    assert {seen.headers.get("authorization") for seen in sites.asked("site", "/someone/")} == {f"Bearer {HUB_TOKEN}"}
    assert len(sites.asked("storage")) == 2
    for seen in sites.asked("storage"):
        assert "authorization" not in seen.headers
        assert TOKEN not in str(seen) and HUB_TOKEN not in str(seen)
    written = "".join(path.read_text(errors="replace") for path in Path().rglob("*.json"))
    for secret in (TOKEN, HUB_TOKEN, SIGNATURE):
        assert secret not in caplog.text + written


def test_a_token_is_for_its_origin_alone_also_when_another_address_redirects_there(sites, get, monkeypatch, tmp_path):
    digest = sites.put("tiny.safetensors", weights())
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    (tmp_path / "netrc").write_text(f"default login me password {TOKEN}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    get(url(sites), digest)

    assert all("authorization" not in seen.headers for seen in sites.log)


def test_the_token_may_be_in_a_file_of_the_users(sites, get, tmp_path):
    sites.publish(weights())
    sites.private.add("/api/download/models/102222")
    (tmp_path / "config" / "axbake").mkdir(parents=True)
    (tmp_path / "config" / "axbake" / "civitai_token").write_text(f"{TOKEN}\n")

    get(AIR)

    assert sites.asked("site", "/api/download")[0].headers["authorization"] == f"Bearer {TOKEN}"
    (tmp_path / "config" / "axbake" / "civitai_token").write_text("two words")
    with pytest.raises(AccessRefused, match="civitai_token: no token") as caught:
        get(AIR)
    assert "two words" not in str(caught.value)


def test_a_login_that_is_lacking_is_an_error_that_says_where_a_token_is_had(sites, get):
    sites.publish(weights())
    sites.private.add("/api/download/models/102222")
    with pytest.raises(
        AccessRefused, match=r"no token was sent\. Make a token at https://civitai\.com/user/account.*CIVITAI_API_TOKEN"
    ):
        get(AIR)
    sites.private.clear()
    sites.fail("/api/download/models/102222", Fault(307, {"Location": "/login?reason=download-auth"}))
    with pytest.raises(AccessRefused, match="only for users who are logged in"):
        get(AIR)


def test_refusals_of_civitai_say_why(sites, get, monkeypatch):
    sites.publish(weights(), earlyAccessEndsAt="2099-01-01T00:00:00.000Z")
    monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
    body = json.dumps({"error": "Early Access", "deadline": "2099-01-01"}).encode()
    sites.fail("/api/download/models/102222", Fault(403, {"Content-Type": "application/json"}, body=body))
    with pytest.raises(
        AccessRefused, match=r"Early Access, until 2099-01-01.*that was sent is not enough.*in early access"
    ):
        get(AIR)
    echo = json.dumps({"error": f"bad token {TOKEN} at https://x/?token={TOKEN}"}).encode()
    sites.fail("/api/download/models/102222", Fault(401, {"Content-Type": "application/json"}, body=echo))
    with pytest.raises(AccessRefused, match="bad token … at") as caught:
        get(AIR)
    assert TOKEN not in str(caught.value)
    with pytest.raises(NotThere, match=r"HTTP 404 \(Model not found"):
        get("urn:air:sd1:checkpoint:civitai:47274@5")
    with pytest.raises(NotThere, match="version 102222 is of model 47274"):
        get("urn:air:sd1:checkpoint:civitai:5@102222")


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
def test_a_file_of_another_digest_is_an_error_with_both_and_is_thrown_away(digits, sites, get):
    found = sites.put("tiny.safetensors", weights(1))
    pin = hashlib.sha256(weights(0)).hexdigest()[:digits]

    with pytest.raises(WrongDigest) as caught:
        get(url(sites), pin)

    assert found in str(caught.value) and f"wanted is {pin}" in str(caught.value)
    assert left() == []


def test_an_unpinned_file_of_a_site_that_tells_nothing_is_kept_by_its_digest(sites, get):
    digest = sites.put("tiny.safetensors", weights(), etag=None)

    assert get(url(sites)).path == DOWNLOADS / f"{digest}.safetensors"


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"<!doctype html><p>Log in", {"Content-Type": "text/html; charset=utf-8"}, "gives a web page and not a file"),
        (b"\x80\x02}q\x00.", {}, "a pickle; wanted safetensors. Say so"),
        (b"version https://git-lfs.github.com/spec/v1\n", {}, "neither safetensors nor a pickle"),
        (b"", {}, "neither safetensors nor a pickle"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_kept(content, headers, said, sites, get):
    sites.put("tiny.safetensors", content)
    sites.fail(STORED, Fault(headers=headers))
    with pytest.raises(NotAFile, match=said):
        get(url(sites))
    assert not [name for name in left() if not name.startswith(".")]


def test_breaks_at_every_percent_of_a_file_cost_nothing_twice(sites, get, naps):
    digest = sites.put("tiny.safetensors", weights())
    step = SIZE // 100
    sites.fail(STORED, *[Fault(cut=step)] * 99)

    assert get(url(sites), digest).path.read_bytes() == weights()

    asked = sites.asked("storage")
    assert [seen.headers.get("range") for seen in asked] == [None, *(f"bytes={n * step}-" for n in range(1, 100))]
    assert {seen.headers.get("if-range") for seen in asked[1:]} == {f'"{digest[:16]}"'}
    assert naps == [1.0] * 99  # progress was made each time


@pytest.mark.parametrize("pinned", [True, False])
def test_a_fetch_that_was_ended_at_any_percent_goes_on_there_in_the_next_run(pinned, sites, get):
    class Ended(Exception):
        pass

    def end(seconds: float) -> None:
        raise Ended

    for percent in range(0, 100, 1):
        content = weights(percent, 20_000)
        digest = sites.put("tiny.safetensors", content)
        pin = digest if pinned else ""
        cut = len(content) * percent // 100
        sites.fail(STORED, Fault(cut=cut))
        sites.log.clear()
        with pytest.raises(Ended):
            fetch(parse_source(url(sites)), pin, DOWNLOADS, web=Web(sleep=end))

        assert get(url(sites), pin).path.read_bytes() == content
        assert sites.log[1].headers.get("range") == (f"bytes={cut}-" if cut else None)
        assert len(sites.log) == 2


def test_a_file_that_changed_between_two_runs_starts_anew(sites, get):
    sites.put("tiny.safetensors", weights(1))
    sites.fail(STORED, Fault(cut=1000), *[Fault(500)] * 5)
    with pytest.raises(Unreachable):
        get(url(sites))
    assert [name for name in left() if name.endswith(".part")]
    new = sites.put("tiny.safetensors", weights(2))
    sites.log.clear()

    assert get(url(sites)).sha256 == new
    assert [seen.status for seen in sites.log] == [200]  # If-Range failed, so the whole of the new one came
    assert sites.log[0].headers["range"] == "bytes=1000-"


def test_a_site_that_mixes_two_files_is_found_out_and_asked_anew(sites, get):
    """It gives no validator, so only the digest tells."""
    digest = sites.put("tiny.safetensors", weights(0), etag=None)
    sites.files["tiny.safetensors"].content = weights(1)
    sites.fail(STORED, Fault(cut=1000))

    def swap(_seconds):
        sites.files["tiny.safetensors"].content = weights(0)

    found = fetch(parse_source(url(sites)), digest, DOWNLOADS, web=Web(sleep=swap))

    assert found.path.read_bytes() == weights(0)
    assert [seen.status for seen in sites.log] == [200, 206, 200]


def test_without_digest_and_validator_nothing_is_resumed(sites, get):
    digest = sites.put("tiny.safetensors", weights(), etag='W/"weak"')
    sites.fail(STORED, Fault(cut=1000))

    assert get(url(sites)).sha256 == digest
    assert all("range" not in seen.headers for seen in sites.log)


def test_a_site_without_ranges_is_read_from_the_beginning(sites, get):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=SIZE // 2), Fault(ignore_range=True))

    assert get(url(sites), digest).path.read_bytes() == weights()
    assert [seen.status for seen in sites.log] == [200, 200]


@pytest.mark.parametrize("have", [SIZE, SIZE + 5])
def test_a_416_means_that_all_has_come_or_that_it_was_another_file(have, sites, get):
    digest = sites.put("tiny.safetensors", weights())
    DOWNLOADS.mkdir()
    (DOWNLOADS / f"{digest}.part").write_bytes((weights() + b"xxxxx")[:have])

    assert get(url(sites), digest).path.read_bytes() == weights()
    assert [seen.status for seen in sites.log] == ([416] if have == SIZE else [416, 200])


def test_transient_failures_are_waited_out_for_as_long_as_the_site_asks(sites, get, naps):
    digest = sites.publish(weights())
    sites.fail("/api/v1/model-versions/102222", Fault(429, {"Retry-After": "7"}), Fault(503))
    sites.fail("/api/download/models/102222", Fault(502), Fault(500), Fault(503, {"Retry-After": "33"}))
    sites.fail(STORED, Fault(429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}))

    assert get(AIR).sha256 == digest
    assert naps == [7, 2, 1, 2, 33, 0]


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
    with pytest.raises(Unreachable, match="HTTP 500; 6 times in a row"):
        get(HUB)


def test_a_site_that_stays_away_is_given_up(sites, get, naps):
    sites.put("tiny.safetensors", weights())
    sites.fail(STORED, *[Fault(503)] * 9)
    with pytest.raises(Unreachable, match=r"tiny\.safetensors: HTTP 503; 6 times in a row\. Run again later"):
        get(url(sites))
    assert naps == [1, 2, 4, 8, 16]
    sites.faults.clear()
    sites.fail(STORED, Fault(429, {"Retry-After": "7200"}))
    with pytest.raises(Unreachable, match="asks for a pause of 7200 s"):
        get(url(sites))
    with pytest.raises(Unreachable, match="the host refuses the connection"):
        get("http://127.0.0.3:9/x.safetensors")


def test_redirects_that_lead_nowhere_are_told_without_their_secrets(sites, get):
    sites.put("tiny.safetensors", weights())
    for location, said in [
        (f"/bucket/tiny.safetensors?token={TOKEN}", "more than 8 redirects"),
        ("file:///etc/passwd", "redirects to nowhere"),
        ("", "redirects to nowhere"),
        ("http://[::1/x", "an address that cannot be read"),
        ("http://host:port/x", "an address that cannot be read"),
        (f"http://127.0.0.3:9/{'x'}?X-Amz-Signature={SIGNATURE}", "refuses the connection"),
    ]:
        sites.faults.clear()
        sites.fail(STORED, *[Fault(302, {"Location": location})] * 60)
        with pytest.raises(Unreachable, match=said) as caught:
            get(url(sites))
        assert TOKEN not in str(caught.value) and SIGNATURE not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None  # nor in the traceback


def test_a_file_too_large_for_the_disk_is_not_begun(sites, get):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(headers={"Content-Length": str(10**15)}))
    with pytest.raises(NoRoom, match=r"931322\.6 GiB are to come, and .* are free"):
        get(url(sites), digest)
    assert left() == []


COMMAND = """
import logging, sys
from pathlib import Path
from axbake.fetch.errors import FetchError
from axbake.fetch.sources import parse_source
from axbake.fetch.store import fetch
logging.basicConfig(level=logging.INFO)
try:
    print(fetch(parse_source(sys.argv[1]), sys.argv[2], Path("downloads")).path)
except FetchError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(*arguments: str, **how) -> subprocess.Popen:
    """Another process that fetches."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": {"PYTHONPATH": str(ROOT)}}
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], **pipes, **how)


def wait_for_part(digest: str, size: int) -> None:
    part = DOWNLOADS / f"{digest}.part"
    until = time.monotonic() + 60
    while not part.is_file() or part.stat().st_size < size:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_fetch_that_is_killed_is_taken_up_where_it_ended(sites, get, hold):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=SIZE // 2, hold=hold))
    first = start(url(sites), digest)
    wait_for_part(digest, SIZE // 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (DOWNLOADS / f"{digest}.safetensors").exists()

    assert get(url(sites), digest).path.read_bytes() == weights()

    assert sites.log[1].headers["range"] == f"bytes={SIZE // 2}-"
    assert left() == [f"{digest}.safetensors", f"{digest}.safetensors.json"]


def test_of_two_that_fetch_one_file_at_once_one_downloads_and_the_other_waits(sites, hold):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=SIZE // 2, hold=hold))
    first = start(url(sites), digest)
    wait_for_part(digest, SIZE // 2)
    second = start(url(sites), digest)
    said = second.stderr.readline()
    hold.set()

    assert "download of tiny.safetensors: waiting for" in said
    for process in (first, second):
        assert process.communicate()[0].strip() == f"downloads/{digest}.safetensors"
        assert process.returncode == 0
    assert len(sites.asked("storage")) == 1


def test_a_disk_that_fills_up_is_told_and_what_came_is_kept(sites, get):
    """A limit on the size of files is what a disk of that size is to a write."""
    import resource

    digest = sites.put("tiny.safetensors", weights())
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    full = start(url(sites), digest, preexec_fn=limit)

    said = full.communicate()[1]
    assert full.returncode == 1
    assert "NoRoom: downloads/" in said and "Make room and run again; what has come is kept" in said
    assert "Traceback" not in said
    assert get(url(sites), digest).path.read_bytes() == weights()
    assert sites.log[-1].headers["range"] == f"bytes={SIZE // 2}-"


@pytest.fixture
def hold():
    import threading

    event = threading.Event()
    yield event
    event.set()


def test_progress_has_size_rate_and_what_is_left():
    assert progress_line(812_000_000, 2_034_000_000, 41e6) == "812 of 2,034 MB (39 %), 41.0 MB/s, 30 s left"
    assert progress_line(812_000_000, None, 41e6) == "812 MB, 41.0 MB/s"
    assert progress_line(0, 2_034_000_000, 0) == "0 of 2,034 MB (0 %), 0.0 MB/s, no telling how long still"
