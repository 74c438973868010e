"""A remote build cache: whoever has it builds nothing twice, and whoever answers for it cannot change a result."""

import contextlib
import dataclasses
import functools
import http.server
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from axbake.__main__ import main
from axbake.cache import Cache, Key
from axbake.cache.errors import Damaged
from axbake.cache.garbage import usage
from axbake.cache.remote import places
from axbake.cache.remote import remote as remotes
from axbake.cache.remote.errors import Distrusted, RemoteAddressError, RemoteTrouble, SigningError
from axbake.cache.remote.index import index_text, read_index
from axbake.cache.remote.places import Directory, HubDataset, Store, open_place
from axbake.cache.remote.remote import Remote, Trust
from axbake.cache.remote.signing import NAMESPACE, sign, signer

THEIRS = {"unet.axmodel": random.Random(1).randbytes(300_000), "unet.json": b'{"emulated": true}'}
OURS = {"unet.axmodel": b"built here", "unet.json": b"{}"}
ENTRIES = 8  # in the remote of the tests


def key_of(number=0, component="unet"):
    return Key(
        step="compile_model",
        component=component,
        identity={
            "settings": {"toolchain": "emulator", "prompt": f"prompt {number}"},
            "code": {},
            "tools": {"torch": "2.13.0"},
        },
        inputs={"onnx/unet.onnx": f"{number:064x}"},
        outputs={name: name for name in THEIRS},
    )


KEYS = [*map(key_of, range(ENTRIES - 1)), key_of(99, "unet/down_blocks")]


def build(content, made):
    for name, path in made.items():
        path.write_bytes(content[name])


def result(cache, key, directory):
    """Whether *key* came from a cache, and what its files hold."""
    places = {name: directory / name for name in THEIRS}
    outcome = cache.fetch_or_build(key, places, functools.partial(build, OURS))
    return outcome.hit, {name: place.read_bytes() for name, place in places.items()}


