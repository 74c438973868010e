"""A cache in which others write what they like: right results, a sentence for what is damaged, nothing touched outside."""

import ast
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import axbake.cache
from axbake.cache import Cache, Entry, Key, blobs, explain, locks
from axbake.cache.blobs import REMEMBERED, Blob
from axbake.cache.errors import NotWritten
from axbake.cache.garbage import remove_garbage, usage
from axbake.cache.locks import lock
from axbake.cache.records import LONGEST
from tests.hostile import cache as hostile
from tests.hostile.cache import NOBODY, changed, deep, in_a_process, state_of

CONTENT = {"axmodel": random.Random(1).randbytes(2 * REMEMBERED), "record": b'{"emulated": true}'}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


def key_of(**settings):
    identity = {"settings": {"toolchain": "emulator", **settings}, "code": {}, "tools": {}}
    return Key(
        "compile_model", "unet", identity, {"graph": "1" * 64}, {"axmodel": "unet.axmodel", "record": "unet.json"}
    )


KEY = key_of()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def home(tmp_path):
    """Somebody's files."""
    home = tmp_path / "home"
    for name in ("secret", "inner/.hidden", "inner/file", "empty/x"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"precious {name}")
    (home / "secret").chmod(0o600)
    return home


@contextlib.contextmanager
def untouched(home):
    before = state_of(home)
    yield
    assert changed(before, state_of(home)) == []


def fetch(cache, place, key=KEY, content=CONTENT):
    """Whether the result was stored; it is at *place* now, and right."""
    places = {name: place / file for name, file in key.outputs.items()}

    def build(made):
        for name, path in made.items():
            path.write_bytes(content[name])

    hit = cache.fetch_or_build(key, places, build).hit
    assert {name: path.read_bytes() for name, path in places.items()} == content
    return hit


def open_to_all(results):
    """Let any user reach *results*; pytest keeps its directories to the user who runs it."""
    for path in results.parents:
        if path.is_relative_to(tempfile.gettempdir()) and path != Path(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o555)


def as_nobody(do):
    """Let *do* run as another user, and give what it says."""
    answer, status = in_a_process(lambda: {"said": do()}, NOBODY)
    assert status == 0
    return answer["said"]


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def blob_of(cache, name="axmodel", key=KEY):
    return cache.blobs.path(cache.find(key).outputs[name])


