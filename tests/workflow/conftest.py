"""One baked project for all tests, copies of it to edit, projects in which nothing was baked yet, and a browser."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Error, sync_playwright

from axbake.jobs.known import MEMORY as KNOWN
from tests import tiny
from tests.services.engine import containers, engine  # noqa: F401 - fixtures of the container tests
from tests.workflow.project import REPORT, Project

# A test machine has no network for a browser's own errands, and its root user no sandbox.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.save(tiny.small_sd1(), tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="session")
def known(checkpoint, once) -> Path:
    """What a plan finds out of the package's code and remembers."""
    place = once("known", lambda place: Project.lay_out(place / "project", place / "cache", checkpoint).plan(REPORT))
    return place / "project" / KNOWN


@pytest.fixture
def fresh(checkpoint, known, tmp_path) -> Project:
    """A project in which nothing was baked yet."""
    project = Project.lay_out(tmp_path / "project", tmp_path / "cache", checkpoint)
    shutil.copytree(known, project.directory / KNOWN)
    return project


@pytest.fixture(scope="session")
def baked(checkpoint, once) -> Project:
    """A project whose report was baked, once for all of pytest's workers; for reading alone."""
    place = once("baked", lambda place: Project.lay_out(place / "project", place / "cache", checkpoint).bake(REPORT))
    return Project(place / "project", place / "cache")


@pytest.fixture
def project(baked, tmp_path) -> Project:
    """A copy of the baked project, and of its cache, to edit."""
    return baked.copy(tmp_path)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium where it is installed, else the one that `playwright install chromium` fetches."""
    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        except Error as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Chromium here (apt-get install chromium, or playwright install chromium): {error}")
        yield launched
        launched.close()
