"""Results come from the build cache or from one build, whole, whatever dies, fills up or is damaged meanwhile."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from axbake import digest
from axbake.cache import Cache, Key, cache_directory
from axbake.cache.blobs import REMEMBERED
from axbake.cache.errors import CacheUnusable, InputChanged, NoResult, NotWritten, Overtaken, check_temporary_room
from axbake.cache.garbage import remove_garbage
from axbake.cache.locks import lock

CONTENT = {"axmodel": random.Random(1).randbytes(2 * REMEMBERED), "record": b'{"emulated": true}'}
NOBODY = 65534


def key_of(**settings):
    return Key(
        step="compile_model",
        component="unet",
        identity={"settings": {"toolchain": "emulator", **settings}, "code": {}, "tools": {}},
        inputs={"graph": "1" * 64},
        outputs={"axmodel": "unet.axmodel", "record": "unet.json"},
    )


KEY = key_of()


def places_in(directory):
    return {"axmodel": directory / "unet.axmodel", "record": directory / "build" / "unet.json"}


class Builder:
    """A build that gives CONTENT and counts."""

    def __init__(self, content=CONTENT):
        self.content = content
        self.builds = 0

    def __call__(self, made):
        self.builds += 1
        for name, path in made.items():
            path.write_bytes(self.content[name])


@pytest.fixture(autouse=True)
def _own_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "MEMORY", tmp_path / "digests")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@contextlib.contextmanager
def mounted(place, *arguments):
    """A file system of its own at *place*; the test is skipped where none can be mounted."""
    place.mkdir(parents=True)
    done = subprocess.run(["mount", *arguments, place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "none") as place:
        yield place


def test_a_full_directory_of_temporary_files_is_named(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    check_temporary_room()
    monkeypatch.setenv("TMPDIR", str(small_disk))

    with pytest.raises(NotWritten, match=f"{small_disk}: no space left, .* Make room there, or for temporary files"):
        (small_disk / "large").write_bytes(bytes(500_000))
        check_temporary_room()
    (small_disk / "large").unlink()
    check_temporary_room()


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "none") as place:
        yield place


@pytest.fixture
def other_disk(tmp_path):
    with mounted(tmp_path / "other", "-t", "tmpfs", "-o", "size=64m", "none") as place:
        yield place


@pytest.fixture
def cloning_disk(tmp_path):
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("needs mkfs.btrfs (package btrfs-progs) for a file system that clones")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True)
    with mounted(tmp_path / "clones", "-o", "loop", image) as place:
        yield place


def assert_right(places):
    assert {name: place.read_bytes() for name, place in places.items()} == CONTENT


def hidden_files(directory):
    """Private directories, and files that are being written."""
    return [path for path in directory.rglob(".*") if path.exists()]


def bytes_read():
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


# Found or built


def test_a_second_job_gets_the_same_bytes_without_a_build(cache, results):
    build = Builder()

    first = cache.fetch_or_build(KEY, places_in(results / "a"), build)
    second = cache.fetch_or_build(KEY, places_in(results / "b"), build)

    assert build.builds == 1
    assert (first.hit, second.hit) == (False, True)
    assert first.entry == second.entry == cache.find(KEY)
    assert_right(places_in(results / "a"))
    assert_right(places_in(results / "b"))
    assert hidden_files(results) == []
    assert list(cache.directory.glob("locks/*")) == list(cache.directory.glob("running/*")) == []


def test_another_key_is_another_build(cache, results):
    build = Builder()

    cache.fetch_or_build(KEY, places_in(results), build)
    cache.fetch_or_build(key_of(version="5.0"), places_in(results), build)

    assert build.builds == 2
    assert len(list(cache.directory.glob("blobs/*/*"))) == 2  # the same content is kept once


def test_planning_needs_no_cache_and_makes_none(cache):
    assert cache.find(KEY) is None
    assert list(cache.entries()) == []
    assert not cache.directory.exists()


def test_the_build_sees_the_outputs_own_names_in_one_directory_beside_the_first_place(cache, results):
    seen = {}

    def build(made):
        seen.update(made)
        Builder()(made)

    cache.fetch_or_build(KEY, places_in(results), build)

    assert {name: path.name for name, path in seen.items()} == KEY.outputs
    assert {path.parent.parent for path in seen.values()} == {results}


def test_places_must_be_named_as_the_key_says(cache, results):
    with pytest.raises(ValueError, match="the key says"):
        cache.fetch_or_build(KEY, {"axmodel": results / "vae.axmodel", "record": results / "unet.json"}, Builder())


def test_a_build_that_fails_leaves_nothing(cache, results):
    def build(made):
        made["axmodel"].write_bytes(b"half")
        raise RuntimeError("the compiler broke")

    with pytest.raises(RuntimeError, match="the compiler broke"):
        cache.fetch_or_build(KEY, places_in(results), build)

    assert cache.find(KEY) is None
    assert hidden_files(results) == []
    assert not places_in(results)["axmodel"].exists()


@pytest.mark.parametrize("leave_out", ["nothing made", "a link"])
def test_a_build_without_one_of_its_outputs_is_refused(cache, results, leave_out):
    def build(made):
        made["axmodel"].write_bytes(b"whole")
        if leave_out == "a link":
            made["record"].symlink_to(made["axmodel"])

    with pytest.raises(NoResult, match=r"made no file unet\.json"):
        cache.fetch_or_build(KEY, places_in(results), build)


def test_the_entry_says_what_was_built_and_what_it_took(cache, results):
    def build(made):
        time.sleep(0.2)
        Builder()(made)

    entry = cache.fetch_or_build(KEY, places_in(results), build).entry

    assert entry.key == KEY
    assert entry.outputs["axmodel"].size == len(CONTENT["axmodel"])
    assert 0.2 <= entry.seconds < 2
    assert 0 < entry.peak_memory < 64


def test_the_directory_is_the_environments_else_the_configs_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("AXBAKE_CACHE", raising=False)
    assert cache_directory(None) == tmp_path / "xdg" / "axbake"
    assert cache_directory("~/bakes") == Path.home() / "bakes"

    monkeypatch.setenv("AXBAKE_CACHE", str(tmp_path / "env"))
    assert cache_directory("~/bakes") == tmp_path / "env"


def test_a_build_says_in_the_log_what_is_new_however_far_up_it_came_from(cache, results, caplog):
    caplog.set_level(logging.INFO)

    def bake(prompts):
        pack = Key("calibrate", "unet", {"settings": {"prompts": prompts}}, {}, {"archive": "unet.tar"})
        archive = Builder({"archive": " ".join(prompts).encode()})
        packed = cache.fetch_or_build(pack, {"archive": results / "unet.tar"}, archive).entry
        key = dataclasses.replace(KEY, inputs=KEY.inputs | {"archive": packed.outputs["archive"].sha256})
        return cache.fetch_or_build(key, places_in(results), Builder()).reason

    assert bake(["a cat", "a dog"]) == "first build of compile_model/unet"
    reason = bake(["a cat", "a boat"])
    assert reason == "unet: prompt 2 changed; graph, settings as before"
    assert f"building compile_model/unet: {reason}" in caplog.text


# Placed


def test_on_one_disk_a_result_is_the_blob_itself(cache, results):
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    cache.fetch_or_build(KEY, places_in(results / "b"), Builder())

    blob = cache.blobs.path(cache.find(KEY).outputs["axmodel"])
    inodes = {place.stat().st_ino for place in (blob, results / "a" / "unet.axmodel", results / "b" / "unet.axmodel")}
    if blob.stat().st_nlink == 1:
        pytest.skip("this file system clones files; see the test of clones")
    assert len(inodes) == 1
    # Snakemake refuses to make a write-protected output again.
    assert blob.stat().st_mode & 0o200


def test_external_tensors_of_a_graph_have_one_name_however_they_are_placed(cache, results):
    """ONNX refuses them otherwise (onnx/onnx#7686)."""
    key = dataclasses.replace(KEY, outputs={"axmodel": "unet.onnx.data"})
    again = dataclasses.replace(key, component="same content, built anew")
    places = {name: results / name / "unet.onnx.data" for name in "abc"}

    for asked, name in ((key, "a"), (key, "b"), (again, "c")):
        cache.fetch_or_build(asked, {"axmodel": places[name]}, Builder())

    blob = cache.blobs.path(cache.find(key).outputs["axmodel"])
    assert [place.stat().st_nlink for place in (blob, *places.values())] == [1, 1, 1, 1]
    assert {place.read_bytes() for place in places.values()} == {CONTENT["axmodel"]}


def test_on_another_disk_a_result_is_a_copy(cache, other_disk):
    cache.fetch_or_build(KEY, places_in(other_disk / "a"), Builder())
    cache.fetch_or_build(KEY, places_in(other_disk / "b"), Builder())

    blob = cache.blobs.path(cache.find(KEY).outputs["axmodel"])
    assert_right(places_in(other_disk / "a"))
    assert_right(places_in(other_disk / "b"))
    assert blob.stat().st_nlink == 1
    assert blob.stat().st_mode & 0o777 == 0o444
    assert (other_disk / "b" / "unet.axmodel").stat().st_mode & 0o200


def test_where_the_disk_can_clone_a_result_shares_its_blocks(cloning_disk):
    cache = Cache(cloning_disk / "cache")
    content = {"axmodel": random.Random(2).randbytes(60 << 20), "record": b"{}"}
    free = []

    for checkout in "abc":  # 180 MiB of results; the disk has about 200
        outcome = cache.fetch_or_build(KEY, places_in(cloning_disk / checkout), Builder(content))
        os.sync()
        free.append(shutil.disk_usage(cloning_disk).free)

    blob = cache.blobs.path(outcome.entry.outputs["axmodel"])
    place = cloning_disk / "c" / "unet.axmodel"
    assert place.read_bytes() == content["axmodel"]
    assert blob.stat().st_nlink == 1
    assert blob.stat().st_mode & 0o777 == 0o444
    assert free[0] - free[2] < 8 << 20
    place.write_bytes(b"edited")
    assert cache.fetch_or_build(KEY, places_in(cloning_disk / "d"), Builder(content)).hit


def test_a_result_is_as_new_as_now(cache, results):
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    for place in places_in(results / "a").values():
        os.utime(place, (0, 0))
    started = time.time()

    cache.fetch_or_build(KEY, places_in(results / "b"), Builder())

    assert all(place.stat().st_mtime > started - 1 for place in places_in(results / "b").values())


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_result_is_readable_for_all_and_writable_for_its_owner_however_it_was_made(cache, results, mode):
    def build(made):
        Builder()(made)
        for path in made.values():
            path.chmod(mode)

    for checkout in "ab":
        cache.fetch_or_build(KEY, places_in(results / checkout), build)
        assert {place.stat().st_mode & 0o644 for place in places_in(results / checkout).values()} == {0o644}


def test_an_earlier_result_is_replaced_and_not_written_into(cache, results):
    places = places_in(results)
    places["axmodel"].parent.mkdir(parents=True)
    places["axmodel"].write_bytes(b"earlier")
    with places["axmodel"].open("rb") as reader:
        cache.fetch_or_build(KEY, places, Builder())
        assert reader.read() == b"earlier"
    assert_right(places)


def test_a_job_left_running_does_not_replace_a_newer_result(cache, results):
    places = places_in(results)

    def build(made):
        Builder()(made)
        cache.fetch_or_build(key_of(version="5.0"), places, Builder({"axmodel": b"newer", "record": b"newer"}))

    with pytest.raises(Overtaken, match=r"unet\.axmodel: another job wrote its result there"):
        cache.fetch_or_build(KEY, places, build)

    assert places["axmodel"].read_bytes() == b"newer"
    assert cache.find(KEY)  # its work is not lost
    assert hidden_files(results) == []


def test_another_users_blob_is_copied_and_a_closed_cache_does_not_stop_a_build():
    """Links to it could not be touched, which Snakemake does to every output."""
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        cache = Cache(Path(directory) / "cache")
        cache.fetch_or_build(KEY, places_in(Path(directory) / "root"), Builder())
        theirs = Path(directory) / "theirs"
        theirs.mkdir()
        os.chown(theirs, NOBODY, NOBODY)

        def somebody_else():
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            hit = cache.fetch_or_build(KEY, places_in(theirs / "hit"), Builder())
            built = cache.fetch_or_build(key_of(version="5.0"), places_in(theirs / "built"), Builder())
            assert hit.hit
            assert built.entry is None
            for place in places_in(theirs / "hit").values():
                os.utime(place)
                assert os.access(place, os.W_OK)

        assert ended(started(somebody_else)) == 0
        assert_right(places_in(theirs / "hit"))
        assert_right(places_in(theirs / "built"))
        assert hidden_files(theirs) == []


# Read as little as needed


def test_a_big_result_is_not_read_again_until_it_is_touched(cache, results):
    content = {"axmodel": random.Random(3).randbytes(32 << 20), "record": b"{}"}
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder(content))

    def read_by_a_hit(checkout):
        before = bytes_read()
        assert cache.fetch_or_build(KEY, places_in(results / checkout), Builder(content)).hit
        return bytes_read() - before

    assert read_by_a_hit("b") < 1 << 20
    assert read_by_a_hit("c") < 1 << 20
    os.utime(results / "c" / "unet.axmodel")  # as Snakemake does when a job ends
    assert read_by_a_hit("d") > 32 << 20
    assert read_by_a_hit("e") < 1 << 20