def rot(path):
    """Change a byte of a file, and keep its time."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(state.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def bytes_read():
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


# The generator


def test_tampered_caches_give_right_results_and_touch_nothing_outside():
    trials = hostile.run(len(hostile.TAMPERS))

    assert [(one.number, one.tampers, fault) for one in trials for fault in one.faults] == []
    outcomes = sum((one.outcomes for one in trials), start=hostile.Counter())
    assert outcomes["stored"] > len(trials) and outcomes["built"] > len(trials)
    assert sum(one.warnings for one in trials) > 5


def test_the_generator_sees_what_it_looks_for(tmp_path, home, monkeypatch):
    before = state_of(home)
    (home / "secret").chmod(0o644)
    (home / "secret").chmod(0o600)
    (home / "inner" / "file").unlink()
    assert changed(before, state_of(home)) == [str(home / "inner"), str(home / "inner" / "file"), str(home / "secret")]

    monkeypatch.setattr(hostile, "PATIENCE", 1)
    assert in_a_process(lambda: time.sleep(60), None)[1] == -signal.SIGALRM
    assert in_a_process(lambda: {"taken": len(bytearray(3 << 30))}, None)[1] == 1


# Text is no path before its form is checked


PATHS = [
    "../../../home/secret",
    "{home}/secret",
    "a" * 63,
    "A" * 64,
    "a" * 64 + "\n",
    "",
    "..",
    "\0" * 64,
    3,
    None,
    ["a" * 64],
]


@pytest.mark.parametrize("text", PATHS, ids=repr)
def test_a_digest_that_is_none_is_a_damaged_entry(cache, results, home, caplog, text):
    fetch(cache, results / "a")
    entry = json.loads(cache.entry_path(KEY).read_text())
    text = text.format(home=home) if isinstance(text, str) else text
    entry["outputs"]["axmodel"] = {"sha256": text, "size": (home / "secret").stat().st_size}
    cache.entry_path(KEY).write_text(json.dumps(entry))

    with untouched(home):
        assert cache.find(KEY) is None
        assert fetch(cache, results / "b") is False
        usage(cache)
        remove_garbage(cache)
    assert "damaged entry of compile_model/unet (output" in caplog.text
    assert fetch(cache, results / "c")


@pytest.mark.parametrize("sha256", ["../x", "a" * 63, "A" * 64, f"{'a' * 64}\n", 3])
def test_no_blob_has_a_digest_that_is_none(sha256):
    with pytest.raises(ValueError, match="wanted 64 hex digits"):
        Blob(sha256, 1)


def announce(cache, directory, mark="0123456789abcdef", **more):
    said = {"owner": "x@y, process 1", "host": locks.HOST, "about": "x", "since": "x", "directory": str(directory)}
    path = cache.directory / "running" / f"{mark}.json"
    path.write_text(json.dumps(said | more))
    return path


def marked(directory, mark="0123456789abcdef", number=None):
    """A directory that is called as a private one, with a file that says that it is one of that number."""
    directory = directory / f".unet.axmodel.axbake-{mark}"
    directory.mkdir(parents=True)
    (directory / f"axbake-{mark}-{number or directory.stat().st_ino}").touch()
    (directory / "work").write_text("work")
    return directory


@pytest.mark.parametrize("what", ["unmarked", "copied", "link", "other mark", "relative", "above", "file", "pipe"])
def test_no_directory_is_removed_that_does_not_say_itself_that_it_is_a_private_one(cache, results, home, caplog, what):
    caplog.set_level(logging.INFO)
    fetch(cache, results / "a")
    named = home / ".unet.axmodel.axbake-0123456789abcdef"
    if what == "unmarked":
        named.mkdir()
        (named / "precious").touch()
    elif what == "copied":
        named = marked(home, number=7)
    elif what == "link":
        named.symlink_to(marked(home / "inner"))
    elif what == "other mark":
        named = marked(home, mark="fedcba9876543210")
    elif what == "file":
        named.write_text("precious")
    elif what == "pipe":
        os.mkfifo(named)
    else:
        marked(home)
        named = {"relative": f"../home/{named.name}", "above": f"{home}/../home/{named.name}"}[what]
    announcement = announce(cache, named)

    with untouched(home):
        fetch(cache, results / "b", key_of(height=1))
        assert {one.what for one in usage(cache).garbage} == {"damaged"}  # the announcement, which was set aside
        remove_garbage(cache)
    assert not announcement.exists()
    assert announcement.name in caplog.text


def test_a_directory_whose_job_lives_stays_whatever_is_announced(cache, results):
    def build(made):
        (mark,) = (path for path in made["axmodel"].parent.iterdir())
        name = mark.name.split("-")[1]
        announcement = cache.directory / "running" / f"{name}.json"
        said = announcement.read_text()
        announcement.unlink()  # and with it goes the lock, as if its job were dead
        announcement.write_text(said)
        fetch(cache, results / "other", key_of(height=1))
        remove_garbage(cache)
        assert mark.exists()
        for output, path in made.items():
            path.write_bytes(CONTENT[output])

    places = {name: results / file for name, file in KEY.outputs.items()}
    assert cache.fetch_or_build(KEY, places, build).entry
    assert list(results.rglob(".*")) == []


def test_what_a_killed_job_left_is_found_and_removed(cache, results, caplog):
    def killed():
        def build(made):
            (made["axmodel"].parent / "deep" / "er").mkdir(parents=True)
            made["axmodel"].write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        cache.fetch_or_build(KEY, {name: results / file for name, file in KEY.outputs.items()}, build)

    assert in_a_process(killed, None)[1] == -signal.SIGKILL
    (left,) = results.glob(".*")
    assert [(one.path, one.what) for one in usage(cache).garbage] == [(left, "from a killed job")]
    fetch(cache, results.parent / "elsewhere", key_of(height=1))
    assert not left.exists()
    assert list(cache.directory.glob("running/*")) == []


@as_root
def test_what_another_user_announced_is_not_looked_at(cache, results, home):
    fetch(cache, results / "a")
    directory = marked(home)
    os.chown(announce(cache, directory), NOBODY, NOBODY)

    remove_garbage(cache)

    assert (directory / "work").exists()


# No link is followed


@pytest.mark.parametrize(
    "place",
    ["blobs", "blobs/*", "entries", "entries/*", "entries/*/*", "verified", "placed", "locks", "running", "damaged"],
)
def test_a_link_in_the_place_of_a_directory_is_not_followed(cache, results, home, place):
    fetch(cache, results / "a")
    for directory in list(cache.directory.glob(place)):
        shutil.rmtree(directory)
        directory.symlink_to(home / "inner")

    with untouched(home):
        usage(cache)
        fetch(cache, results / "b")
        fetch(cache, results / "c", key_of(height=1), CONTENT | {"record": b"other"})
        assert fetch(cache, results / "d")
        remove_garbage(cache, days=0)
    assert not [path for path in cache.directory.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", ["lock", "locks/{key}"])
@pytest.mark.parametrize("how", ["link", "dangling link", "hard link", "pipe", "directory"])
def test_nothing_is_locked_or_written_through_what_is_no_lock(cache, results, home, caplog, name, how):
    fetch(cache, results / "a")
    path = cache.directory / name.format(key=key_of(height=1).digest)
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "hard link":
        path.hardlink_to(home / "secret")
    else:
        path.symlink_to(home / ("new" if how == "dangling link" else "secret"))

    with untouched(home):
        assert fetch(cache, results / "b", key_of(height=1)) is False
        assert fetch(cache, results / "c", key_of(height=1))
    assert f"{path}: " in caplog.text and "not a lock, moved aside" in caplog.text


def test_a_file_with_other_names_is_not_made_readable_for_all(cache, results, home):
    fetch(cache, results / "a")
    blob = blob_of(cache)
    blob.unlink()
    (home / "mine").write_bytes(CONTENT["axmodel"])
    (home / "mine").chmod(0o600)
    blob.hardlink_to(home / "mine")
    before = (home / "mine").stat()

    assert fetch(cache, results / "b")

    after = (home / "mine").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 2)


def test_garbage_that_is_a_link_is_removed_and_what_it_leads_to_is_not(cache, results, home):
    fetch(cache, results)
    (cache.directory / "blobs" / "link").symlink_to(home)
    (cache.directory / "damaged" / "link").symlink_to(home)
    (cache.directory / "verified" / ".link").symlink_to(home / "secret")
    (cache.directory / "entries" / "x").write_text("")

    with untouched(home):
        assert sorted(one.what for one in usage(cache).garbage) == ["damaged"] * 3 + ["half-written"]
        remove_garbage(cache)
        assert usage(cache).garbage == []
    assert fetch(cache, results)


def test_garbage_of_any_depth_is_removed(cache, results, request):
    # What is left of it no `shutil.rmtree` removes, nor pytest at its end.
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", cache.directory], check=True))
    fetch(cache, results)
    deep(cache.directory / "blobs" / ".deep", 1100)

    assert [one.what for one in usage(cache).garbage] == ["half-written"]
    remove_garbage(cache)

    assert usage(cache).garbage == []
    assert list(cache.directory.glob("blobs/.*")) == []


# Damaged records


def no_file(path):
    path.mkdir()
    (path / "x").touch()


FORMS = {
    "directory": no_file,
    "pipe": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "empty": Path.touch,
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("3"),
    "nothing": lambda path: path.write_text("null"),
    "object": lambda path: path.write_text("{}"),
    "not a number": lambda path: path.write_text('{"size": NaN}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "rather deep": lambda path: path.write_text('{"a":' * 400 + "1" + "}" * 400),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\xff"),
    "large": lambda path: path.write_text("{}" + " " * LONGEST),
    "huge": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("record", ["entries", "verified", "placed", "running", "locks"])
def test_a_damaged_record_is_a_miss_and_garbage(cache, results, caplog, record, form):
    fetch(cache, results / "a")
    number = blob_of(cache).stat().st_ino
    names = {"entries": cache.entry_path(KEY), "verified": cache.directory / "verified" / f"{number}.json"}
    names |= {"placed": cache.directory / "placed" / f"{'a' * 64}.json"}
    names |= {"running": cache.directory / "running" / "0123456789abcdef.json"}
    names |= {"locks": cache.directory / "locks" / KEY.digest}
    path = names[record]
    path.unlink(missing_ok=True)
    FORMS[form](path)

    cache = Cache(cache.directory)
    cache.find(KEY)
    list(cache.entries())
    cache.why(key_of(height=1))
    fetch(cache, results / "b")
    fetch(cache, results / "c", key_of(height=1))
    usage(cache)
    remove_garbage(cache)

    assert fetch(cache, results / "d")
    assert usage(cache).garbage == []
    sentences = [line for line in caplog.messages if path.name in line]
    assert len(sentences) <= 1 and all(hostile.is_sentence(line) for line in sentences)
    if record in ("entries", "verified"):
        assert "set aside" in sentences[0]
        assert path.is_file() and path.stat().st_size < LONGEST


def spoilt(how):
    """A stored entry with one thing changed."""

    def spoil(entry):
        how(entry)
        return entry

    return spoil


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda entry: entry.pop("seconds"), "an entry with or without"),
        (lambda entry: entry.update(more=1), "an entry with or without"),
        (lambda entry: entry.update(seconds="1"), "seconds is"),
        (lambda entry: entry.update(seconds=float("inf")), "not JSON: Infinity"),
        (lambda entry: entry.update(seconds=True), "seconds is true"),
        (lambda entry: entry.update(peak_memory=-1), "peak_memory is -1"),
        (lambda entry: entry.update(created="2025-01-01T00:00:00\x1b[2J"), "created is"),
        (lambda entry: entry.update(key=[]), "a key is list"),
        (lambda entry: entry["key"].update(step=["x"]), "step is"),
        (lambda entry: entry["key"].update(identity={"settings": 3}), "settings is 3"),
        (lambda entry: entry["key"].update(inputs={"graph": "../x"}), 'input "graph" is'),
        (lambda entry: entry["key"].update(component="vae"), "the entry of"),
        (lambda entry: entry["outputs"].pop("record"), "outputs other than"),
        (lambda entry: entry["outputs"]["record"].update(size=-1), "size is -1"),
        (lambda entry: entry["outputs"]["record"].update(size=True), "size is true"),
        (lambda entry: entry["outputs"].update(record=None), "record is null"),
    ],
)
def test_an_entry_of_other_types_is_damaged_and_says_how(cache, results, caplog, how, words):
    fetch(cache, results / "a")
    entry = json.loads(cache.entry_path(KEY).read_text())
    how(entry)
    cache.entry_path(KEY).write_text(json.dumps(entry))

    assert list(cache.entries()) == []
    assert words in caplog.text and "set aside" in caplog.text
    assert fetch(cache, results / "b") is False


def test_an_entry_of_a_later_version_is_passed_over_and_its_blobs_stay(cache, results, caplog):
    fetch(cache, results)
    shutil.rmtree(results)
    path = cache.entry_path(KEY)
    edit(path, format=2, more="x")
    later = path.rename(path.with_name(f"{'d' * 64}.json"))
    blobs = list(cache.directory.glob("blobs/*/*"))

    assert list(cache.entries()) == []
    remove_garbage(cache, days=0)

    assert later.exists()
    assert list(cache.directory.glob("blobs/*/*")) == blobs
    assert caplog.messages == []


def test_an_entry_too_long_to_be_read_is_not_stored(cache, results, caplog):
    key = key_of(prompts=["x" * LONGEST])

    assert fetch(cache, results / "a", key) is False
    assert "NOT STORED" in caplog.text and "too large" in caplog.text
    assert list(cache.directory.glob("entries/*/*/*")) == []


@as_root
@pytest.mark.parametrize("sticky", [0, 0o1000])
@pytest.mark.parametrize("what", ["blob", "entry", "note", "entries of a step", "blobs"])
def test_what_may_not_be_read_is_built_anew(cache, results, what, sticky):
    """Not «Make it writable»: it is another user's."""
    cache.directory.mkdir()
    cache.directory.chmod(0o777 | sticky)
    fetch(cache, results / "root")
    closed = {
        "blob": blob_of(cache),
        "entry": cache.entry_path(KEY),
        "note": cache.directory / "verified" / f"{blob_of(cache).stat().st_ino}.json",
        "entries of a step": cache.entry_path(KEY).parent,
        "blobs": blob_of(cache).parent,
    }[what]
    closed.chmod(0)
    theirs = results / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    open_to_all(results)

    def somebody_else():
        Cache(cache.directory).find(KEY)
        return [fetch(Cache(cache.directory), theirs / name) for name in "ab"]

    hits = as_nobody(somebody_else)
    assert hits[0] is (what == "note")
    assert hits[1] or sticky or what in ("entries of a step", "blobs")


