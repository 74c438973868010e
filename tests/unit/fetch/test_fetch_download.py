"""Downloads that break off, change, are killed or find no room go on where they ended, and are whole or not there."""

import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from axbake.fetch.download import progress_line
from axbake.fetch.errors import NoRoom, NotAFile, SiteUnreachable
from axbake.fetch.sources import parse_source
from axbake.fetch.store import fetch
from axbake.fetch.web import Web
from tests.services.model_sites import SIZE, Fault, weights

ROOT = Path(__file__).parents[3]
AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
STORED = "/bucket/tiny.safetensors"
DOWNLOADS = Path("downloads")


def test_breaks_at_every_percent_of_a_file_cost_nothing_twice(sites, get, naps):
    digest = sites.put("tiny.safetensors", weights())
    step = SIZE // 100
    sites.fail(STORED, *[Fault(cut=step)] * 99)

    assert get(sites.url(), digest).path.read_bytes() == weights()

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
            fetch(parse_source(sites.url()), pin, DOWNLOADS, web=Web(sleep=end))

        assert get(sites.url(), pin).path.read_bytes() == content
        assert sites.log[1].headers.get("range") == (f"bytes={cut}-" if cut else None)
        assert len(sites.log) == 2


def test_a_file_that_changed_between_two_runs_starts_anew(sites, get, left):
    sites.put("tiny.safetensors", weights(1))
    sites.fail(STORED, Fault(cut=1000), *[Fault(500)] * 5)
    with pytest.raises(SiteUnreachable):
        get(sites.url())
    assert [name for name in left() if name.endswith(".part")]
    new = sites.put("tiny.safetensors", weights(2))
    sites.log.clear()

    assert get(sites.url()).sha256 == new
    assert [seen.status for seen in sites.log] == [200]  # If-Range failed, so the whole of the new one came
    assert sites.log[0].headers["range"] == "bytes=1000-"


def test_a_site_that_mixes_two_files_is_found_out_and_asked_anew(sites, get):
    """It gives no validator, so only the digest tells."""
    digest = sites.put("tiny.safetensors", weights(0), etag=None)
    sites.files["tiny.safetensors"].content = weights(1)
    sites.fail(STORED, Fault(cut=1000))

    def swap(_seconds):
        sites.files["tiny.safetensors"].content = weights(0)

    found = fetch(parse_source(sites.url()), digest, DOWNLOADS, web=Web(sleep=swap))

    assert found.path.read_bytes() == weights(0)
    assert [seen.status for seen in sites.log] == [200, 206, 200]


def test_without_digest_and_validator_nothing_is_resumed(sites, get):
    digest = sites.put("tiny.safetensors", weights(), etag='W/"weak"')
    sites.fail(STORED, Fault(cut=1000))

    assert get(sites.url()).sha256 == digest
    assert all("range" not in seen.headers for seen in sites.log)


def test_a_site_without_ranges_is_read_from_the_beginning(sites, get):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=SIZE // 2), Fault(ignore_range=True))

    assert get(sites.url(), digest).path.read_bytes() == weights()
    assert [seen.status for seen in sites.log] == [200, 200]


@pytest.mark.parametrize("have", [SIZE, SIZE + 5])
def test_a_416_means_that_all_has_come_or_that_it_was_another_file(have, sites, get):
    digest = sites.put("tiny.safetensors", weights())
    DOWNLOADS.mkdir()
    (DOWNLOADS / f"{digest}.part").write_bytes((weights() + b"xxxxx")[:have])

    assert get(sites.url(), digest).path.read_bytes() == weights()
    assert [seen.status for seen in sites.log] == ([416] if have == SIZE else [416, 200])


def test_transient_failures_are_waited_out_for_as_long_as_the_site_asks(sites, get, naps):
    digest = sites.publish(weights())
    sites.fail("/api/v1/model-versions/102222", Fault(429, {"Retry-After": "7"}), Fault(503))
    sites.fail("/api/download/models/102222", Fault(502), Fault(500), Fault(503, {"Retry-After": "33"}))
    sites.fail(STORED, Fault(429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}))

    assert get(AIR).sha256 == digest
    assert naps == [7, 2, 1, 2, 33, 0]