def test_reading_an_input_that_is_linked_counts_for_its_blob(cache, results):
    content = {"axmodel": random.Random(3).randbytes(32 << 20), "record": b"{}"}
    entry = cache.fetch_or_build(KEY, places_in(results / "a"), Builder(content)).entry
    place = results / "a" / "unet.axmodel"
    if place.stat().st_nlink == 1:
        pytest.skip("this file system clones files")

    before = bytes_read()
    assert cache.sha256(place) == entry.outputs["axmodel"].sha256
    assert bytes_read() - before < 1 << 20

    os.utime(place)
    assert cache.sha256(place) == entry.outputs["axmodel"].sha256
    before = bytes_read()
    assert cache.fetch_or_build(KEY, places_in(results / "b"), Builder(content)).hit
    assert bytes_read() - before < 1 << 20


# Damaged


def flip_a_byte(path):
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def truncate(path):
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink], ids=["byte flipped", "truncated", "removed"])
def test_a_damaged_blob_is_told_set_aside_and_built_again(cache, results, caplog, damage, name):
    caplog.set_level(logging.INFO)
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    blob = cache.blobs.path(cache.find(KEY).outputs[name])
    damage(blob)
    build = Builder()

    outcome = cache.fetch_or_build(KEY, places_in(results / "b"), build)

    assert (outcome.hit, build.builds) == (False, 1)
    assert_right(places_in(results / "b"))
    assert f"{blob}: damaged blob of compile_model/unet" in caplog.text
    assert [path.name for path in cache.directory.glob("damaged/*")] == ([blob.name] if damage != Path.unlink else [])
    assert cache.fetch_or_build(KEY, places_in(results / "c"), build).hit


