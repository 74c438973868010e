"""One baked project for all tests, copies of it to edit, and projects in which nothing was baked yet."""

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
def baked(checkpoint, tmp_path_factory) -> Project:
    """A project whose report was baked; for reading alone."""
    directory = tmp_path_factory.mktemp("baked")
    project = Project.lay_out(directory / "project", directory / "cache", checkpoint)
    project.bake(REPORT)
    return project


@pytest.fixture
def project(baked, tmp_path) -> Project:
    """A copy of the baked project, and of its cache, to edit."""
    return baked.copy(tmp_path / "project").copy_cache(tmp_path / "cache")
