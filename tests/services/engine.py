"""A container engine for tests, with an image of the double: one for all of pytest's workers, wiped by the last."""

import contextlib
import fcntl
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.services import double_image

SCRIPT = Path(__file__).parent / "container-engine.sh"
ENGINE = os.environ.get("CONTAINER_ENGINE", "docker")
IMAGE = "pulsar2:4.2"


def _script(verb: str) -> str:
    done = subprocess.run([SCRIPT, verb], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{SCRIPT.name} {verb}: {done.stdout}"  # never skipped: what it tests would go unseen
    return done.stdout


@pytest.fixture(scope="session")
def engine(shared):
    """Name of the engine's command, which is up and on the PATH and has the image `pulsar2:4.2`."""
    made = shared / "image"
    with pytest.MonkeyPatch.context() as patch, (shared / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _script("start")
        path, host = re.match(r"export PATH=(\S+):\$PATH DOCKER_HOST=(\S+)", _script("env")).groups()
        patch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("DOCKER_HOST", host)
        if not made.exists():
            double_image.make(ENGINE, IMAGE)
            made.touch()
        fcntl.flock(lock, fcntl.LOCK_SH)  # held by all that use it
        yield ENGINE
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.unlink(missing_ok=True)
            _script("wipe")


@pytest.fixture
def containers(engine, shared):
    """A function that lists the containers of axbake that there are, running or not; none may be left at the end.

    One test at a time has it, of all workers'.
    """

    def listed() -> list[str]:
        command = [engine, "ps", "--all", "--filter", "label=axbake", "--format", "{{.Names}}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    with (shared / "containers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed() == []
        yield listed
        left = listed()
        for name in left:
            subprocess.run([engine, "rm", "--force", name], capture_output=True)
    assert left == []