def test_a_build_replaces_a_damaged_blob_of_its_content(cache, results, caplog):
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    flip_a_byte(cache.blobs.path(cache.find(KEY).outputs["axmodel"]))

    cache.fetch_or_build(key_of(version="5.0"), places_in(results / "b"), Builder())

    assert "replaced" in caplog.text
    assert cache.fetch_or_build(KEY, places_in(results / "c"), Builder()).hit
    assert_right(places_in(results / "c"))


@pytest.mark.parametrize("text", ["", '{"key": {', "[]", '{"key": {"step": "x"}}', "\x00" * 100])
def test_a_damaged_entry_is_no_entry(cache, results, caplog, text):
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    cache.entry_path(KEY).write_text(text)

    assert cache.find(KEY) is None
    assert list(cache.entries()) == []
    assert not cache.fetch_or_build(KEY, places_in(results / "b"), Builder()).hit
    assert "damaged entry of compile_model/unet" in caplog.text
    assert cache.find(KEY)


def test_an_entry_under_another_keys_name_is_no_entry(cache, results):
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    other = key_of(version="5.0")
    shutil.copy(cache.entry_path(KEY), cache.entry_path(other))

    assert cache.find(other) is None


# Inputs


def test_an_input_that_changes_meanwhile_stops_the_job(cache, results, tmp_path):
    graph = tmp_path / "unet.onnx"
    graph.write_bytes(b"graph")

    def build(made):
        Builder()(made)
        graph.write_bytes(b"other")

    with pytest.raises(InputChanged, match=r"unet\.onnx changed while the job ran"):
        cache.fetch_or_build(KEY, places_in(results), build, inputs={"graph": graph})

    assert cache.find(KEY) is None
    assert not places_in(results)["axmodel"].exists()


