"""What nobody needs is shown, and removed only when told to; what is in use stays."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from axbake.__main__ import main
from axbake.cache import Cache, Key
from axbake.cache.garbage import remove_garbage, usage

DAY = 86400  # s


def key_of(name):
    return Key("compile_model", "unet", {"settings": {"name": name}}, inputs={}, outputs={"axmodel": "unet.axmodel"})


def build(cache, key, place, content, *, keep=False):
    """Store *content* as the result of *key*; without *keep*, its place is then lost."""
    cache.fetch_or_build(key, {"axmodel": place / "unet.axmodel"}, lambda made: made["axmodel"].write_bytes(content))
    if not keep:
        (place / "unet.axmodel").unlink()


def age(cache, key, days):
    then = time.time() - days * DAY
    os.utime(cache.entry_path(key), (then, then))


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def old(cache, tmp_path):
    """A key whose build was made long ago and is in no use."""
    key = key_of("old")
    build(cache, key, tmp_path / "old", b"o" * 8192)
    age(cache, key, 30)
    return key


def blobs(cache):
    return list(cache.directory.glob("blobs/*/*"))


def test_an_old_build_that_nothing_uses_is_garbage(cache, old):
    found = usage(cache)

    assert [one.what for one in found.garbage] == ["entry of compile_model/unet", "compile_model/unet"]
    assert (found.entries, found.blobs, found.size, found.linked) == (1, 1, 8192, 0)
    assert 8192 <= found.freed <= 8192 + 4096
    assert cache.find(old)  # looking removes nothing

    remove_garbage(cache)
    assert cache.find(old) is None
    assert blobs(cache) == []


def test_what_a_current_result_needs_stays(cache, old):
    assert usage(cache, {old.digest}).garbage == []
    remove_garbage(cache, {old.digest})
    assert cache.find(old)


def test_what_is_linked_to_a_result_stays(cache, tmp_path):
    key = key_of("linked")
    build(cache, key, tmp_path, b"x" * 8192, keep=True)
    if blobs(cache)[0].stat().st_nlink == 1:
        pytest.skip("this file system clones files")
    age(cache, key, 30)

    assert usage(cache).garbage == []
    assert usage(cache).linked == 8192
    cache.entry_path(key).unlink()
    assert usage(cache).garbage == []


def test_what_was_copied_to_a_result_stays_until_that_is_gone(cache):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        place = Path(elsewhere) / "unet.axmodel"
        assert place.parent.stat().st_dev != cache.directory.parent.stat().st_dev
        key = key_of("copied")
        build(cache, key, place.parent, b"x" * 8192, keep=True)
        os.utime(place)  # as Snakemake does
        age(cache, key, 30)

        assert usage(cache).garbage == []
        remove_garbage(cache)
        assert cache.find(key)

        place.write_bytes(b"another result")
        assert [one.what for one in usage(cache).garbage] == ["entry of compile_model/unet", "compile_model/unet"]
        remove_garbage(cache)
        assert blobs(cache) == list(cache.directory.glob("placed/*")) == []


def test_what_a_running_job_holds_stays(cache, old):
    lock = cache.directory / "locks" / old.digest
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert usage(cache).garbage == []
        remove_garbage(cache)
        assert cache.find(old)
        assert lock.exists()
    remove_garbage(cache)
    assert cache.find(old) is None
    assert not lock.exists()


def test_what_was_made_lately_stays_unless_it_is_named(cache, tmp_path):
    key = key_of("young")
    build(cache, key, tmp_path, b"x")

    age(cache, key, 6)
    assert usage(cache).garbage == []
    assert len(usage(cache, days=5).garbage) == 2
    assert len(usage(cache, named={key.digest}).garbage) == 2


def test_what_was_used_lately_stays(cache, old, tmp_path):
    build(cache, old, tmp_path, b"not built")

    assert usage(cache).garbage == []


def test_a_blob_that_another_build_needs_stays(cache, old, tmp_path):
    build(cache, key_of("young"), tmp_path, b"o" * 8192)

    remove_garbage(cache)

    assert cache.find(old) is None
    assert cache.find(key_of("young"))


def test_blobs_of_no_build_damaged_and_half_written_files_are_garbage(cache, old):
    cache.entry_path(old).write_text("{")
    blob = blobs(cache)[0]
    blob.with_name(f".{blob.name}.1234").write_bytes(b"half")
    (cache.directory / "damaged" / "x").write_bytes(b"x")

    found = usage(cache)
    assert sorted(one.what for one in found.garbage) == [
        "blob without a build",
        "damaged",
        "damaged entry",
        "half-written",
    ]
    remove_garbage(cache)
    assert usage(cache).garbage == []
    assert [path for path in cache.directory.rglob("*") if path.is_file()] == []


def test_what_a_killed_job_left_beside_its_place_is_garbage(cache, tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from axbake.cache import Cache, Key\n"
        "def build(made): made['axmodel'].write_bytes(b'x' * 8192); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"key = Key('compile_model', 'unet', {{}}, {{}}, {{'axmodel': 'unet.axmodel'}})\n"
        f"Cache(Path({str(cache.directory)!r})).fetch_or_build(key, {{'axmodel': Path('unet.axmodel')}}, build)\n"
    )
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, check=False)
    (left,) = tmp_path.glob(".unet.axmodel.axbake-*")

    assert [(one.path, one.what, one.size) for one in usage(cache).garbage] == [(left, "from a killed job", 8192)]
    remove_garbage(cache)
    assert not left.exists()


def test_what_was_fetched_halfway_long_ago_is_garbage(cache, old):
    kept = cache.directory / "remote" / "0123456789abcdef"
    kept.mkdir(parents=True)
    before, lately = kept / ("a" * 64), kept / ("b" * 64)
    for path in (before, lately, kept / "index.json"):
        path.write_bytes(b"x" * 8192)
        os.utime(path, (time.time() - 30 * DAY,) * 2)
    os.utime(lately)

    assert [one.what for one in usage(cache, {old.digest}).garbage] == ["half fetched"]
    remove_garbage(cache, {old.digest})

    assert sorted(kept.iterdir()) == [lately, kept / "index.json"]


def test_removal_waits_for_who_stores_or_places(cache, old, tmp_path):
    with (cache.directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        child = subprocess.Popen(
            [sys.executable, "-m", "axbake", "cache", "--directory", cache.directory, "remove", "--yes"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)
        assert cache.find(old)
    assert child.wait(300) == 0
    assert cache.find(old) is None


def test_the_command_shows_and_removes_only_on_a_second_word(cache, old, capsys, monkeypatch):
    monkeypatch.setenv("AXBAKE_CACHE", str(cache.directory))

    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert str(cache.directory) in shown
    assert "1 builds, 1 blobs" in shown
    assert "compile_model/unet" in shown

    assert main(["cache", "remove"]) == 1
    assert "Nothing was removed" in capsys.readouterr().out
    assert cache.find(old)

    assert main(["cache", "remove", "--yes"]) == 0
    assert "removed" in capsys.readouterr().out
    assert cache.find(old) is None
    assert main(["cache", "remove"]) == 0


def test_the_command_keeps_what_it_is_told_to_keep(cache, old, tmp_path):
    (tmp_path / "keys").write_text(f"{old.digest}\n")

    assert (
        main(["cache", "--directory", str(cache.directory), "--keep", str(tmp_path / "keys"), "remove", "--yes"]) == 0
    )
    assert cache.find(old)


def test_the_command_says_that_there_is_no_cache_yet(tmp_path, capsys):
    assert main(["cache", "--directory", str(tmp_path / "none")]) == 0
    assert "no build cache yet" in capsys.readouterr().out