# What was read, and when


def test_a_blob_that_changed_while_its_time_did_not_is_not_placed(cache, results, caplog):
    fetch(cache, results / "a")
    rot(blob_of(cache))

    assert fetch(Cache(cache.directory), results / "b") is False
    assert "damaged blob of compile_model/unet (its SHA-256 is" in caplog.text
    assert fetch(cache, results / "c")


def test_the_same_after_its_results_were_removed(cache, results):
    fetch(cache, results / "a")
    shutil.rmtree(results)
    rot(blob_of(cache))

    assert fetch(Cache(cache.directory), results / "a") is False


def test_a_file_just_built_is_not_replaced_by_a_blob_that_was_not_read(cache, results, monkeypatch):
    fetch(cache, results / "a")
    # As if the disk had changed it: nothing can be seen but the content.
    monkeypatch.setattr(blobs.Look, "still_holds", lambda look, state: True)
    rot(blob_of(cache))

    assert fetch(cache, results / "b", key_of(height=1)) is False  # which looks at its results
    assert fetch(cache, results / "c", key_of(height=1))


def test_rot_on_the_disk_is_noticed_within_a_week(cache, results, monkeypatch):
    fetch(cache, results / "a")
    still_holds = blobs.Look.still_holds

    def as_the_disk_has_it(self, state):
        """With the times and links that were noted, which rot does not change."""
        return still_holds(dataclasses.replace(self, ctime_ns=state.st_ctime_ns, links=state.st_nlink), state)

    monkeypatch.setattr(blobs.Look, "still_holds", as_the_disk_has_it)
    rot(blob_of(cache))
    now = time.time()
    with pytest.raises(AssertionError):
        fetch(Cache(cache.directory), results / "b")
    for days in (6, 8):  # a hit does not make the look newer
        monkeypatch.setattr(time, "time", lambda days=days: now + days * 86400)
        if days == 6:
            with pytest.raises(AssertionError):
                fetch(Cache(cache.directory), results / "c")
        else:
            assert fetch(Cache(cache.directory), results / "d") is False