def test_an_input_that_is_only_touched_meanwhile_does_not(cache, results, tmp_path):
    graph = tmp_path / "unet.onnx"
    graph.write_bytes(b"graph")

    def build(made):
        Builder()(made)
        os.utime(graph)

    assert cache.fetch_or_build(KEY, places_in(results), build, inputs={"graph": graph}).entry


# Full, closed, without locks


def test_a_full_cache_does_not_cost_the_result(small_disk, results, caplog):
    cache = Cache(small_disk / "cache")

    outcome = cache.fetch_or_build(KEY, places_in(results), Builder())

    assert outcome.entry is None
    assert_right(places_in(results))
    assert "no space left" in caplog.text
    assert "NOT STORED" in caplog.text
    assert "AXBAKE_CACHE" in caplog.text
    assert hidden_files(small_disk) == hidden_files(results) == []
    assert cache.find(KEY) is None


def test_a_cache_too_full_for_a_lock_does_not_cost_the_result(small_disk, results, caplog):
    cache = Cache(small_disk / "cache")
    cache.directory.mkdir()
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as file:
        for _ in range(1000):
            file.write(b"x" * 4096)

    outcome = cache.fetch_or_build(KEY, places_in(results), Builder())

    assert outcome.entry is None
    assert_right(places_in(results))
    assert "NOT STORED" in caplog.text


