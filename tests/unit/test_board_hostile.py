"""Boards that print too much, or what no program of theirs prints, end in a sentence without commands to the terminal."""

import base64
import io
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from axbake.board import connection
from axbake.board.benchmark import _packages, _picture, timings
from axbake.board.connection import LAST_WORDS, Board, Section, run_script
from axbake.board.deploy import obsolete
from axbake.board.errors import BoardError, ConnectionLost, FailedOnBoard, Unreachable, UnreadableOutput
from axbake.board.inspection import Inspection, check, inspect_board
from axbake.board.measurement import pretty_name
from axbake.board.report import plot_of_steps
from axbake.board.tools import State, read_chip, read_run_model, read_smi
from axbake.printable import printable
from tests import peaks
from tests.board.played import RECORDED

FAR = Board("far", "", 0, "bundles", "card", 0)
# Plays ssh: reads the script's mark, then does what the test says.
SSH = """#!{python}
import re, sys
out, err = sys.stdout.buffer, sys.stderr.buffer
mark = None
while mark is None:
    mark = re.search(rb"@axbake-[0-9a-f]+", sys.stdin.buffer.readline())
mark = mark[0]
def section(name, text, status=b"0"):
    out.write(b"\\n%s begin %s\\n%s\\n%s end %s\\n" % (mark, name, text, mark, status))
    out.flush()
def done():
    out.write(b"\\n%s done\\n" % mark)
    out.flush()
{body}
"""


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A function that lets the board do *body*, and gives it."""

    def play(body: str) -> Board:
        (tmp_path / "ssh").write_text(SSH.format(python=sys.executable, body=body))
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return FAR

    return play


def test_a_line_without_end_is_cut_off_and_takes_no_memory(far):
    board = far("while True: out.write(b'x' * 65536)")
    held = peaks.count_anew()

    with pytest.raises(UnreadableOutput, match=r"far printed a line of more than 4 MB, beginning 'x+…'.* axbake ended"):
        run_script(board, "true")

    assert peaks.peak() - held < 200_000_000  # bytes


def test_lines_without_end_are_cut_off(far, monkeypatch):
    monkeypatch.setattr(connection, "MOST_TEXT", 1_000_000)
    board = far("section(b'a', b'')\nwhile True: out.write(b'some words\\n' * 999)")

    with pytest.raises(UnreadableOutput, match="far printed more than 1 MB"):
        run_script(board, "true")


def test_errors_without_end_are_kept_by_their_last_words(far):
    board = far("err.write(b'y' * 50_000_000 + b'\\nport 22: refused\\n')\nerr.flush()")

    with pytest.raises(Unreachable) as caught:
        run_script(board, "true")

    assert len(str(caught.value)) < 2500
    words = connection.LastWords()
    os.write(words.descriptor, b"before ")
    words._kept = b"z" * LAST_WORDS
    words.handed_over()
    assert len(words.text()) <= LAST_WORDS


def test_what_ssh_keeps_open_for_later_is_not_waited_for(far, tmp_path):
    """As a connection that is shared (ControlPersist) keeps the descriptor of errors."""
    board = far(
        "import os, time\nsection(b'a', b'1')\nerr.write(b'said')\nerr.flush()\ndone()\nchild = os.fork()\n"
        "if child == 0:\n    os.close(0); os.close(1); time.sleep(3600); os._exit(0)\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child))"
    )

    assert run_script(board, "true")["a"].text == "1"
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # which ends the test if the child had ended before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("section(b'missing', b''); section(b'directory', b''); done()", "without the section 'state'"),
        ("done()", "its shell ended before"),
        ("section(b'missing', b'', b'abc')", "a command's status is 'abc'; wanted a number"),
        ("section(b'missing', b'', b'9' * 5000)", "a command's status is '9+…'"),
        ("section(b'missing', b'', b'\\x1b[2J')", "a command's status is ''"),
    ],
)
def test_a_board_that_does_not_keep_to_the_script_is_told_so(far, body, said):
    board = far(body)

    with pytest.raises((UnreadableOutput, FailedOnBoard), match=said):
        inspect_board(board, "tiny")


def test_what_a_board_says_reaches_no_terminal_as_a_command(far, caplog):
    evil = "\\x1b]0;owned\\x07\\x1b[31mred\\x9b2J\\u202e"
    caplog.set_level("DEBUG")
    board = far(
        f"evil = '{evil}'.encode()\nsection(b'draw:' + evil, evil + b' no memory', b'1')\n"
        "err.write(evil + b'bye')\nerr.flush()\nsys.exit(3)"
    )
    told = []

    with pytest.raises(ConnectionLost) as caught:
        run_script(board, "true", tell=lambda section, line: told.append(section))

    shown = [str(caught.value), *told, *(record.getMessage() for record in caplog.records)]
    assert "bye" in str(caught.value)
    assert [text for text in shown if text != printable(text)] == []
    text = evil.encode().decode("unicode_escape")
    with pytest.raises(FailedOnBoard) as caught:
        check(board, {"a": Section("a", f"{text} no memory", 1)}, "a", "it failed")
    assert str(caught.value) == "far: it failed (status 1): red2J no memory"


def test_every_error_of_boards_is_printable():
    error = BoardError("a\x1b[2Jb\x07\n\tc\u202ed\ud800\x85e")

    assert str(error) == "ab\n\tcd�e"


SMI = (RECORDED / "axcl-smi.txt").read_text()
RUN = (RECORDED / "axcl_run_model.long.txt").read_text()


@pytest.mark.parametrize(
    "read",
    [
        lambda: read_smi(SMI + " " * 20_000),
        lambda: read_smi(SMI.replace("7040 MiB", f"{'9' * 5000} MiB")),
        lambda: read_smi(SMI.replace("41C", f"{'9' * 5000}C")),
        lambda: read_smi("AXCL-SMI x Driver y " + "| 1 2 a" + " " * 9000),
        lambda: read_smi("AXCL-SMI " * 1700),
        lambda: read_chip("total size=1KB(" * 1060),
        lambda: read_chip(f"total size={'9' * 5000}KB(x),used=1KB(x),remain=1KB\n5\n"),
        lambda: read_run_model(" " * 15_900, program="axcl_run_model", repeat=1),
        lambda: read_run_model("a " * 7_900, program="axcl_run_model", repeat=1),
        lambda: read_run_model(RUN.replace("12730188 Bytes", f"{'9' * 5000} Bytes"), program="p", repeat=100),
        lambda: read_run_model(RUN.replace("repeat: 100", f"repeat: {'9' * 5000}"), program="p", repeat=100),
        lambda: read_run_model(RUN.replace("repeat: 100", "repeat: ²"), program="p", repeat=100),
        lambda: read_run_model(RUN + "x" * 10**7, program="p", repeat=100),
    ],
)
def test_tables_that_are_long_or_of_endless_numbers_are_refused_at_once(read):
    with pytest.raises(UnreadableOutput) as caught:
        read()

    assert len(str(caught.value)) < 1000


DRAWN = {
    "emulated": False,
    "runtime": "axcl",
    "load_seconds": {"unet": 1.0},
    "total_seconds": 9.0,
    "host": {"machine": "m", "system": "s", "cores": 4, "python": "3", "packages": {"numpy": "2"}},
    "pictures": [
        {
            "text_embedding_seconds": 0.1,
            "step_seconds": [0.5, 0.5],
            "decode_seconds": 0.7,
            "total_seconds": 2.0,
            "runs": {"text_encoder": [0.1], "unet": [0.2], "vae_decoder": [0.3]},
        }
    ],
}
#: What of a bundle its timings are read with
DRAWING = SimpleNamespace(drawing={name: [name] for name in ("text_encoder", "unet", "vae_decoder")})
STRANGE = [None, "x", [], {}, -1, float("nan"), float("inf"), 10**400, True, [None], {"a": None}]


def spoilt(way, value):
    content = json.loads(json.dumps(DRAWN))
    holder = content
    for name in way[:-1]:
        holder = holder[name]
    holder[way[-1]] = value
    return json.dumps(content)


def test_timings_of_the_right_form_are_taken():
    assert timings(FAR, DRAWING, Section("timings:20", json.dumps(DRAWN), 0)) == DRAWN


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "way",
    [
        ["load_seconds", "unet"],
        ["total_seconds"],
        ["host"],
        ["host", "cores"],
        ["host", "machine"],
        ["host", "packages"],
        ["pictures"],
        ["pictures", 0],
        ["pictures", 0, "step_seconds"],
        ["pictures", 0, "step_seconds", 0],
        ["pictures", 0, "decode_seconds"],
        ["pictures", 0, "runs"],
        ["pictures", 0, "runs", "unet"],
        ["pictures", 0, "runs", "unet", 0],
    ],
    ids=lambda way: "/".join(map(str, way)),
)
def test_timings_with_odd_fields_are_refused_in_a_sentence(way, value):
    if (way[-1] in ("machine",) and value == "x") or (way[-1] == "packages" and value == {}):
        return  # as it should be
    with pytest.raises(UnreadableOutput, match=r"do not match docs/bundles\.md"):
        timings(FAR, DRAWING, Section("timings:20", spoilt(way, value), 0))


@pytest.mark.parametrize(
    "text", ["", "null", "[" * 100_000, '{"emulated": false', "[]", '{"emulated": 0, "runtime": 3}']
)
def test_timings_that_are_no_object_are_refused_in_a_sentence(text):
    with pytest.raises(UnreadableOutput):
        timings(FAR, DRAWING, Section("timings:20", text, 0))


@pytest.mark.parametrize(
    "said", ["[" * 100_000, "{}", "null", '{"versions": [], "missing": []}', '{"versions": {"a": 1}}', "x"]
)
def test_packages_of_another_form_are_refused_in_a_sentence(said):
    with pytest.raises(UnreadableOutput, match="of its packages"):
        _packages(Section("packages", f"packages: {said}", 0))


def png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: png(48, 64), None),
        (lambda: png(64, 48), "is 64 x 48 pixels; wanted 48 x 64"),
        (lambda: png(30_000, 30_000), "pixels"),
        (lambda: png(48, 64)[:40], "is not a PNG"),
        (lambda: b"GIF89a", "is not a PNG"),
    ],
)
def test_a_picture_of_another_size_is_refused_before_it_is_opened(content, said):
    content = content()
    section = Section("picture", base64.b64encode(content).decode(), 0)
    if said is None:
        assert _picture(FAR, section, {"width": 48, "height": 64}) == content
        return
    with pytest.raises(UnreadableOutput, match=said):
        _picture(FAR, section, {"width": 48, "height": 64})


@pytest.mark.parametrize(
    "listed", ["[3, null]", "3", "null", '{"a\\n": 1, "": 2, "\\u0000": 3, "/x": 4, "../x": 5}', "[" * 99_999]
)
def test_a_manifest_on_the_board_that_is_none_names_nothing_to_remove(listed):
    known = SimpleNamespace(files={"unet.axmodel": "0" * 64})
    found = Inspection(0, {}, f'{{"files": {listed}}}', State("", (), ()))

    assert obsolete(known, found) == []
    assert obsolete(known, Inspection(0, {}, '{"files": {"-rf": 1, "unet.axmodel": 2}}', found.state)) == ["-rf"]


def test_a_boards_name_is_one_line():
    assert pretty_name('Pi\x1b[2J 5\0PRETTY_NAME=x\nPRETTY_NAME="De\x07bian"\n') == "Pi 5, Debian"


def test_steps_that_took_no_time_are_drawn():
    assert plot_of_steps([[0.0, 0.0]])["lines"] == [[(140.0, 200.0), (420.0, 200.0)]]