def test_a_note_from_the_future_is_not_believed(cache, results):
    fetch(cache, results / "a")
    number = blob_of(cache).stat().st_ino
    os.utime(cache.directory / "verified" / f"{number}.json", (time.time() + 10**9,) * 2)

    before = bytes_read()
    assert fetch(Cache(cache.directory), results / "b")
    assert bytes_read() - before > 2 * len(CONTENT["axmodel"])  # this test reads it once


def test_a_large_blob_is_not_read_again_because_a_result_was_removed(cache, results, monkeypatch):
    monkeypatch.setattr(blobs, "CHEAP", REMEMBERED)
    fetch(cache, results / "a")
    shutil.rmtree(results / "a")

    before = bytes_read()
    Cache(cache.directory).fetch_or_build(KEY, {name: results / "b" / file for name, file in KEY.outputs.items()}, None)
    assert bytes_read() - before < REMEMBERED
    rot(blob_of(cache))
    assert fetch(Cache(cache.directory), results / "c") is False


def test_a_note_of_the_form_before_this_one_is_read_again_without_a_word(cache, results, caplog):
    fetch(cache, results / "a")
    for note in cache.directory.glob("verified/*.json"):
        said = json.loads(note.read_text())
        note.write_text(json.dumps({name: said[name] for name in ("sha256", "size", "mtime_ns")}))

    assert fetch(Cache(cache.directory), results / "b")
    assert caplog.messages == []
    assert all("ctime_ns" in note.read_text() for note in cache.directory.glob("verified/*.json"))