def test_a_result_that_does_not_fit_is_told_with_path_and_room(cache, results, small_disk):
    cache.fetch_or_build(KEY, places_in(results), Builder())

    with pytest.raises(NotWritten, match=r"small/a/.*unet\.axmodel: no space left, [\d.]+ \w+ free") as hit:
        cache.fetch_or_build(KEY, places_in(small_disk / "a"), Builder())
    with pytest.raises(NotWritten, match=r"no space left.*Free some space and run again"):
        cache.fetch_or_build(key_of(version="5.0"), places_in(small_disk / "b"), Builder())

    assert "Free some space" in str(hit.value)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert cache.find(KEY)


def test_a_read_only_cache_gives_what_it_has_and_takes_nothing(other_disk, results, caplog):
    cache = Cache(other_disk / "cache")
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    subprocess.run(["mount", "-o", "remount,ro", other_disk], check=True)

    hit = cache.fetch_or_build(KEY, places_in(results / "b"), Builder())
    built = cache.fetch_or_build(key_of(version="5.0"), places_in(results / "c"), Builder())

    assert hit.hit
    assert built.entry is None
    assert_right(places_in(results / "b"))
    assert_right(places_in(results / "c"))
    assert "Read-only file system" in caplog.text
    assert "will NOT BE STORED" in caplog.text


