"""Work on a board: scripts that its shell runs, over the user's own OpenSSH, whose config and agent are used."""

import contextlib
import logging
import os
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from axbake.board.errors import (
    BoardError,
    BoardSilent,
    ConnectionLost,
    LoginRefused,
    MissingProgram,
    Unreachable,
    UnreadableOutput,
    WrongHostKey,
)
from axbake.printable import one_line, printable

logger = logging.getLogger(__name__)
BEAT = 10  # seconds between two signs of life that the board is sent
DEAF = 60  # seconds without one after which the board ends what it was asked to do
PATIENCE = 3600  # seconds that a program on the board may say nothing; waiting for a busy card counts
MOST_LINE = 4_000_000  # characters; the longest line is JSON of a hundred pictures' times
MOST_TEXT = 64_000_000  # characters of all that a script prints; most of it is a picture
LAST_WORDS = 65_536  # bytes of what is kept of errors

# What the user's ssh config may not change: nobody is there to be asked, an unknown host key is an error and not a question, and
# forwardings meant for a person's session would only fail or leak here.
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "RequestTTY": "no",
    "RemoteCommand": "none",
}

# Read by any sh from its standard input, and so independent of the user's login shell. All of it is one group, since what
# follows on the same input are not commands, but the signs of life: when they stop, however the connection ended, the whole
# process group goes, and with it the lock that it may hold.
FRAME = """{{
exec 3<&0 </dev/null
PATH=$PATH:/usr/bin/axcl:/opt/bin LC_ALL=C
export PATH LC_ALL
(
  trap '' TERM
  while beat=$(timeout {deaf} head -c 1 <&3) && [ -n "$beat" ]; do :; done
  kill -s TERM 0
  sleep 5
  kill -s KILL 0
) >/dev/null 2>&1 &
watch=$!
exec 3<&-
trap 'exit 143' TERM INT HUP
section() {{
  name=$1
  shift
  printf '\\n@{token} begin %s\\n' "$name"
  "$@" 2>&1
  status=$?
  printf '\\n@{token} end %s\\n' "$status"
  [ $status = 0 ]
}}
(
{body}
)
kill -s KILL $watch
printf '\\n@{token} done\\n'
exit 0
}}
"""


