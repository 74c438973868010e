"""One baked project for all tests, copies of it to edit, and projects in which nothing was baked yet."""

import fcntl
from pathlib import Path

import pytest

from tests import tiny
from tests.services.engine import containers, engine, shared  # noqa: F401 - fixtures of the container tests
from tests.workflow.project import REPORT, Project


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.save(tiny.sd1(), tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture
def fresh(checkpoint, tmp_path) -> Project:
    """A project in which nothing was baked yet."""
    return Project.lay_out(tmp_path / "project", tmp_path / "cache", checkpoint)


@pytest.fixture(scope="session")
def baked(checkpoint, shared) -> Project:  # noqa: F811
    """A project whose report was baked, once for all of pytest's workers; for reading alone."""
    project = Project(shared / "baked" / "project", shared / "baked" / "cache")
    with (shared / "baked.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not project.directory.exists():
            Project.lay_out(project.directory, project.cache, checkpoint).bake(REPORT)
    return project


@pytest.fixture
def project(baked, tmp_path) -> Project:
    """A copy of the baked project, and of its cache, to edit."""
    return baked.copy(tmp_path / "project").copy_cache(tmp_path / "cache")
