"""A container engine for tests, with an image of the double; one for all of pytest's workers, stopped by the last."""

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
def engine(tmp_path_factory):
    """Name of the engine's command, which is up and on the PATH and has the image `pulsar2:4.2`."""
    shared = (
        tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.getbasetemp()
    )
    with pytest.MonkeyPatch.context() as patch, (shared / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _script("start")
        path, host = re.match(r"export PATH=(\S+):\$PATH DOCKER_HOST=(\S+)", _script("env")).groups()
        patch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("DOCKER_HOST", host)
        made = shared / "image"
        if not made.exists():
            double_image.make(ENGINE, IMAGE)
            made.touch()
        fcntl.flock(lock, fcntl.LOCK_UN)
        yield ENGINE


@pytest.fixture
def containers(engine):
    """A function that lists the containers of axbake that there are, running or not; none may be left at the end."""

    def listed() -> list[str]:
        command = [engine, "ps", "--all", "--filter", "label=axbake", "--format", "{{.Names}}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert listed() == []
    yield listed
    left = listed()
    for name in left:
        subprocess.run([engine, "rm", "--force", name], capture_output=True)
    assert left == []
