"""Users' small files: opened only if they are files, read within bounds, and quoted in messages without harm."""

import json
import os
import socket

import pytest

from axbake.users_files import (
    MOST_JSON_BYTES,
    UnreadableFile,
    absence,
    is_file,
    kind_of,
    load_json,
    load_yaml,
    read_json,
    read_text,
    read_yaml,
    shown,
)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a cat", "a cat"),
        ("a\x1b[31mb\n", "a\\x1b[31mb\\n"),
        ("\u2028\ud800é…", "\\u2028\\ud800é…"),
        ("x" * 200, "x" * 120 + "…"),
        ([1, "a"], "[1, 'a']"),
    ],
)
def test_what_a_file_says_is_shown_bounded_and_printable(text, cut):
    assert shown(text) == cut


def make(kind, path):
    """Something of *kind* at *path*."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "a file":
        path.write_text("{}")
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "a socket", "a file", ""])
def test_only_files_are_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has 107 letters at most
    path = tmp_path.relative_to(tmp_path) / "x.json"
    make(kind, path)

    assert kind_of(path) == kind
    assert is_file(path) == (kind == "a file")
    if kind != "a file":
        with pytest.raises(UnreadableFile, match=rf"^x\.json: {kind or 'Too many levels'}"):
            read_json(path)


@pytest.mark.parametrize("name", ["a" * 300, "a\x00b"])
def test_a_name_that_no_file_can_have_is_not_there(name, tmp_path):
    assert kind_of(tmp_path / name) == ""
    assert absence(tmp_path / name) in ("not there (File name too long)", "not there (embedded null byte)")
    assert absence(tmp_path) == "" and absence(tmp_path / "x") == "not there"
    with pytest.raises(UnreadableFile):
        read_text(tmp_path / name, most_bytes=10)


def test_a_file_that_is_too_large_or_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b" " * (MOST_JSON_BYTES + 1))
    with pytest.raises(UnreadableFile, match=r"x\.json: more than 1000000 bytes"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UnreadableFile, match=r"x\.json: byte 7 is not UTF-8"):
        read_json(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "x").write_bytes(b'\xef\xbb\xbf{"a": [1]}')

    assert read_json(tmp_path / "x") == read_yaml(tmp_path / "x") == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"b": {"\x7fa": 1, "\x7fa": 2}}', r"'\\x7fa' appears twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ("[" * 10**5, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("", "Expecting value"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_json_is_named(text, said):
    with pytest.raises(ValueError, match=said) as raised:
        load_json(text)

    assert len(str(raised.value)) < 300


def test_json_is_what_the_library_says():
    value = {"a": [1, 2.5, None, True, "😀", {"b": ""}], "": {}}

    assert load_json(json.dumps(value)) == value
    assert load_json(json.dumps(value, ensure_ascii=False)) == value


def nested_aliases(count, text):
    return "a0: &a0 {x: [1]}\n" + "".join(f"a{n}: &a{n} {text.format(f'*a{n - 1}')}\n" for n in range(1, count))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested_aliases(40, "[{0}, {0}]"), "aliases"),
        (nested_aliases(40, "{{<<: [{0}, {0}]}}"), "aliases"),
        ("a: &a '" + "x" * 50_000 + "'\nb: [" + "*a, " * 100 + "]", "aliases"),
        ("a: &a [*a]", "refers to something that contains it"),
        ("a: [", "while parsing"),
        ("a: 2001-99-99", "month must be in"),
        ("!!python/object/apply:os.system ['x']", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
        ("x" * 300_000, "300000 characters"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_yaml_is_named(text, said):
    with pytest.raises(ValueError, match=said) as raised:
        load_yaml(text)

    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def test_yaml_is_what_people_write():
    text = "a: &a {b: 1, c: [x, 2.5]}\nd: {<<: *a, b: 2}\ne: *a\nf: 1:30\n"

    assert load_yaml(text) == {
        "a": {"b": 1, "c": ["x", 2.5]},
        "d": {"b": 2, "c": ["x", 2.5]},
        "e": {"b": 1, "c": ["x", 2.5]},
        "f": "1:30",
    }
    assert load_yaml("") is None