def test_read_only_results_are_told(cache, results, other_disk):
    cache.fetch_or_build(KEY, places_in(results / "a"), Builder())
    subprocess.run(["mount", "-o", "remount,ro", other_disk], check=True)

    with pytest.raises(NotWritten, match=r"other.*Read-only file system"):
        cache.fetch_or_build(KEY, places_in(other_disk), Builder())


def test_a_cache_that_cannot_be_made_is_told_before_the_build(tmp_path, results):
    (tmp_path / "file").write_text("")
    build = Builder()

    with pytest.raises(CacheUnusable, match=r"file/cache: Not a directory.*AXBAKE_CACHE"):
        Cache(tmp_path / "file" / "cache").fetch_or_build(KEY, places_in(results), build)

    assert build.builds == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(cache, results, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CacheUnusable, match=r"does not support locks.*NFSv4.*AXBAKE_CACHE"):
        cache.fetch_or_build(KEY, places_in(results), Builder())


# Many at once, and killed


def started(work):
    """Number of a new process that does *work*."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def ended(child):
    """Exit status of a process; below zero the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def slow_build(notes):
    """A build that takes 0.1 s, has half-written files most of the time, and notes that it is done."""

    def build(made):
        for name, path in made.items():
            with path.open("wb") as file:
                half = len(CONTENT[name]) // 2
                file.write(CONTENT[name][:half])
                file.flush()
                time.sleep(0.05)
                file.write(CONTENT[name][half:])
        (notes / f"done-{os.getpid()}").touch()

    return build


def test_of_many_who_ask_at_once_one_builds(cache, tmp_path, results):
    def ask(number):
        logging.basicConfig(filename=tmp_path / f"{number}.log", level=logging.INFO, force=True)
        cache.fetch_or_build(KEY, places_in(results / str(number)), slow_build(tmp_path))

    children = []
    for number in range(4):
        children.append(started(lambda number=number: ask(number)))

    assert [ended(child) for child in children] == [0] * 4
    assert len(list(tmp_path.glob("done-*"))) == 1
    for number in range(4):
        assert_right(places_in(results / str(number)))
    logs = "".join(path.read_text() for path in tmp_path.glob("?.log"))
    assert logs.count("from the build cache") == 3


def test_who_waits_says_for_whom(cache, tmp_path, results):
    begun, log = tmp_path / "begun", tmp_path / "waiting.log"
    log.touch()
    ends = time.monotonic() + 120

    def wait_for(what):
        while not what() and time.monotonic() < ends:
            time.sleep(0.01)

    def build(made):
        begun.touch()
        wait_for(lambda: "waiting for" in log.read_text())
        Builder()(made)

    def ask():
        wait_for(begun.exists)
        logging.basicConfig(filename=log, level=logging.INFO, force=True)
        cache.fetch_or_build(KEY, places_in(results / "asks"), Builder())

    builds = started(lambda: cache.fetch_or_build(KEY, places_in(results / "builds"), build))

    assert (ended(started(ask)), ended(builds)) == (0, 0)
    assert re.search(rf"compile_model/unet: waiting for \S+@\S+, process {builds}, since 20", log.read_text())
    assert "from the build cache" in log.read_text()