@pytest.fixture(scope="module")
def ssh_keys(tmp_path_factory):
    """Two private keys, and a file of signers that names the first as `friend`."""
    directory = tmp_path_factory.mktemp("keys")
    for name in ("friend", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    public = " ".join((directory / "friend.pub").read_text().split()[:2])
    (directory / "signers").write_text(f'# whose builds we take\nfriend namespaces="{NAMESPACE}" {public}\n')
    return directory


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The cache of somebody else, with builds of all KEYS."""
    directory = tmp_path_factory.mktemp("theirs")
    cache = Cache(directory / "cache")
    for number, key in enumerate(KEYS):
        places = {name: directory / str(number) / name for name in THEIRS}
        cache.fetch_or_build(key, places, functools.partial(build, THEIRS | {"unet.json": b"%d" % number}))
    return cache


def wanted(number):
    return THEIRS | {"unet.json": b"%d" % number}


def pushed(theirs, address, ssh_key):
    remote = Remote(str(address), Trust(None, unsigned=True), theirs.tree)
    remote.push(theirs.entries(), theirs.blobs, key=ssh_key)
    return str(address)


@pytest.fixture
def filled(theirs, ssh_keys, tmp_path):
    """A directory that is a remote, signed by `friend`."""
    pushed(theirs, tmp_path / "remote", ssh_keys / "friend")
    return tmp_path / "remote"


def own_cache(directory, address, trust):
    """A new local cache beside the remote at *address*, whose index was read, and what that said."""
    cache = Cache(directory, lambda tree: Remote(str(address), trust, tree))
    return cache, cache.remote.refresh()


@pytest.fixture
def trust(ssh_keys):
    return Trust(ssh_keys / "signers")


# Where it lies -------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@contextlib.contextmanager
def rclone(*arguments, port):
    """rclone's server of the kind that the *arguments* say."""
    program = Path(sys.executable).with_name("rclone")
    command = [program, "serve", *arguments, "--addr", f"127.0.0.1:{port}", "--config", "/dev/null"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


@contextlib.contextmanager
def at_s3(directory, monkeypatch):
    (directory / "bucket").mkdir(parents=True)
    port = free_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "s3-secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with rclone("s3", "--auth-key", "someone,s3-secret", "--vfs-cache-mode", "writes", directory, port=port):
        yield "s3://bucket/axbake"


@contextlib.contextmanager
def at_web(directory, monkeypatch):
    port = free_port()
    with rclone("http", directory, port=port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def at_simple_web(directory, monkeypatch):
    """A web server that knows no ranges."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with serving(handler) as address:
        yield address


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def all_from_the_remote(cache, directory):
    for number, key in enumerate(KEYS):
        assert result(cache, key, directory / str(number)) == (True, wanted(number))


def test_what_is_in_a_directory_is_built_nowhere_else(filled, trust, tmp_path):
    cache, said = own_cache(tmp_path / "own", filled, trust)

    assert said == f"remote build cache: {filled}, {ENTRIES} builds"
    all_from_the_remote(cache, tmp_path / "results")
    shutil.rmtree(filled)
    all_from_the_remote(Cache(tmp_path / "own"), tmp_path / "again")  # it is stored here now
    assert not list((tmp_path / "own" / "remote").rglob("*" + "?" * 60))  # no half blobs


def test_what_is_in_an_s3_like_store_is_built_nowhere_else(theirs, ssh_keys, trust, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with at_s3(tmp_path / "store", monkeypatch) as address:
        pushed(theirs, address, ssh_keys / "friend")
        cache, said = own_cache(tmp_path / "own", address, trust)
        assert said == f"remote build cache: {address}, {ENTRIES} builds"
        all_from_the_remote(cache, tmp_path / "results")

        assert cache.remote.verify() == []
        going, kept = cache.remote.garbage(days=0)
        cache.remote.prune(going, kept)
        assert cache.remote.read_index() == cache.remote.place.sizes("blobs") == {}
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
        _, said = own_cache(tmp_path / "second", address, trust)
        assert said.startswith("the remote build cache is not used: s3://bucket/axbake: ")
    assert "secret" not in caplog.text + said


@pytest.mark.parametrize("serve", [at_web, at_simple_web])
@pytest.mark.parametrize("piece", [4 << 20, 100_000])  # bytes of a request; the largest file has 300,000
def test_what_a_web_server_has_is_built_nowhere_else(serve, piece, filled, trust, tmp_path, monkeypatch):
    monkeypatch.setattr("axbake.cache.remote.places.PIECE", piece)
    with serve(filled, monkeypatch) as address:
        cache, _ = own_cache(tmp_path / "own", address, trust)
        all_from_the_remote(cache, tmp_path / "results")

        with pytest.raises(RemoteTrouble, match="a web server, which is read only"):
            cache.remote.push([], cache.blobs, key=None)


def test_a_dataset_is_read_from_hugging_face_and_written_in_few_commits(theirs, filled, monkeypatch):
    import huggingface_hub

    commits = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", lambda api, *args, **how: commits.append((args, how)))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda *_, **__: [])
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    place = open_place("hf://datasets/me/bakes@main/axbake")
    assert isinstance(place, HubDataset)
    assert (place.repository, place.revision, place.path) == ("me/bakes", "main", "axbake")
    place.write({"index.json": b"{}", "blobs/ab/x": filled / "index.json"})
    monkeypatch.setattr(places, "FILES", 2)
    place.write(dict.fromkeys("abc", b"{}"))

    ((repository, operations), how) = commits[0][0], commits[0][1]
    assert repository == "me/bakes" and how["repo_type"] == "dataset" and how["revision"] == "main"
    assert [one.path_in_repo for one in operations] == ["axbake/index.json", "axbake/blobs/ab/x"]
    assert [[one.path_in_repo for one in more[0][1]] for more in commits[1:]] == [
        ["axbake/a", "axbake/b"],
        ["axbake/c"],
    ]
    with pytest.raises(RemoteTrouble) as caught:
        place.read("index.json", 100)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "kind"),
    [("remote", Directory), ("~/remote", Directory), ("s3://bucket/a/b", Store), ("https://example.org/axbake", Store)],
)
def test_an_address_says_where_it_lies(address, kind):
    assert type(open_place(address)) is kind


@pytest.mark.parametrize(
    "address",
    [
        "ftp://example.org/a",
        "s3://",
        "https://",
        "hf://me/bakes",
        "hf://datasets/me",
        "hf://datasets/me/bakes/../other",
        "https://me:hunter2@example.org/a",
        "https://example.org/a?token=hunter2",
        "file:///tmp",
    ],
)
def test_other_addresses_are_refused_without_their_secrets(address):
    with pytest.raises(RemoteAddressError, match="cache_remote: ") as caught:
        open_place(address)
    assert "hunter2" not in str(caught.value)


# Whose entries are taken ---------------------------------------------------------------------------------------------


def test_a_signature_is_its_makers_of_this_text_and_for_this_use(ssh_keys):
    text, signers = b"an entry", ssh_keys / "signers"
    mine = sign(text, ssh_keys / "friend")

    assert signer(text, mine, signers) == "friend"
    for content, signature, words in (
        (b"another entry", mine, "is not friend's of this text"),
        (text, sign(text, ssh_keys / "stranger"), "signed by nobody in"),
        (text, "", "not signed"),
        (text, "no signature", "signed by nobody in"),
        (text, "x" * 20_000, "a signature of more than 16 kB"),
    ):
        with pytest.raises(Distrusted, match=words):
            signer(content, signature, signers)
    (ssh_keys / "text").write_bytes(text)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", ssh_keys / "friend", "-n", "git", ssh_keys / "text"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with pytest.raises(Distrusted):
        signer(text, (ssh_keys / "text.sig").read_text(), signers)
    with pytest.raises(SigningError, match="no such file"):
        sign(text, ssh_keys / "nobody")


@pytest.mark.parametrize("who", ["stranger", None])
def test_an_entry_of_a_stranger_is_used_only_if_the_project_says_so(who, theirs, ssh_keys, trust, tmp_path, caplog):
    address = pushed(theirs, tmp_path / "remote", who and ssh_keys / who)

    cache, _ = own_cache(tmp_path / "own", address, trust)
    assert result(cache, KEYS[0], tmp_path / "a") == (False, OURS)
    assert ("not signed" if who is None else "signed by nobody in") in caplog.text

    cache, _ = own_cache(tmp_path / "second", address, dataclasses.replace(trust, unsigned=True))
    assert result(cache, KEYS[0], tmp_path / "b") == (True, wanted(0))


def test_a_project_that_names_nobody_is_told_so_before_anything_is_asked(filled, tmp_path):
    with pytest.raises(SigningError, match="cache_signers names nobody"):
        own_cache(tmp_path / "own", filled, Trust(None))
    with pytest.raises(SigningError, match="lost: no such file"):
        own_cache(tmp_path / "own", filled, Trust(tmp_path / "lost"))


# Hostile -------------------------------------------------------------------------------------------------------------


def spoilt(data, rng):
    """*data*, changed in one of the ways in which files are damaged and forged."""
    place = rng.randrange(len(data))
    return rng.choice(
        [
            lambda: data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :],
            lambda: data[:place],
            lambda: data + data[:1000],
            lambda: data[:place] + data[place + 10 :],
            lambda: b"",
            lambda: rng.randbytes(min(len(data), 2000)),
            lambda: data[:place] + b"/../../etc/passwd" + data[place:],
            lambda: data.replace(b"a", b"b", 3),
        ]
    )()


@pytest.mark.parametrize("part", ["entries", "blobs", "index.json"])
def test_of_hundreds_of_changed_files_none_is_used(part, theirs, filled, trust, tmp_path):
    rng, changed, used = random.Random(part), 0, []
    outputs = [theirs.find(key).outputs.values() for key in KEYS]
    files = sorted(path for path in (filled / part).rglob("*") if path.is_file()) or [filled / part]
    for number in range(120):
        path = files[number % len(files)]
        right = path.read_bytes()
        wrong = spoilt(right, rng)
        if _meaning(wrong) == _meaning(right):
            continue
        changed += 1
        path.write_bytes(wrong)
        cache, _ = own_cache(tmp_path / str(number) / "own", filled, trust)
        names = {place: [key.digest, *(blob.sha256 for blob in outputs[place])] for place, key in enumerate(KEYS)}
        # Of those that it is a part of, one; and of the others, one.
        asked = [
            next((place for place in names if (path.stem in names[place]) == affected), None)
            for affected in (True, False)
        ]
        for place in {0, *asked} - {None}:
            hit, found = result(cache, KEYS[place], tmp_path / str(number) / str(place))
            if found != (wanted(place) if hit else OURS):
                used.append((path.name, wrong[:100]))
            if hit and path.stem in names[place]:
                used.append((path.name, "hit"))
        path.write_bytes(right)
        shutil.rmtree(tmp_path / str(number))
    assert changed > 100 and used == []


def _meaning(content):
    """What an entry's file says: other blanks around its signature are not another one."""
    try:
        record = json.loads(content)
        return record["entry"], "".join(record["signature"].split())
    except (ValueError, KeyError, TypeError, AttributeError):
        return content


def test_one_entry_in_the_place_of_another_is_a_miss(filled, trust, tmp_path, caplog):
    first, second = (filled / "entries" / f"{key.digest}.json" for key in KEYS[:2])
    first.write_bytes(second.read_bytes())
    cache, _ = own_cache(tmp_path / "own", filled, trust)

    assert result(cache, KEYS[0], tmp_path / "a") == (False, OURS)
    assert f"the entry of {KEYS[1].digest}" in caplog.text
    assert result(cache, KEYS[1], tmp_path / "b") == (True, wanted(1))


def test_links_pipes_and_directories_in_a_remote_directory_are_misses(filled, trust, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    entry, blobs = filled / "entries" / f"{KEYS[0].digest}.json", sorted((filled / "blobs").rglob("?" * 64))
    for path, plant in (
        (entry, lambda path: path.symlink_to(secret)),
        (entry, os.mkfifo),
        (entry, Path.mkdir),
        *((blob, lambda path: path.symlink_to(secret)) for blob in blobs[:1]),
        *((blob, os.mkfifo) for blob in blobs[:1]),
    ):
        kept = path.read_bytes()
        path.unlink()
        plant(path)
        cache, _ = own_cache(tmp_path / f"own-{time.time_ns()}", filled, trust)
        for number, key in enumerate(KEYS):
            hit, found = result(cache, key, tmp_path / str(time.time_ns()))
            assert found == (wanted(number) if hit else OURS)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(kept)


def test_an_index_of_another_format_and_a_huge_one_find_nothing(filled, trust, tmp_path, monkeypatch):
    index = json.loads((filled / "index.json").read_text())
    (filled / "index.json").write_text(json.dumps(index | {"format": 0}))
    cache, said = own_cache(tmp_path / "own", filled, trust)
    assert said.endswith(", 0 builds") and result(cache, KEYS[0], tmp_path / "a") == (False, OURS)

    monkeypatch.setattr("axbake.cache.remote.index.LONGEST", 100)
    _, said = own_cache(tmp_path / "second", filled, trust)
    assert said.startswith("the remote build cache is not used: ") and "wanted 100 at most" in said


@pytest.mark.parametrize(
    "content",
    [b"[]", b'{"format": 1, "entries": []}', b'{"format": 1, "entries": {"x": {}}}', b'{"format": 1, "entries": 7}'],
)
def test_what_is_no_index_is_damaged(content):
    with pytest.raises(Damaged):
        read_index(content)
    assert read_index(index_text({"0" * 64: {}}).encode()) == {"0" * 64: {}}


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Serves a remote's files with ranges, and misbehaves with blobs as `how` says."""

    directory: Path
    how: str
    asked: list

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.directory / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, status, start = path.read_bytes(), 200, 0
        if wanted_range := self.headers.get("Range"):
            start, _, end = wanted_range.removeprefix("bytes=").partition("-")
            start, total = int(start), len(data)
            data, status = data[start : int(end) + 1 if end else None], 206
        is_blob = "/blobs/" in self.path and len(data) > 1000
        type(self).asked.append((self.path, start))
        if is_blob and self.how == "other bytes":
            data = bytes(len(data))
        self.send_response(status)
        length = len(data)
        if is_blob and self.how == "lies":
            length += 5000
        self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        self.end_headers()
        if is_blob and self.how == "breaks" and len(type(self).asked) % 2:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        if is_blob and self.how == "dies":
            self.wfile.write(data[:1000])
            self.close_connection = True
            return
        self.wfile.write(data)


@pytest.mark.parametrize("how", ["breaks", "lies", "other bytes", "dies"])
def test_whatever_a_connection_does_no_result_is_wrong_and_it_is_told(
    how, filled, trust, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("axbake.cache.remote.places.PIECE", 65536)
    monkeypatch.setattr("axbake.cache.remote.places.RETRIES", {"max_retries": 1})
    handler = type("Handler", (Unreliable,), {"directory": filled, "how": how, "asked": []})
    with serving(handler) as address:
        cache, _ = own_cache(tmp_path / "own", address, trust)
        for number, key in enumerate(KEYS):
            hit, found = result(cache, key, tmp_path / str(number))
            assert found == (wanted(number) if hit else OURS)
    if how in ("lies", "dies"):  # the first trouble is the last
        assert caplog.text.count("is not asked again for 10 min") == 1
        assert not [path for path, _ in handler.asked if KEYS[-1].digest in path]
    elif how == "other bytes":
        assert caplog.text.count("not taken from the remote build cache") == ENTRIES


def test_a_fetch_goes_on_where_the_last_one_broke(filled, trust, tmp_path, monkeypatch):
    monkeypatch.setattr("axbake.cache.remote.places.PIECE", 65536)
    monkeypatch.setattr("axbake.cache.remote.places.RETRIES", {"max_retries": 0})
    monkeypatch.setattr(remotes, "OFF", -1)  # asked again at once
    handler = type("Handler", (Unreliable,), {"directory": filled, "how": "", "asked": []})
    with serving(handler) as address:
        cache, _ = own_cache(tmp_path / "own", address, trust)
        large = next(blob for blob in cache.remote.outputs(KEYS[0]).values() if blob.size > 1000)
        part = cache.remote._kept / large.sha256
        part.write_bytes(THEIRS["unet.axmodel"][:100_000])  # what a killed job left

        assert result(cache, KEYS[0], tmp_path / "a") == (True, wanted(0))
    starts = [start for path, start in handler.asked if large.sha256 in path]
    assert min(starts) == 100_000 and not part.exists()


def test_a_remote_that_is_away_costs_one_sentence_and_no_job_asks_it(trust, tmp_path, caplog):
    cache, said = own_cache(tmp_path / "own", f"http://127.0.0.1:{free_port()}/axbake", trust)

    assert said.startswith("the remote build cache is not used: http://127.0.0.1:")
    assert result(cache, KEYS[0], tmp_path / "a") == (False, OURS)
    assert "remote" not in caplog.text
    _, said = own_cache(tmp_path / "own", tmp_path / "unmounted", trust)
    assert said == f"the remote build cache is not used: {tmp_path}/unmounted: No such file or directory"


# Pushing and looking after it ----------------------------------------------------------------------------------------


def test_who_writes_the_index_at_the_same_time_loses_nothing(theirs, ssh_keys, tmp_path, monkeypatch):
    first, second = (Remote(str(tmp_path / "remote"), Trust(None), theirs.tree) for _ in range(2))
    one, other, *_ = theirs.entries()
    write = Directory.write

    def write_late(place, files):
        if "index.json" in files and place is first.place and not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            second.push([other], theirs.blobs, key=None)  # between first's reading of the index and its writing
        write(place, files)

    monkeypatch.setattr(Directory, "write", write_late)
    first.push([one], theirs.blobs, key=None)
    second.push([other], theirs.blobs, key=None)
    assert first.read_index().keys() == {one.key.digest, other.key.digest}


def test_what_is_built_is_pushed_as_it_ends_if_the_project_says_so(ssh_keys, trust, tmp_path, monkeypatch):
    monkeypatch.setenv("AXBAKE_CACHE_PUSH", "auto")
    monkeypatch.setenv("AXBAKE_SIGNING_KEY", str(ssh_keys / "friend"))
    (tmp_path / "remote").mkdir()
    cache, _ = own_cache(tmp_path / "own", tmp_path / "remote", trust)
    assert result(cache, KEYS[0], tmp_path / "a") == (False, OURS)

    second, _ = own_cache(tmp_path / "second", tmp_path / "remote", trust)
    assert result(second, KEYS[0], tmp_path / "b") == (True, OURS)
    monkeypatch.setenv("AXBAKE_CACHE_PUSH", "never")
    result(second, KEYS[1], tmp_path / "c")
    assert len(second.remote.read_index()) == 1


@pytest.fixture
def command(theirs, ssh_keys, tmp_path, monkeypatch, capsys):
    """A function that runs `axbake cache` on their cache; its exit status and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXBAKE_CACHE", str(theirs.directory))
    monkeypatch.setenv("AXBAKE_SIGNING_KEY", str(ssh_keys / "friend"))
    monkeypatch.setenv("AXBAKE_CACHE_SIGNERS", str(ssh_keys / "signers"))
    monkeypatch.delenv("AXBAKE_CACHE_REMOTE", raising=False)
    monkeypatch.setenv("AXBAKE_CACHE_REMOTE", "remote")

    def run(*arguments):
        status = main(["cache", *arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_a_push_is_shown_before_it_is_done(command, tmp_path):
    status, said = command("push")
    assert status == 1 and not (tmp_path / "remote").exists()
    assert f"{ENTRIES} builds that {tmp_path}/remote lacks" in said and "And 8 prompts, such as: prompt " in said
    assert "Nothing was pushed." in said

    status, said = command("push", "--yes")
    assert status == 0 and f"Pushed {ENTRIES} builds" in said
    assert command("remote") == (0, f"{tmp_path}/remote\n{ENTRIES} builds, 9 blobs, 293.0 KiB\n")
    assert command("verify") == (0, f"{tmp_path}/remote: {ENTRIES} builds, 0 that axbake would not take\n")
    assert command("push")[0] == 0

    blob = next(path for path in (tmp_path / "remote" / "blobs").rglob("?" * 64) if path.stat().st_size < 100)
    blob.write_bytes(b"x")
    status, said = command("verify")
    assert status == 1 and "1 that axbake would not take" in said and "has other content" in said


def test_pruning_removes_what_is_old_and_what_nothing_needs(command, tmp_path):
    command("push", "--yes")
    stray = tmp_path / "remote" / "blobs" / "00" / ("0" * 64)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of nobody")
    (tmp_path / "remote" / "entries" / "notes.txt").write_text("of nobody")

    status, said = command("prune", "--days", "1")
    assert status == 1 and f"2 files, {ENTRIES} builds stay" in said and stray.exists()
    status, said = command("prune", "--days", "1", "--yes")
    assert status == 0 and not stray.exists() and command("verify")[0] == 0
    status, said = command("prune", "--days", "0", "--yes")
    assert said.endswith("0 builds stay.\n") and command("remote")[1].endswith("\n0 builds, 0 blobs, 0 bytes\n")


def test_commands_say_what_they_lack(command, monkeypatch):
    monkeypatch.delenv("AXBAKE_SIGNING_KEY")
    assert "AXBAKE_SIGNING_KEY is not set" in command("push")[1]
    monkeypatch.setenv("AXBAKE_CACHE_REMOTE", "")
    assert "no remote build cache is named" in command("remote")[1]
    assert "only push takes targets" in command("verify", "results/demo/report.html")[1]


def test_entries_of_a_graph_of_several_are_found_and_no_garbage(theirs):
    assert {entry.key.component for entry in theirs.entries()} == {"unet", "unet/down_blocks"}
    assert len(list(theirs.entries("compile_model", "unet/down_blocks"))) == 1
    assert usage(theirs, days=1).garbage == []