def test_a_site_that_stays_away_is_given_up(sites, get, naps):
    sites.put("tiny.safetensors", weights())
    sites.fail(STORED, *[Fault(503)] * 9)
    with pytest.raises(SiteUnreachable, match=r"tiny\.safetensors: HTTP 503; 6 times in a row\. Run again later"):
        get(sites.url())
    assert naps == [1, 2, 4, 8, 16]
    sites.faults.clear()
    sites.fail(STORED, Fault(429, {"Retry-After": "7200"}))
    with pytest.raises(SiteUnreachable, match="asks for a pause of 7200 s"):
        get(sites.url())
    with pytest.raises(SiteUnreachable, match="the host refuses the connection"):
        get("http://127.0.0.3:9/x.safetensors")


def test_a_file_too_large_for_the_disk_is_not_begun(sites, get, left, monkeypatch):
    digest = sites.put("tiny.safetensors", weights())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**30))
    sites.fail(STORED, Fault(headers={"Content-Length": str(4 * 2**30)}))
    with pytest.raises(NoRoom, match=r"4\.0 GiB are still to download, but only 1\.0 GiB of disk space are free"):
        get(sites.url(), digest)
    assert left() == []


@pytest.mark.parametrize("length", [str(10**15), "9" * 5000])
def test_a_file_larger_than_any_checkpoint_is_not_begun(length, sites, get, left):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(headers={"Content-Length": length}))
    with pytest.raises(NotAFile, match=r"says that it sends \d+\.\d GiB; no checkpoint is larger than 128\.0 GiB"):
        get(sites.url(), digest)
    assert left() == []


def test_progress_has_size_rate_and_what_is_left():
    assert progress_line(812_000_000, 2_034_000_000, 41e6) == "812 of 2,034 MB (39 %), 41.0 MB/s, 30 s left"
    assert progress_line(812_000_000, None, 41e6) == "812 MB, 41.0 MB/s"
    assert progress_line(0, 2_034_000_000, 0) == "0 of 2,034 MB (0 %), 0.0 MB/s, time left unknown"


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
    until = time.monotonic() + 600
    while not part.is_file() or part.stat().st_size < size:
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def hold():
    event = threading.Event()
    yield event
    event.set()


def test_a_fetch_that_is_killed_is_taken_up_where_it_ended(sites, get, hold, left):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=SIZE // 2, hold=hold))
    first = start(sites.url(), digest)
    wait_for_part(digest, SIZE // 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (DOWNLOADS / f"{digest}.safetensors").exists()

    assert get(sites.url(), digest).path.read_bytes() == weights()

    assert sites.log[1].headers["range"] == f"bytes={SIZE // 2}-"
    assert left() == [f"{digest}.safetensors", f"{digest}.safetensors.json"]


def test_of_two_that_fetch_one_file_at_once_one_downloads_and_the_other_waits(sites, hold):
    digest = sites.put("tiny.safetensors", weights())
    sites.fail(STORED, Fault(cut=SIZE // 2, hold=hold))
    first = start(sites.url(), digest)
    wait_for_part(digest, SIZE // 2)
    second = start(sites.url(), digest)
    said = second.stderr.readline()
    hold.set()

    assert "download of tiny.safetensors: waiting for" in said
    for process in (first, second):
        assert process.communicate()[0].strip() == f"downloads/{digest}.safetensors"
        assert process.returncode == 0
    assert len(sites.asked("storage")) == 1


def test_a_disk_that_fills_up_is_told_and_what_came_is_kept(sites, get):
    """A limit on the size of files is what a disk of that size is to a write."""
    digest = sites.put("tiny.safetensors", weights())
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    full = start(sites.url(), digest, preexec_fn=limit)

    said = full.communicate()[1]
    assert full.returncode == 1
    assert "NoRoom: downloads/" in said and "Free some space and run again; the received part is kept" in said
    assert "Traceback" not in said
    assert get(sites.url(), digest).path.read_bytes() == weights()
    assert sites.log[-1].headers["range"] == f"bytes={SIZE // 2}-"