def test_reading_an_input_again_notices_what_the_project_remembers_otherwise(cache, results, monkeypatch, tmp_path):
    monkeypatch.setattr("axbake.digest.MEMORY", tmp_path / "digests")
    fetch(cache, results)
    place = results / "unet.axmodel"
    right = cache.sha256(place)
    rot(place)

    assert Cache(cache.directory).sha256(place) != right


@as_root
@pytest.mark.parametrize("noted", [False, True])
def test_another_users_blob_is_read_as_it_is_copied_whatever_is_noted(cache, results, noted):
    """They can change it whenever they like."""
    cache.directory.mkdir()
    cache.directory.chmod(0o777)
    fetch(cache, results / "root")
    theirs = results / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    open_to_all(results)
    assert as_nobody(lambda: fetch(Cache(cache.directory), theirs / "a"))

    rot(blob_of(cache))
    if noted:
        state = blob_of(cache).stat()
        times = {"mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns, "links": state.st_nlink}
        note = cache.directory / "verified" / f"{state.st_ino}.json"
        note.write_text(json.dumps({"sha256": blob_of(cache).name, "size": state.st_size, **times}))

    assert as_nobody(lambda: fetch(Cache(cache.directory), theirs / "b")) is False
    assert as_nobody(lambda: fetch(Cache(cache.directory), theirs / "c")) is True
    assert blob_of(cache).stat().st_uid == NOBODY


@as_root
def test_a_file_just_built_is_not_replaced_by_another_users(cache, results):
    """Not even by the right content: its owner could change it."""
    cache.directory.mkdir()
    cache.directory.chmod(0o777)
    fetch(cache, results / "root")
    theirs = results / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    open_to_all(results)

    assert as_nobody(lambda: fetch(Cache(cache.directory), theirs, key_of(height=1))) is False
    place = theirs / "unet.axmodel"
    assert (place.stat().st_uid, place.stat().st_nlink) == (NOBODY, 1)


def test_a_huge_file_of_nothing_is_not_read(cache, results, monkeypatch):
    fetch(cache, results / "a")
    entry = json.loads(cache.entry_path(KEY).read_text())
    entry["outputs"]["axmodel"]["size"] = 1 << 39
    cache.entry_path(KEY).write_text(json.dumps(entry))
    path = cache.directory / "blobs" / entry["outputs"]["axmodel"]["sha256"][:2] / entry["outputs"]["axmodel"]["sha256"]
    os.truncate(path, 1 << 39)
    shutil.rmtree(results)

    small = blobs.content_sha256

    def read(opened: int) -> str:
        assert os.fstat(opened).st_size < 1 << 39
        return small(opened)

    monkeypatch.setattr(blobs, "content_sha256", read)
    assert fetch(cache, results / "b") is False


# What others see


@as_root
def test_users_with_a_closed_umask_share_a_cache(cache, results):
    cache.directory.mkdir()
    cache.directory.chmod(0o2777)
    theirs = results / "theirs"
    theirs.mkdir(parents=True)
    os.chown(theirs, NOBODY, NOBODY)
    open_to_all(results)

    def with_umask(do):
        before = os.umask(0o077)
        try:
            return do()
        finally:
            os.umask(before)

    assert with_umask(lambda: fetch(cache, results / "root")) is False
    assert as_nobody(lambda: with_umask(lambda: fetch(Cache(cache.directory), theirs / "a"))) is True
    assert as_nobody(lambda: with_umask(lambda: fetch(Cache(cache.directory), theirs / "b", key_of(height=1)))) is False
    assert with_umask(lambda: fetch(cache, results / "root", key_of(height=1))) is True
    for path in cache.directory.rglob("*"):
        wanted = 0o777 if path.is_dir() else 0o444
        assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path


def test_a_directory_that_a_kill_left_closed_is_opened_again(cache, results):
    fetch(cache, results / "a")
    cache.directory.chmod(0o2775)
    (cache.directory / "blobs").chmod(0o700)

    fetch(cache, results / "b", key_of(height=1))

    assert stat.S_IMODE((cache.directory / "blobs").stat().st_mode) == 0o2775


def test_a_lock_that_is_there_is_opened_as_linux_wants_it(tmp_path, monkeypatch):
    """With fs.protected_regular it refuses O_CREAT for another user's file where anybody may write."""
    path = tmp_path / "lock"
    path.touch()
    real = os.open

    def strict(name, flags, *arguments, **more):
        if flags & os.O_CREAT and not flags & os.O_EXCL:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", strict)
    with lock(path, about="x", shared=True):
        pass
    path.unlink()
    with lock(path, about="x"):
        assert path.exists()


def test_the_note_of_a_lock_is_not_shown_raw(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"owner": "\x1b]0;owned\x07", "since": ["x"]}))
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            os.read(told, 1)
            os._exit(0)
        file.close()
        monkeypatch.setattr(time, "sleep", lambda seconds: os.write(tell, b"."))  # who waits has said so
        with lock(path, about="x"):
            pass
        os.waitpid(child, 0)
    assert "waiting for another process" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_lock_in_a_project_is_no_link(tmp_path, home):
    (tmp_path / ".x.lock").symlink_to(home / "secret")
    words = r"\.x\.lock: a symbolic link, not a file; wanted a lock's file"
    with untouched(home), pytest.raises(NotWritten, match=words), lock(tmp_path / ".x.lock", about="x"):
        pass


