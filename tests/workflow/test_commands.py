"""Every command of README and tutorial is run as a reader would run it, in a clone with the tiny model, or it says why not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_docs import DOCS, ROOT, shell
from tests.workflow.project import Project

COMMANDS = list(dict.fromkeys(shell((ROOT / "README.md").read_text()) + shell((DOCS / "tutorial.md").read_text())))
# Command -> why no test can run it here. What Make would run is still looked at.
NOT_RUN = {
    "make demo": "installs from the network and bakes for minutes; the rules are those that bake the tiny model",
    "make test": "is what runs this test",
    ".venv/bin/axbake add https://civitai.com/models/4384/dreamshaper": "needs Civitai",
    ".venv/bin/snakemake --cores 4 results/NAME/board/report.html": "needs the real Pulsar2 and a board",
}
RUN = [command for command in COMMANDS if command not in NOT_RUN]


@pytest.fixture(scope="module")
def clone(baked, tmp_path_factory) -> Project:
    """A clone in which the tiny model stands in the table as `NAME` would, is baked, and `.venv` is what these tests run in."""
    directory = tmp_path_factory.mktemp("clone")
    Project(directory, baked.cache).copy_checkout(directory)
    shutil.copytree(baked.directory, directory, symlinks=True, dirs_exist_ok=True)
    for name in ("Makefile", "pyproject.toml", "requirements-dev.lock"):
        shutil.copy2(ROOT / name, directory)
    (directory / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (directory / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    for name in ("installed", "developer"):
        (directory / ".venv" / name).touch()
    return Project(directory, baked.cache, checkout=directory)


def say(clone: Project, command: str) -> str:
    # What a `make test` around this run says of itself would change what `make` prints.
    own = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        ["bash", "-euc", command.replace("NAME", "tiny")],
        cwd=clone.directory,
        env=environment | {"AXBAKE_CACHE": str(clone.cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_exception_is_a_command_of_the_pages():
    assert set(NOT_RUN) <= set(COMMANDS)
    assert len(RUN) >= 3


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_pages_works(clone, command):
    said = say(clone, command)

    assert "Traceback" not in said


@pytest.mark.parametrize("command", [command for command in NOT_RUN if command.startswith("make ")])
def test_make_would_run_programs_of_the_clone(clone, command):
    said = say(clone, command.replace("make", "make --dry-run", 1))

    assert ".venv/bin/" in said
    assert "pip install" not in said  # .venv is there


def test_the_report_over_all_models_has_what_the_pages_promise(clone):
    said = say(clone, "make report")

    assert said.startswith("results/report.html: 1 model;")
    assert "tiny/report.html" in (clone.directory / "results" / "report.html").read_text()


@pytest.mark.parametrize("name", ["My Projects", "it's", 'a"b'])
def test_a_checkout_whose_path_no_shell_takes_is_refused_before_anything_is_installed(name, clone, tmp_path):
    """Snakemake writes Python's path into commands as it is (snakemake/snakemake#2645)."""
    place = tmp_path / name
    (place / "venv").mkdir(parents=True)
    shutil.copy2(ROOT / "Makefile", place)
    for part in ("bin", "lib", "pyvenv.cfg"):
        (place / "venv" / part).symlink_to(Path(sys.prefix) / part)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    snakemake = [place / "venv" / "bin" / "python", "-m", "snakemake", *clone.command[1:], "--dry-run"]

    made = subprocess.run(["make", "demo"], cwd=place, **how)
    run = subprocess.run(snakemake, cwd=clone.directory, env=clone.environment, **how)

    assert (
        made.returncode != 0
        and "has a space, a quote or a backslash, with which Snakemake cannot start jobs" in made.stdout
    )
    assert not (place / ".venv").exists()
    assert run.returncode != 0 and "the path of Python has a space, or another character" in run.stdout