@dataclass(frozen=True)
class Board:
    """The host that a card sits in, or that has the chip itself; as in config's entry `board`."""

    host: str  # as ssh knows it
    user: str  # empty: as ssh's config has it
    port: int  # 0: the same
    directory: str  # of bundles on the board; below the user's home if it does not begin with /
    kind: str  # card, or soc: the board's own chip is the NPU
    device: int  # number of the card

    @property
    def name(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def ssh(self) -> list[str]:
        """Command line of ssh, without the host."""
        options = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
        user = ["-l", self.user] if self.user else []
        return ["ssh", *options, *user, *(["-p", str(self.port)] if self.port else [])]


@dataclass(frozen=True)
class Section:
    """What one command of a script printed, errors included, and how it ended."""

    name: str
    text: str
    status: int


class Sections(dict[str, Section]):
    """Sections by name; one that the board did not send is an error in words."""

    def __missing__(self, name: str) -> Section:
        raise UnreadableOutput(
            f"the board ended its script without the section {name!r}; run again, and see this job's log"
        )


def _no_word(section: str, line: str | None) -> None:
    pass


def _no_judgement(section: Section) -> None:
    pass


def run_script(
    board: Board,
    body: str,
    *,
    tell: Callable[[str, str | None], None] = _no_word,
    judge: Callable[[Section], None] = _no_judgement,
) -> Sections:
    """Let the board's sh run *body*, and give what its sections printed, by name.

    Args:
        body: commands; each whose output counts is written `section NAME COMMAND …`, which fails as the command does.
        tell: called with a section's name and None when it begins, then with each of its lines as they come.
        judge: called with each section that has ended; an error that it raises ends the script.

    A section that failed is the caller's to judge. If this process dies or the connection ends, so does the script.

    Raises:
        WrongHostKey, LoginRefused, Unreachable, MissingProgram: nothing was run.
        ConnectionLost: the script did not come to its end.
        BoardSilent: no word for `PATIENCE` seconds.
        UnreadableOutput: a line or a text longer than any that is known, or not as the script would have printed it.
    """
    token = f"axbake-{secrets.token_hex(8)}"
    script = FRAME.format(deaf=DEAF, token=token, body=body)
    errors = LastWords()
    try:
        process = subprocess.Popen(
            [*board.ssh, "--", board.host, "sh -s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.descriptor,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        raise MissingProgram("ssh is not on the PATH; install OpenSSH's client.") from error
    finally:
        errors.handed_over()
    with process, _alive(process, script) as heard:
        reader = _Reader(token, tell, judge)
        assert process.stdout
        for line in _lines(board, process.stdout):
            heard.at = time.monotonic()
            reader.take(line)
        process.stdout.close()
        process.wait()
    said = errors.text()
    if said:
        logger.debug("ssh %s: %s", board.name, printable(said))
    if reader.done:
        return reader.sections
    if heard.gave_up:
        raise BoardSilent(
            f"{board.name} sent nothing for {PATIENCE / 60:.0f} minutes{reader.where}. axbake ended what ran there. "
            "Check whether the card hangs (`axcl-smi` there), restart it if so, and run again."
        )
    raise ssh_error(board, said, begun=reader.begun, where=reader.where)


def ssh_error(board: Board, said: str, *, begun: bool, where: str = "") -> BoardError:
    """The error that ssh's words *said* mean.

    Args:
        begun: whether the board had answered.
        where: what it was at.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip("@ \r\n")]
    words = one_line(" ".join(lines), 1500) or "no further message"
    login = shlex.join([*_plain_ssh(board), board.host])
    if re.search(r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED|No \S+ host key is known", said):
        return WrongHostKey(
            f"{board.name}: ssh does not accept its host key: {words}. If the board is new or was set up again, and "
            f"you can verify that the key is its own, log in once by hand (`{login}`). If not, another machine may be "
            "answering."
        )
    if "Permission denied" in said and not begun:
        return LoginRefused(
            f"{board.name}: {words} Wanted a login without a password. Check that `{login}` works: the user must be "
            "right (board/user in config), and your key must be in the board's authorized_keys and in your agent or "
            "config."
        )
    if begun:
        return ConnectionLost(
            f"{board.name}: the connection ended{where} ({words}). No unfinished file of this job counts as finished. "
            "Run the same command again; it continues from what is there."
        )
    return Unreachable(
        f"{board.name}: no connection: {words}. Check that the board is on and that `{login}` works. Its address is in "
        "board/host, user and port in config."
    )


def _plain_ssh(board: Board) -> list[str]:
    user = ["-l", board.user] if board.user else []
    return ["ssh", *user, *(["-p", str(board.port)] if board.port else [])]


def _lines(board: Board, stream: IO[str]) -> Iterator[str]:
    """Lines of what *board* prints, as long as they are no longer, and all together no more, than a script's can be."""
    left = MOST_TEXT
    while line := stream.readline(MOST_LINE):
        left -= len(line)
        if (len(line) == MOST_LINE and line[-1] != "\n") or left < 0:
            what = "more" if left < 0 else "a line of more"
            most = MOST_TEXT if left < 0 else MOST_LINE
            raise UnreadableOutput(
                f"{board.name} printed {what} than {most / 1e6:.0f} MB, beginning {one_line(line, 100)!r}; none of its "
                "programs should print so much. axbake ended what ran there."
            )
        yield line


class LastWords:
    """The last `LAST_WORDS` bytes that a process writes to *descriptor*, however much that is.

    A pipe that is not read to its end: a connection that ssh keeps for later (ControlPersist) holds it open.
    """

    def __init__(self) -> None:
        self._pipe, self.descriptor = os.pipe()
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def handed_over(self) -> None:
        """The process has the descriptor, or there is no process."""
        os.close(self.descriptor)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self._pipe, 1 << 16):
            self._kept = (self._kept + piece)[-LAST_WORDS:]
        os.close(self._pipe)

    def text(self) -> str:
        """What was written last; to be asked when the process has ended."""
        self._thread.join(2)
        return self._kept.decode("utf-8", "replace").strip()


class _Reader:
    """Sections of a script, put together from the lines that it prints."""

    def __init__(self, token: str, tell: Callable[[str, str | None], None], judge: Callable[[Section], None]) -> None:
        self.sections = Sections()
        self.begun = self.done = False
        self._mark, self._tell, self._judge = f"@{token} ", tell, judge
        self._name, self._lines = "", list[str]()

    @property
    def where(self) -> str:
        return f" while it was at {self._name!r}" if self._name else ""

    def take(self, line: str) -> None:
        """The next line; what comes before the first section is the login shell's own talk."""
        if not line.startswith(self._mark):
            self._lines.append(line)
            if self._name:
                logger.debug("%s: %s", self._name, printable(line.rstrip()))
                self._tell(self._name, line.rstrip())
            return
        self.begun = True
        word, _, rest = line.removeprefix(self._mark).rstrip("\n").partition(" ")
        if word == "begin":
            self._name, self._lines = one_line(rest), []
            self._tell(self._name, None)
        elif word == "end":
            if not re.fullmatch("[0-9]{1,3}", rest):
                raise UnreadableOutput(f"a command's status is {one_line(rest)!r}; wanted a number. Run again.")
            section = Section(self._name, "".join(self._lines).removesuffix("\n"), int(rest))
            self.sections[self._name] = section
            self._name = ""
            self._judge(section)
        else:
            self.done = True


class _Heard:
    """When the board was last heard of, and whether it was given up."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.gave_up = False


@contextlib.contextmanager
def _alive(process: subprocess.Popen, script: str) -> Iterator[_Heard]:
    """Send *script*, then a sign of life every `BEAT` seconds until the block ends; end a board that is silent for too long."""
    heard, over = _Heard(), threading.Event()
    assert process.stdin

    def beat() -> None:
        assert process.stdin
        with contextlib.suppress(OSError, ValueError):  # ssh has ended; the reader sees the same
            process.stdin.write(script)
            process.stdin.flush()
            while not over.wait(BEAT):
                process.stdin.write(".")
                process.stdin.flush()
                if time.monotonic() - heard.at > PATIENCE:
                    heard.gave_up = True
                    process.terminate()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield heard
    except BaseException:
        process.terminate()
        raise
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            process.stdin.close()