def entry(key, contents):
    outputs = {name: Blob(content, 1) for name, content in zip(key.outputs, contents, strict=True)}
    return Entry(key, outputs, 1.0, 1.0, "2025-01-01T00:00:00+00:00")


def test_reasons_are_one_line_of_words_whatever_was_stored():
    old = key_of(toolchain="\x1b[2J\n", **{f"\x07{number}": number for number in range(500)}, more="x" * 10_000)

    reason = explain(KEY, [entry(old, ["1" * 64, "2" * 64])])

    assert hostile.is_sentence(reason)
    assert "more" in reason


@pytest.mark.parametrize("width", [1, 4])
def test_reasons_of_reasons_end(width):
    """A chain of 600 builds, each of whose inputs differ and come from the next."""

    def content(side, level, branch):
        return f"{side:02x}{level:04x}{branch:02x}".ljust(64, "0")

    def job(side, level):
        inputs = {f"i{branch}": content(side, level + 1, branch) for branch in range(width)}
        outputs = {f"o{branch}": f"o{branch}" for branch in range(width)}
        return Key(f"step{level}", None, {"settings": {}}, inputs, outputs)

    entries = [
        entry(job(side, level), [content(side, level, branch) for branch in range(width)])
        for level in range(1, 600)
        for side in (0, 1)
    ]
    old, new = (dataclasses.replace(job(side, 0), outputs={"x": "x"}) for side in (0, 1))

    # If each of the ways through the chain were gone, this would not end.
    assert explain(new, [*entries, entry(old, ["f" * 64])]).startswith("step0: ")


