"""A real Slurm of one node, for tests and measurements; `tests/services/local-slurm.sh` installs and starts it (Debian, root)."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.workflow.project import ROOT, Project

SERVICE = ROOT / "tests" / "services" / "local-slurm.sh"


def programs_of(project: Project) -> Path:
    """Directory of programs of *project*'s own, which go before all others."""
    return project.directory.with_name("programs")


@dataclass(frozen=True)
class Cluster:
    """A running Slurm, and what of the environment makes its commands find it."""

    environment: dict[str, str]  # SLURM_CONF, PATH

    def start(self, project: Project, *arguments: str) -> subprocess.Popen:
        """Snakemake, started in *project* with the profile for Slurm; its output and errors are one pipe."""
        profile = ["--workflow-profile", project.checkout / "profiles" / "slurm"]
        # This Slurm keeps no accounts, and its jobs take seconds.
        quick = ["--slurm-status-command=squeue", "--slurm-init-seconds-before-status-checks=2", "--latency-wait=20"]
        path = {"PATH": f"{programs_of(project)}:{self.environment['PATH']}"}
        return subprocess.Popen(
            [*project.command, *profile, *quick, *arguments],
            cwd=project.directory,
            env=project.environment | self.environment | path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, project: Project, *arguments: str, seconds: float) -> subprocess.CompletedProcess:
        """A whole run, for which at most *seconds* are waited."""
        process = self.start(project, *arguments)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def jobs(self, project: Project) -> list[str]:
        """State of each job of *project* that waits or runs."""
        command = ["squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING", "--format=%T %Z"]
        lines = subprocess.check_output(command, env=os.environ | self.environment, text=True)
        return [state for state, place in map(str.split, lines.splitlines()) if Path(place) == project.directory]


def free_ports() -> int:
    """The first of two TCP ports in a row that nobody listens at."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@contextmanager
def local_slurm() -> Iterator[Cluster]:
    """A Slurm in a directory of its own, which is removed at the end; its node claims more than this machine has."""
    # Not below pytest's directory: munged wants one that everybody may enter.
    directory = Path(tempfile.mkdtemp(prefix="axbake-slurm-"))
    settings = {"DIR": directory, "CPUS": 16, "MEM_MB": 512_000, "PORT": free_ports()}
    environment = os.environ | {f"LOCAL_SLURM_{name}": str(value) for name, value in settings.items()}
    try:
        done = subprocess.run([SERVICE, "start"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"no Slurm here: {done.stderr}"
        path = f"{directory}/bin:{os.environ['PATH']}"
        yield Cluster({"SLURM_CONF": str(directory / "slurm.conf"), "PATH": path})
    finally:
        subprocess.run([SERVICE, "wipe"], env=environment, check=False, capture_output=True)
