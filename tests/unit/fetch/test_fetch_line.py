"""Servers that drip or never end are given up, and redirects of public sites lead nowhere inside."""

import errno
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from axbake.errors import AxbakeError
from axbake.fetch import download, line, web
from axbake.fetch.errors import AccessRefused, FetchError, NoRoom, NotAFile, NotThere, SiteUnreachable
from axbake.fetch.line import is_inside, names_inside
from axbake.fetch.tokens import civitai_endpoint, civitai_token
from axbake.fetch.web import Web, retry_after
from tests.hostile import sites as hostile
from tests.hostile.raw_server import ANSWERS, OK, raw_server
from tests.hostile.sites import BAD, KINDS, run, table
from tests.services.model_sites import SIZE, TOKEN, Fault, weights

AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
STORED, DOWNLOAD = "/bucket/tiny.safetensors", "/api/download/models/102222"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("drips its body", SiteUnreachable, r"fewer than .* kB came in .* s; 3 times in a row\. Run again later"),
        ("drips a body of unknown length", SiteUnreachable, "fewer than .* kB came in"),
        ("drips its header", SiteUnreachable, "in a row"),
        ("drips its status", SiteUnreachable, "fewer than .* kB came in"),
        ("drips chunks", SiteUnreachable, "fewer than .* kB came in"),
        ("drips an error", NotThere, "HTTP 404"),
        ("drips a redirect's body", SiteUnreachable, "more than 8 redirects"),
        ("never ends its trailers", SiteUnreachable, "endless headers or trailers"),
        ("never ends interim answers", SiteUnreachable, "endless headers or trailers"),
        ("never ends a redirect's body", SiteUnreachable, "more than 8 redirects"),
        ("never ends its body", NotAFile, "has sent more than 4.8 MiB; no checkpoint is larger"),
        ("never ends its chunks", NotAFile, "has sent more than"),
        ("has an absurd length", NotAFile, "says that it sends"),
        ("packs a bomb", SiteUnreachable, "sends gzip, but axbake asked for identity"),
    ],
)
def test_a_server_that_drips_or_never_ends_is_given_up(name, error, said, get, impatient, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "MOST_BYTES", 5_000_000)
    monkeypatch.setattr(download, "LOOK", 1_000_000)

    with raw_server(ANSWERS[name]) as address, pytest.raises(error, match=said):
        get(f"{address}/x.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("drips its body", "fewer than .* kB came in"),
        ("never ends JSON", "an answer of more than 16 MB"),
        ("packs a bomb", "an answer of more than 16 MB"),
        ("never ends its trailers", "endless headers or trailers"),
        ("has a length that is not a number", "not JSON"),
    ],
)
def test_an_api_that_drips_or_never_ends_is_given_up(name, said, sites, get, impatient, monkeypatch):
    with raw_server(ANSWERS[name]) as address:
        monkeypatch.setenv("CIVITAI_ENDPOINT", address)
        with pytest.raises(FetchError, match=said):
            get(AIR)


def test_a_server_that_says_nothing_is_given_up_sooner_than_one_that_is_away(get, naps, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "TIMEOUT", (5, 0.3))

    said = "no answer in time; 3 times in a row"
    with raw_server(ANSWERS["says nothing"]) as address, pytest.raises(SiteUnreachable, match=said):
        get(f"{address}/x.safetensors")
    assert naps == [2, 8]


def test_a_slow_beginning_and_a_pause_are_no_reason_to_give_up(sites, get, impatient):
    """A site may think before it answers, and what is fast enough over a spell may come in lumps."""

    def answer():
        content = weights()
        for piece in (OK + b"Content-Length: %d\r\n\r\n" % SIZE, content[:100_000], content[100_000:]):
            line.time.sleep(0.35)
            yield piece

    with raw_server(answer) as address:
        assert get(f"{address}/x.safetensors").path.read_bytes() == weights()


def test_a_server_that_always_begins_anew_or_gives_a_byte_at_a_time_is_given_up(sites, get, naps):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, *[Fault(cut=SIZE // 2, ignore_range=True)] * 50)
    with pytest.raises(SiteUnreachable, match=r"the connection ended in the middle; 6 times in a row"):
        get(sites.url(), digest)
    assert len(naps) <= 6

    sites.faults.clear()
    naps.clear()
    sites.fail(STORED, *[Fault(cut=1)] * 50)
    with pytest.raises(SiteUnreachable, match="6 times in a row"):
        get(sites.url(), digest)
    assert len(naps) <= 6


def test_pauses_that_a_site_asks_for_are_counted_together(sites, get, naps):
    sites.publish(weights())
    sites.fail("/api/v1/model-versions/102222", *[Fault(429, {"Retry-After": "500"})] * 9)
    with pytest.raises(SiteUnreachable, match="it asks for pauses of 1000 s"):
        get(AIR)
    assert naps == [500]


@pytest.mark.parametrize("value", ["", "soon", "9" * 5000, "Fri, 31 Dec 99999 23:59:59 GMT", "-5", "1e9", "\x00"])
def test_a_retry_after_of_another_form_asks_for_nothing(value):
    assert retry_after(value) in (None, 0)


def test_a_file_of_unknown_size_leaves_room_on_the_disk(get, impatient, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "LOOK", 1_000_000)
    free = iter([10**9, 10**9, *[10**8] * 99])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free)))

    with (
        raw_server(ANSWERS["never ends its body"]) as address,
        pytest.raises(
            NoRoom, match=r"of unknown size, and 95\.4 MiB of disk space are free; axbake keeps 256\.0 MiB free"
        ),
    ):
        get(f"{address}/x.safetensors")
    assert 1_000_000 < sum(path.stat().st_size for path in (tmp_path / "downloads").glob("*.part")) < 10_000_000