@pytest.mark.parametrize("place", ["a directory", "a name too long", "below a file"])
def test_what_is_in_the_way_of_a_result_is_a_sentence(cache, results, place):
    results.mkdir()
    if place == "a directory":
        (results / "unet.axmodel").mkdir()
        (results / "unet.axmodel" / "x").touch()
    if place == "below a file":
        (results / "x").touch()
        results = results / "x"
    if place == "a name too long":
        name = "n" * 250
        key = dataclasses.replace(KEY, outputs={"axmodel": name, "record": "r"})
    else:
        key = KEY

    with pytest.raises(NotWritten, match=r"results.*and run again"):
        fetch(cache, results, key)


def test_a_list_of_keys_to_keep_that_is_none_stops_the_command(cache, results, tmp_path, capsys):
    from axbake.__main__ import main

    fetch(cache, results)
    (tmp_path / "keys").write_text(f"{KEY.digest}\nresults/demo\n")

    for path in (tmp_path / "keys", tmp_path / "none", tmp_path):
        assert main(["cache", "--directory", str(cache.directory), "--keep", str(path), "remove", "--yes"]) == 1
        assert re.match(r"KeepUnreadable: .*Nothing was removed\.\n", capsys.readouterr().err)
    assert cache.find(KEY)


# The code


def test_no_module_of_the_cache_needs_one_that_needs_it():
    room = Path(axbake.cache.__file__).parent
    paths = {
        ".".join(path.relative_to(room).with_suffix("").parts): path
        for path in room.rglob("*.py")
        if path.stem != "__init__"
    }
    needs = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        needs[name] = {
            full.removeprefix("axbake.cache.")
            for node in found
            for full in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        } & paths.keys()
    while needs:
        leaves = {name for name, others in needs.items() if not others & needs.keys()}
        assert leaves, needs
        needs = {name: others for name, others in needs.items() if name not in leaves}
