"""One baked project for all tests, copies of it to edit, and projects in which nothing was baked yet."""

from pathlib import Path

import pytest

from tests import tiny
from tests.services.engine import containers, engine  # noqa: F401 - fixtures of the container tests
from tests.workflow.project import REPORT, Project


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.save(tiny.small_sd1(), tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


def _project(place: Path, checkpoint: Path) -> Project:
    return Project.lay_out(place / "project", place / "cache", checkpoint)


@pytest.fixture
def fresh(checkpoint, tmp_path) -> Project:
    """A project in which nothing was baked yet."""
    return _project(tmp_path, checkpoint)


@pytest.fixture(scope="session")
def baked(checkpoint, once) -> Project:
    """A project whose report was baked, once for all of pytest's workers; for reading alone."""
    place = once("baked", lambda place: _project(place, checkpoint).bake(REPORT))
    return Project(place / "project", place / "cache")


@pytest.fixture
def project(baked, tmp_path) -> Project:
    """A copy of the baked project, and of its cache, to edit."""
    return baked.copy(tmp_path / "project").copy_cache(tmp_path / "cache")
