"""Scripts that run on a board, over a real sshd: what they print comes back whole, and they never outlive the connection."""

import time
from pathlib import Path

import pytest

from axbake.board import connection
from axbake.board.connection import Board, run_script
from axbake.board.errors import BoardSilent, ConnectionLost, FailedOnBoard


@pytest.fixture
def far(board) -> Board:
    return Board(**board.settings)


def test_what_each_command_prints_and_how_it_ends_comes_back(far):
    said = []
    body = r"""
section plain printf 'one\ntwo'
section errors sh -c 'echo wrong >&2; exit 255' || :
section odd printf '\n\nvæ \377 @axbake- end 0\n\n'
section nothing true
section input cat
"""

    found = run_script(far, body, tell=lambda section, line: said.append((section, line)))

    assert {name: (section.text, section.status) for name, section in found.items()} == {
        "plain": ("one\ntwo", 0),
        "errors": ("wrong\n", 255),
        "odd": ("\n\nvæ � @axbake- end 0\n\n", 0),
        "nothing": ("", 0),
        "input": ("", 0),
    }
    assert [line for section, line in said if section == "plain"] == [None, "one", "two"]


def test_what_the_users_own_config_does_for_people_does_not_disturb(board, far):
    board.sshd.config.write_text(
        board.sshd.config.read_text()
        + "    RemoteCommand echo a person\n    RequestTTY yes\n    LocalForward 1 localhost:1\n    ForwardAgent yes\n"
    )

    assert run_script(far, "section tty tty")["tty"].text == "not a tty\n"


def test_an_error_of_the_judges_ends_the_script(far, tmp_path):
    def judge(section):
        raise FailedOnBoard(f"not {section.text}")

    with pytest.raises(FailedOnBoard, match="not so"):
        run_script(far, f"echo $$ >{tmp_path}/shell\nsection first printf so\nwhile :; do sleep 0.1; done", judge=judge)

    shell = Path("/proc", (tmp_path / "shell").read_text().strip())
    deadline = time.monotonic() + 600  # the board's end learns of it by the connection
    while shell.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not shell.exists()


def test_a_board_that_says_nothing_is_given_up(far, monkeypatch):
    monkeypatch.setattr(connection, "BEAT", 0.1)
    monkeypatch.setattr(connection, "PATIENCE", 5)  # longer than a login takes

    with pytest.raises(BoardSilent, match=r"sent nothing for .* while it was at 'hang'"):
        run_script(far, "section hang sleep 600")


def test_a_script_that_hears_nothing_more_ends_by_itself(far, monkeypatch):
    monkeypatch.setattr(connection, "BEAT", 600)  # as if the line were dead, and neither end had noticed
    monkeypatch.setattr(connection, "DEAF", 1)

    with pytest.raises(ConnectionLost, match="while it was at 'long'"):
        run_script(far, "section long sleep 600")
