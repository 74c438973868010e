"""A digest is remembered while its file is the same, and computed anew as soon as it may not be."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from axbake.digest import MEMORY, file_sha256, is_sha256, remembered_sha256, write_atomically

#: What a path can be other than a file -> how it is made
NO_FILES = {"directory": Path.mkdir, "fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file():
    path = Path("model.safetensors")
    path.write_bytes(b"first")
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def set_mtime(path, nanoseconds):
    os.utime(path, ns=(nanoseconds, nanoseconds))


def test_it_is_the_sha256_of_the_content(file):
    assert file_sha256(file) == sha256(b"first")
    assert file_sha256(file) == sha256(b"first")  # remembered


def test_a_file_unchanged_by_size_inode_and_mtime_is_not_read_again(file):
    file_sha256(file)
    state = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"other")
    set_mtime(file, state.st_mtime_ns)

    assert (file.stat().st_ino, file.stat().st_size) == (state.st_ino, state.st_size)
    assert file_sha256(file) == sha256(b"first")


@pytest.mark.parametrize("shift", [1, -3600 * 10**9], ids=["newer", "older"])
def test_an_edit_of_the_same_size_is_seen_whether_it_looks_newer_or_older(file, shift):
    file_sha256(file)
    mtime = file.stat().st_mtime_ns
    with file.open("r+b") as opened:
        opened.write(b"other")
    set_mtime(file, mtime + shift)

    assert file_sha256(file) == sha256(b"other")


def test_another_size_is_seen_at_the_same_mtime(file):
    file_sha256(file)
    mtime = file.stat().st_mtime_ns
    file.write_bytes(b"longer")
    set_mtime(file, mtime)

    assert file_sha256(file) == sha256(b"longer")


def test_another_file_in_its_place_is_seen_at_the_same_size_and_mtime(file):
    file_sha256(file)
    mtime = file.stat().st_mtime_ns
    other = Path("other")
    other.write_bytes(b"other")
    set_mtime(other, mtime)
    other.replace(file)

    assert file_sha256(file) == sha256(b"other")


def test_a_link_is_known_by_the_file_that_it_leads_to(file):
    link = Path("link.safetensors")
    link.symlink_to(file)
    other = Path("other")
    other.write_bytes(b"other")

    assert file_sha256(link) == sha256(b"first")
    link.unlink()
    link.symlink_to(other)
    assert file_sha256(link) == sha256(b"other")


def test_two_files_do_not_share_a_note(file):
    other = Path("other")
    other.write_bytes(b"other")

    assert [file_sha256(file), file_sha256(other), file_sha256(file)] == [
        sha256(b"first"),
        sha256(b"other"),
        sha256(b"first"),
    ]
    assert len(list(MEMORY.iterdir())) == 2


@pytest.mark.parametrize("content", ["", '{"state": [', "[]"], ids=["empty", "cut off", "something else"])
def test_a_damaged_note_is_made_again(file, content):
    file_sha256(file)
    (note,) = MEMORY.iterdir()
    note.write_text(content)

    assert file_sha256(file) == sha256(b"first")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"state": NaN}', "\x00" * 9], ids=["deep", "no number", "zeros"])
def test_a_strange_note_is_made_again(file, content):
    file_sha256(file)
    (note,) = MEMORY.iterdir()
    note.write_text(content)

    assert file_sha256(file) == sha256(b"first")
    assert json.loads(note.read_text())["sha256"] == sha256(b"first")


@pytest.mark.parametrize("value", [3, "../x", "A" * 64, f"{'a' * 64}\n", None, ["a" * 64]], ids=repr)
def test_a_note_whose_digest_is_none_is_made_again(file, value):
    file_sha256(file)
    (note,) = MEMORY.iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": value}))

    assert remembered_sha256(file) is None
    assert file_sha256(file) == sha256(b"first")
    assert remembered_sha256(file) == sha256(b"first")


@pytest.mark.parametrize("what", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_in_the_place_of_a_note_is_not_read(file, what, caplog):
    file_sha256(file)
    (note,) = MEMORY.iterdir()
    note.unlink()
    what(note)

    assert file_sha256(file) == sha256(b"first")
    assert note.is_file() or f"{file} will be read each time" in caplog.text


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(file, caplog):
    MEMORY.parent.write_text("not a directory")

    assert file_sha256(file) == sha256(b"first")
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("what", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_has_no_digest(what):
    what(Path("endless"))
    with pytest.raises(OSError, match="Not a plain file"):
        file_sha256(Path("endless"))


@pytest.mark.parametrize("value", ["a" * 63, "A" * 64, "g" * 64, f"{'a' * 64}\n", "../" + "a" * 61, None, 3, b"a" * 64])
def test_what_is_no_digest_is_none(value):
    assert not is_sha256(value)
    assert is_sha256("a" * 64)


def test_writing_that_fails_leaves_nothing():
    Path("file.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(Path("file.json"), "text")
    assert [path.name for path in Path().iterdir()] == ["file.json"]


def test_writing_leaves_the_whole_text_and_no_other_file():
    path = Path("deep/er/file.json")
    write_atomically(path, "first")
    write_atomically(path, "second")

    assert path.read_text(encoding="utf-8") == "second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_threads_that_write_one_file_do_not_take_each_others():
    path = Path("file.json")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_atomically(path, str(number) * 1000), range(400)))  # an error is raised here

    assert path.read_text(encoding="utf-8") in {str(number) * 1000 for number in range(400)}
    assert list(Path().iterdir()) == [path]
