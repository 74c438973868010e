"""On a real Slurm of one node: the command of the pages; a job short of memory or time; an interrupt cancels, kills cost nothing.

`tests/services/local-slurm.sh` installs Slurm (Debian, root) and starts it in a directory of its own.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from axbake.project import SNAKEFILE
from tests.workflow.cluster import Cluster, local_slurm, programs_of
from tests.workflow.kills import faults, traced
from tests.workflow.project import ROOT, ROW, Project
from tests.workflow.test_batch import summary

TARGET = "results/tiny/text_encoder.axmodel"
LONGEST = 600  # seconds that anything is waited for; machines that run tests are slow
# A compiler for tests that never ends with the text encoder, and fails with all others
SLEEPER = """#!/bin/sh
[ "$1" = version ] && echo "version: 4.2" && exit 0
case "$*" in *text_encoder*) echo $$ > "$(dirname "$0")/sleeper.pid"; exec sleep 600;; esac
exit 1
"""


def install_sleeper(project: Project) -> Path:
    """Give *project* a compiler that never ends; the file that will hold its process' number."""
    place = programs_of(project)
    place.mkdir()
    (place / "pulsar2").write_text(SLEEPER)
    (place / "pulsar2").chmod(0o755)
    project.edit("config/config.yaml", "toolchain: emulator", "toolchain: native")
    return place / "sleeper.pid"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with local_slurm() as running:
        yield running


@pytest.fixture
def uncompiled(project) -> Project:
    """A baked project whose text encoder is not compiled, nor stored so."""
    (project.directory / TARGET).unlink()
    (entries,) = project.cache.glob("entries/compile_model")
    shutil.rmtree(entries)
    return project


def wait_until(what: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until *what* holds; *process* has to be running until then."""
    ends = time.monotonic() + LONGEST
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.2)


def test_the_command_of_the_pages_bakes_two_rows(cluster, project):
    """As printed; `docs/cluster.md` has the profile edited where the cluster keeps no accounts, as this one does."""
    project.write_rows(ROW, ROW | {"model": "other", "seed": "8"})
    shutil.copytree(ROOT / "profiles", project.directory / "profiles")
    project.edit("profiles/slurm/config.yaml", "# slurm-status-command: squeue", "slurm-status-command: squeue")
    project.edit("profiles/slurm/config.yaml", "status-checks: 20", "status-checks: 2")
    (project.directory / "Snakefile").write_text(SNAKEFILE)
    (project.directory / ".venv").symlink_to(sys.prefix)
    (command,) = re.findall(
        r"^```sh\n(.*)\n```", (ROOT / "docs" / "cluster.md").read_text().partition("In this profile")[0], re.M
    )

    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=project.directory,
        env=project.environment | cluster.environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST,
    )

    assert done.returncode == 0, done.stdout
    assert {name: row["state"] for name, row in summary(project).items()} == {"tiny": "done", "other": "done"}
    assert (project.directory / "results" / "other" / "report.html").is_file()


def test_a_compile_that_lacks_memory_is_tried_again_with_more_and_done(cluster, uncompiled):
    done = cluster.run(
        uncompiled, "--set-resources", "compile_model:mem_mb=120 * attempt ** 4", "--", TARGET, seconds=LONGEST
    )

    assert done.returncode == 0, done.stdout
    assert "FAILED: Compiling the text_encoder of tiny" in done.stdout
    assert "Slurm says FAILED: ended because memory ran out" in done.stdout
    assert "Trying to restart job" in done.stdout
    assert (uncompiled.directory / TARGET).is_file()
    # What the node stored, the next run finds, here as there.
    (uncompiled.directory / TARGET).unlink()
    assert "stored   compile_model/text_encoder" in uncompiled.planner(TARGET)


def test_a_compile_out_of_time_is_told_as_such_beside_those_that_failed_themselves(cluster, project):
    install_sleeper(project)

    # One minute for the compile that never ends; what fails has the time that it needs, however slow the machine is.
    minutes = "compile_model:runtime=1 if wildcards.graph == 'text_encoder' else 60"
    done = cluster.run(project, "--retries", "0", "--set-resources", minutes, seconds=LONGEST)

    assert done.returncode != 0
    failed = summary(project)["tiny"]
    assert failed["state"] == "failed"
    assert "compile_model: Slurm says TIMEOUT: ended by its time limit" in failed["why"]
    assert "compile_model: CompileError: unet: " in failed["why"]
    assert "logs/tiny/build/text_encoder.log" in failed["log"]
    assert "1 model: 1 failed." in done.stdout
    assert cluster.jobs(project) == []


def test_an_interrupt_cancels_the_jobs(cluster, project):
    sleeper = install_sleeper(project)
    running = cluster.start(project, TARGET)
    wait_until(sleeper.exists, running)

    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=LONGEST)

    assert running.returncode != 0, said
    ends = time.monotonic() + LONGEST
    while cluster.jobs(project) and time.monotonic() < ends:
        time.sleep(0.2)
    assert cluster.jobs(project) == []
    assert not Path("/proc", sleeper.read_text().strip()).exists()
    assert not (project.directory / TARGET).exists()


def test_after_a_kill_the_nodes_compile_is_found_by_a_run_here_and_not_done_twice(cluster, uncompiled, tmp_path):
    trace = tmp_path / "trace"
    project = traced(uncompiled, tmp_path / "checkout", trace)
    running = cluster.start(project, TARGET)
    wait_until(trace.exists, running)  # the node has begun to compile

    running.kill()
    running.communicate()
    project.bake("--unlock")
    project.bake(TARGET)  # on this machine, without Slurm, while the node's job may still be at it

    assert (project.directory / TARGET).is_file()
    assert faults(trace) == []
    assert [line.split()[0] for line in trace.read_text().splitlines()] == ["begun", "stored"]