def test_who_waits_for_a_lock_that_is_removed_waits_for_the_new_one(tmp_path):
    path = tmp_path / "lock"

    def wait():
        first.close()  # a fork has it too
        with lock(path, about="waiting"):
            (tmp_path / "got").touch()

    first = path.open("w")
    fcntl.flock(first, fcntl.LOCK_EX)
    child = started(wait)
    time.sleep(0.1)
    path.unlink()
    with path.open("w") as second:
        fcntl.flock(second, fcntl.LOCK_EX)
        first.close()
        time.sleep(0.4)
        assert not (tmp_path / "got").exists()
    assert ended(child) == 0
    assert (tmp_path / "got").exists()
    assert not path.exists()


def test_workers_that_outlive_a_killed_job_do_not_hold_its_lock(cache, results, tmp_path):
    def build(made):
        worker = started(lambda: time.sleep(3600))
        (tmp_path / "worker").write_text(str(worker))
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(started(lambda: cache.fetch_or_build(KEY, places_in(results), build))) == -signal.SIGKILL
    cache.fetch_or_build(KEY, places_in(results), Builder())

    os.kill(
        int((tmp_path / "worker").read_text()), signal.SIGKILL
    )  # which ends the test if the worker had ended before
    assert hidden_files(results) == []


def assert_recovers(cache, directory):
    """After a kill: the next run ends right, with no build if one was stored, and leaves nothing behind."""
    stored = cache.find(KEY)
    build = Builder()
    places = places_in(directory)

    assert cache.fetch_or_build(KEY, places, build).hit == bool(stored)
    assert build.builds == (0 if stored else 1)
    assert_right(places)
    assert hidden_files(directory) == []
    remove_garbage(cache)
    assert hidden_files(cache.directory) == []
    assert len(list(cache.directory.glob("blobs/*/*"))) == len(CONTENT)
    assert list(cache.directory.glob("locks/*")) == list(cache.directory.glob("running/*")) == []
    assert cache.fetch_or_build(KEY, places, build).hit


@pytest.mark.parametrize("seed", range(12))
def test_after_a_kill_at_any_time_the_next_run_ends_right(cache, results, tmp_path, seed):
    after = random.Random(seed).uniform(0, 0.2)

    child = started(lambda: cache.fetch_or_build(KEY, places_in(results), slow_build(tmp_path)))
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    ended(child)

    assert_recovers(cache, results)


def die_at(number, work):
    """Do *work*, killed when it is about to touch files for the *number*-th time. Looking changes nothing."""
    count = itertools.count()
    touching = ("open", "os.", "fcntl.", "shutil.")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event, arguments):
        looks = event in ("os.listdir", "os.scandir") or (event == "open" and not arguments[2] & writing)
        if event.startswith(touching) and not looks and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()


@pytest.mark.parametrize("where", ["one disk", "two disks"])
@pytest.mark.parametrize("what", ["build", "hit"])
def test_after_a_kill_at_every_touch_of_a_file_the_next_run_ends_right(tmp_path, disk, other_disk, what, where):
    for number in itertools.count():
        cache = Cache(disk / f"cache{number}")
        directory = (disk if where == "one disk" else other_disk) / f"results{number}"
        if what == "hit":
            cache.fetch_or_build(KEY, places_in(directory), Builder())
            shutil.rmtree(directory)

        def work(cache=cache, directory=directory):
            cache.fetch_or_build(KEY, places_in(directory), Builder())

        status = ended(started(lambda number=number, work=work: die_at(number, work)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert_recovers(cache, directory)
        shutil.rmtree(directory)
        shutil.rmtree(cache.directory)
    assert number > 25


def test_the_next_build_removes_what_a_killed_one_left_beside_its_place(cache, results, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def build(made):
        made["axmodel"].write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(started(lambda: cache.fetch_or_build(KEY, places_in(results), build))) == -signal.SIGKILL
    assert len(hidden_files(results)) == 1

    cache.fetch_or_build(key_of(version="5.0"), places_in(tmp_path / "elsewhere"), Builder())

    assert hidden_files(results) == []
    assert "which is dead" in caplog.text