@pytest.mark.parametrize(
    "place", ["bytes 5-6/7", "bytes */5", f"bytes 0-1/{'9' * 6000}", "x", "", "bytes 1000-5/5", "bytes 1000-1999/*"]
)
def test_a_place_that_does_not_fit_is_not_believed(place, sites, get):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=1000), Fault(206, {"Content-Range": place}, body=b"lies"))

    assert get(sites.url(), digest).path.read_bytes() == weights()


@pytest.mark.parametrize("tag", ['"\x1b[2J"', '"' + "e" * 5000 + '"', '"\xe9"'])
def test_a_validator_that_cannot_be_sent_back_is_none(tag, sites, get):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=1000, headers={"ETag": tag}))

    assert get(sites.url(), digest).path.read_bytes() == weights()
    assert "if-range" not in sites.log[1].headers


INSIDE = (
    "127.0.0.1 10.1.2.3 172.31.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 198.18.0.1"
)
INSIDE += " ::1 :: fe80::1 fe80::1%eth0 fd00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1::"
OUTSIDE = "8.8.8.8 172.32.0.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::"


def test_addresses_inside_are_known_in_every_notation():
    assert [address for address in INSIDE.split() if not is_inside(address)] == []
    assert [address for address in OUTSIDE.split() if is_inside(address)] == []
    for name in ("localhost", "a.localhost", "localhost.", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "::1"):
        assert names_inside(name), name
    for name in ("example.org", "8.8.8.8", "134744072", "fade.de", "localhost.example.org", "1.2.3.4.5"):
        assert not names_inside(name), name


@pytest.fixture
def public(sites, monkeypatch):
    """The site counts as one of the public internet, and the storage as a machine inside, also by a name of it."""
    own = "127.0.0.1"
    monkeypatch.setattr(line, "is_inside", lambda address: str(line.ipaddress.ip_address(address)) != own)
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **how: look_up("127.0.0.2" if host == "rebound.example" else host, *more, **how),
    )
    return sites


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "2130706434", "0x7f000002", "127.2", "[::ffff:127.0.0.2]", "localhost", "rebound.example"]
)
@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("cell", [AIR, "hf://someone/tiny/tiny.safetensors"])
def test_a_public_sites_redirect_inside_is_refused_at_every_hop(cell, hops, host, public, get):
    digest = public.publish(weights())
    public.publish_on_hub(weights())
    port = public.storage.rpartition(":")[2]
    path = f"/someone/tiny/resolve/{COMMIT}/tiny.safetensors" if cell.startswith("hf") else DOWNLOAD
    public.fail(path, *[Fault(302, {"Location": path})] * (hops - 1))
    public.fail(path, Fault(302, {"Location": f"http://{host}:{port}/bucket/tiny.safetensors?secret=1"}))

    with pytest.raises(SiteUnreachable, match="inside this machine's own network, but the site is outside") as caught:
        get(cell, digest)

    assert not public.asked("storage")
    assert "secret" not in str(caught.value)


def test_an_apis_redirect_inside_is_refused_too(public, get):
    port = public.storage.rpartition(":")[2]
    public.fail("/api/v1/model-versions/102222", Fault(302, {"Location": f"http://rebound.example:{port}/x"}))
    with pytest.raises(SiteUnreachable, match="this machine's own network"):
        get(AIR)
    assert not public.asked("storage")


def test_an_address_inside_that_the_user_gave_may_lead_inside(sites, get):
    """As both hosts are, in all other tests."""
    digest = sites.publish(weights())

    assert get(AIR, digest).sha256 == digest
    assert sites.asked("storage")


