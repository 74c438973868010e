"""A terminal that a program runs on: a real pseudo-terminal, and what is to be seen on it."""

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping
from pathlib import Path

COMMAND = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]+|\x1b")


class Terminal:
    """What a terminal of some width shows. It knows the commands that a live display needs, and refuses all others.

    Attributes:
        cursor: whether the cursor is shown.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.cursor = True
        self._rows = [""]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """All lines from the first on, without blanks at their ends."""
        return [row.rstrip() for row in self._rows]

    def write(self, text: str) -> None:
        """Show *text*, obeying the commands in it."""
        for part in COMMAND.finditer(text):
            if part[2]:
                self._obey(part[1], part[2])
            elif part[0] == "\r":
                self._column = 0
            elif part[0] == "\n":
                self._down()
            else:
                for character in part[0]:
                    self._put(character)

    def _obey(self, argument: str, letter: str) -> None:
        if letter == "m":
            return
        if (argument, letter) in (("?25", "l"), ("?25", "h")):
            self.cursor = letter == "h"
        elif (argument, letter) == ("2", "K"):
            self._rows[self._row] = ""
        elif letter == "A":
            self._row -= int(argument)
            assert self._row >= 0
        else:
            raise AssertionError(f"unknown command: {argument}{letter}")

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append("")

    def _put(self, character: str) -> None:
        assert character.isprintable(), repr(character)
        if self._column == self.columns:
            self._column = 0
            self._down()
        row = self._rows[self._row].ljust(self._column)
        self._rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1


def run_on_terminal(
    command: list[str | Path],
    columns: int,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    answer: Callable[[Terminal], bytes] = lambda _: b"",
) -> tuple[int, Terminal]:
    """Exit status of *command*, and its terminal.

    Args:
        columns: how wide the terminal is.
        answer: what is typed; asked whenever something new is shown.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    how = {"stdin": follower, "stdout": follower, "stderr": follower, "start_new_session": True}
    run = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        **how,
    )
    os.close(follower)
    terminal, decoder, rest = Terminal(columns), codecs.getincrementaldecoder("utf-8")(), ""
    try:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # of Linux, when nobody has the other end any more
                break
            text = rest + decoder.decode(data)
            half = re.search(r"\x1b[^A-Za-z]*\Z", text)  # a command can come in two parts
            text, rest = (text[: half.start()], half[0]) if half else (text, "")
            terminal.write(text)
            if typed := answer(terminal):
                os.write(leader, typed)
    finally:
        os.close(leader)
    return run.wait(), terminal
