"""For all tests: a build cache of their own, and what one worker makes for all. For some: the site; a board that is played."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.board.played import PlayedBoard
from tests.services import sshd

ROOT = Path(__file__).parents[1]

# A shell starts what it runs in the background with Ctrl-C ignored, and so would be all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    os.environ["AXBAKE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A directory that all of pytest's workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def once(shared) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function that gives the directory of a name in which one worker made something; the others wait for it."""

    def make(name: str, work: Callable[[Path], object]) -> Path:
        place, made = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                place.mkdir()
                work(place)
                made.touch()
        return place

    return make


@pytest.fixture(scope="session")
def site(once) -> Path:
    """The documentation as `make site` builds it."""

    def build(place: Path) -> None:
        mkdocs = Path(sys.executable).with_name("mkdocs")
        subprocess.run([mkdocs, "build", "--strict", "--quiet", "--site-dir", place], cwd=ROOT, check=True)

    return once("site", build)


@pytest.fixture(scope="session")
def started_board(tmp_path_factory):
    sshd.install()
    if missing := sshd.missing():
        assert not os.environ.get("CI"), f"CI has not {missing}"
        pytest.skip(f"needs {', '.join(missing)}, which only root can install")
    board = PlayedBoard.start(tmp_path_factory.mktemp("board"))
    yield board
    board.sshd.stop()


@pytest.fixture
def board(started_board, tmp_path, monkeypatch) -> PlayedBoard:
    """A board as if new, which `ssh` and `rsync` of the test's process reach."""
    started_board.reset(tmp_path / "bundles-on-board")
    monkeypatch.setenv("PATH", f"{started_board.sshd.bin}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)  # digests are remembered in the working directory
    return started_board