def test_a_connection_that_the_users_own_address_has_made_is_not_used_again_for_a_public_sites_redirect(public, naps):
    web = Web(sleep=naps.append)
    digest = public.publish(weights())
    ask = {"token": None, "headers": {}, "at_site": {}, "howto": ""}
    web.open(public.url(), **ask).content  # the storage is inside, and the user's own here  # noqa: B018
    port = public.storage.rpartition(":")[2]
    public.fail(DOWNLOAD, Fault(302, {"Location": f"http://127.0.0.2:{port}{STORED}"}))
    web.way.inside = None
    public.log.clear()

    with pytest.raises(SiteUnreachable, match="this machine's own network"):
        web.open(f"{public.site}{DOWNLOAD}", **ask)
    assert digest and not public.asked("storage")


@pytest.mark.parametrize("where", ["http://127.0.0.2", "http://localhost"])
def test_behind_a_proxy_addresses_and_localhost_are_refused_and_names_are_the_proxys(where, public, get, monkeypatch):
    """The proxy connects; its own address, which is inside as a rule, says nothing of where a request leads."""
    digest = public.publish(weights())
    monkeypatch.setenv("CIVITAI_ENDPOINT", "http://civitai.example")
    asked = []

    def answer():
        asked.append(1)
        yield (
            b"HTTP/1.1 302 Found\r\nLocation: "
            + where.encode()
            + b"/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )

    with raw_server(answer, "127.0.0.3") as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(SiteUnreachable, match="this machine's own network"):
            get(AIR)
    assert digest and asked == [1]


def test_a_strange_header_is_not_logged_with_the_address(sites, get, caplog, monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    digest = sites.publish(weights())
    caplog.set_level("DEBUG")

    def answer():
        content = weights()
        yield OK + b"Content-Length: %d\r\nno colon here \x1b[2J\r\n\r\n" % len(content) + content

    with raw_server(answer, "127.0.0.2") as address:
        sites.fail(DOWNLOAD, Fault(302, {"Location": f"{address}/x?X-Amz-Signature=s3cret"}))
        assert get(AIR, digest).sha256 == digest
    shown = "\n".join(record.getMessage() for record in caplog.records if record.levelname != "DEBUG")
    assert "s3cret" not in shown and "\x1b" not in shown and "Failed to parse" not in shown


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("civitai.red", None),
        ("'https://civitai.red/'", None),
        ("ftp://x", "wanted https://host"),
        ("https://x:99999", "wanted"),
    ],
)
def test_an_endpoint_of_the_environment_is_understood_or_named(value, said, monkeypatch):
    monkeypatch.setenv("CIVITAI_ENDPOINT", value)
    if said is None:
        assert civitai_endpoint() == "https://civitai.red"
    else:
        with pytest.raises(FetchError, match=f"CIVITAI_ENDPOINT in the environment is .*{said}"):
            civitai_endpoint()


def test_a_tokens_file_that_cannot_be_read_is_named(sites, get, tmp_path, monkeypatch):
    place = tmp_path / "config" / "axbake" / "civitai_token"
    place.parent.mkdir(parents=True)
    place.write_text(TOKEN)

    def refuse(path, *more):
        raise PermissionError(errno.EACCES, "no", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root, as whom tests may run, reads everything
    with pytest.raises(AccessRefused, match="civitai_token: Permission denied; wanted your token"):
        civitai_token()


def test_sites_that_lie_do_no_harm():
    """Four lies of each kind; `python -m tests.hostile.sites 100` tells more of them."""
    outcomes = run(4 * len(KINDS), seed=11)

    assert [said for said in outcomes if said["outcome"] in BAD] == [], table(outcomes)
    assert {said["outcome"] for said in outcomes} == {"right", "refused"}


def no_harm(*arguments, **more):
    raise AxbakeError("The site does not answer.")


def outside(*arguments, **more):
    Path("../outside/victim").write_text("mine", encoding="utf-8")
    no_harm()


def traceback(*arguments, **more):
    raise KeyError("name")


def hang(*arguments, **more):
    time.sleep(600)


def memory(*arguments, **more):
    bytearray(2_300_000_000).find(1)
    no_harm()


def command(*arguments, **more):
    raise AxbakeError("\x1b[2J")


def secret(*arguments, **more):
    raise AxbakeError(f"{TOKEN} is not accepted.")


def other_content(*arguments, **more):
    path = Path("checkpoints/downloads") / f"{'0' * 64}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return SimpleNamespace(path=path, sha256="0" * 64, record={})


@pytest.mark.parametrize(
    ("fetch", "seen"),
    [
        (no_harm, "refused"),
        (outside, "outside"),
        (traceback, "traceback"),
        (hang, "hang"),
        (memory, "memory"),
        (command, "wrong"),
        (secret, "wrong"),
        (other_content, "wrong"),
    ],
)
def test_the_attack_sees_harm_of_every_kind(fetch, seen, monkeypatch):
    monkeypatch.setattr(hostile, "fetch", fetch)
    if seen == "hang":
        monkeypatch.setattr(hostile, "LIMIT", 5)

    (said,) = hostile.run(1, seed=3)

    assert said["outcome"] == seen
