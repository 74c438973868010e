"""Jobs and Snakemake are killed at seeded moments, and run again: same results, and nothing built twice.

`python -m tests.workflow.kills 50` kills each of the three ways at 50 moments while a model is compiled (what goes before is
stored), and prints what it saw; half an hour. The tests do so at one moment.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import tiny
from tests.workflow.project import Project

TARGET = "results/tiny/text_encoder.axmodel"
# What is killed with SIGKILL
WAYS = {
    "job": "the running job's process",
    "snakemake": "Snakemake; its job goes on",
    "everything": "Snakemake and all below it, and `.snakemake` is lost",
}
# Put into the build cache's code: it writes down every build that begins, with those still at it, and every one that was stored.
TRACER = """

def _alive(process: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(Path("/proc", process, "cmdline").read_bytes())  # a zombie's is empty
    return False


def _trace(what: str, key: Key) -> None:
    trace = Path({trace!r})
    lines = [line.split()[:3] for line in trace.read_text().splitlines()] if trace.exists() else []
    ended = {{process for what, _, process in lines if what == "stored"}}
    at_it = {{process for _, digest, process in lines if digest == key.digest and _alive(process)}}
    with trace.open("a") as file:
        file.write(" ".join([what, key.digest, str(os.getpid()), *(at_it - ended - {{str(os.getpid())}})]) + "\\n")
"""


def traced(project: Project, checkout: Path, trace: Path) -> Project:
    """*project* run by a copy of its checkout whose build cache writes down its builds in *trace*."""
    project = project.copy_checkout(checkout)
    store = "axbake/cache/store.py"
    project.edit_checkout(
        store,
        "            _run(key, build, made)\n",
        '            _trace("begun", key)\n            _run(key, build, made)\n',
    )
    stored = "            return entry\n        except OSError as error:"
    project.edit_checkout(store, stored, f'            _trace("stored", key)\n{stored}')
    path = checkout / store
    path.write_text(path.read_text() + TRACER.format(trace=str(trace)))
    return project


def faults(trace: Path) -> list[str]:
    """Builds that began while another one of the same key was at it, or after one had been stored."""
    found, stored = [], set()
    for line in trace.read_text(encoding="utf-8").splitlines():
        what, key, _, *others = line.split()
        if what == "stored":
            stored.add(key)
        elif key in stored or others:
            found.append(line)
    return found


def digests(project: Project) -> dict[str, str]:
    """SHA-256 of every finished result."""
    base = project.directory / "results"
    return {name: hashlib.sha256((base / name).read_bytes()).hexdigest() for name in project.results()}


def kill(project: Project, way: str, moment: float, ends: float) -> None:
    """Start a run, and kill after *moment* seconds what *way* says; *ends*: seconds after which no job is waited for."""
    with tempfile.TemporaryFile() as said:
        running = subprocess.Popen(
            [*project.command, TARGET],
            cwd=project.directory,
            env=project.environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        time.sleep(moment)
        if way == "job":
            # Only a job's own process: between two jobs, the next one.
            while running.poll() is None and not (jobs := list(_jobs(running.pid))) and time.sleep(0.05) is None:
                pass
            for process in jobs if running.poll() is None else []:
                _kill(process)
            running.wait(ends)
        elif way == "snakemake":
            _kill(running.pid)
            running.wait()
        else:
            for process in [running.pid, *_below(running.pid)]:
                _kill(process)
            running.wait()
            shutil.rmtree(project.directory / ".snakemake", ignore_errors=True)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _below(process: int) -> Iterator[int]:
    """Processes that *process* started, and those that they started."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()
    for child in map(int, found):
        yield child
        yield from _below(child)


def _jobs(process: int) -> Iterator[int]:
    """Processes below *process* that run a rule's script."""
    for child in _below(process):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if ".snakemake/scripts/" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8"):
                yield child


def run_again(project: Project) -> None:
    """As a user would after a crash: unlock, and run."""
    project.bake("--unlock")
    project.bake(TARGET)


def orphans_end(project: Project) -> None:
    """Wait until jobs that a killed Snakemake left have ended."""
    while subprocess.run(["pgrep", "-f", f"{project.directory}/"], capture_output=True).returncode == 0:
        time.sleep(0.2)


class Battery:
    """Kills in projects below a directory, each compared with a run that nobody disturbed."""

    def __init__(self, directory: Path, checkpoint: Path, cache: Path | None = None) -> None:
        self.directory, self.checkpoint = directory, checkpoint
        self.cache = cache  # that each project begins with a copy of
        undisturbed, _ = self._fresh("undisturbed")
        undisturbed.bake(TARGET)
        self.expected = digests(undisturbed)
        shutil.rmtree(undisturbed.cache / "entries" / "compile_model")
        self.cache = undisturbed.cache
        compiled, _ = self._fresh("compiled")
        self.seconds = _time(compiled)

    def _fresh(self, name: str) -> tuple[Project, Path]:
        place = self.directory / name
        trace = place / "trace"
        project = Project.lay_out(place / "project", self.cache or place / "cache", self.checkpoint)
        if self.cache:
            project = project.copy_cache(place / "cache")
        return traced(project, place / "checkout", trace), trace

    def trial(self, way: str, moment: float) -> list[str]:
        """What is wrong after a kill at *moment*, a share of the undisturbed run's time; empty if nothing is."""
        project, trace = self._fresh(f"{way}-{moment:.4f}")
        kill(project, way, moment * self.seconds, ends=10 * self.seconds)
        run_again(project)
        orphans_end(project)
        wrong = [f"{line}: built twice" for line in faults(trace)]
        found = digests(project)
        names = found.keys() | self.expected.keys()
        wrong += [f"{name}: another result" for name in names if found.get(name) != self.expected.get(name)]
        wrong += [f"{path}: left behind" for path in (project.directory / "results").rglob(".*")]
        shutil.rmtree(self.directory / f"{way}-{moment:.4f}")
        return wrong


def moments(way: str, count: int) -> list[float]:
    """*count* shares of a run's time, the same ones each time, spread over all of it."""
    seeded = random.Random(way)
    return [(number + seeded.random()) / count for number in range(count)]


def _time(project: Project) -> float:
    """Seconds that baking the target takes, started as `kill` starts it."""
    started = time.monotonic()
    subprocess.run(
        [*project.command, TARGET], cwd=project.directory, env=project.environment, capture_output=True, check=True
    )
    return time.monotonic() - started


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        battery = Battery(directory, tiny.save(tiny.small_sd1(), directory / "tiny.safetensors"))
        print(f"undisturbed: {battery.seconds:.1f} s, {len(battery.expected)} results", flush=True)
        for way, words in WAYS.items():
            wrong = {moment: battery.trial(way, moment) for moment in moments(way, count)}
            bad = {moment: lines for moment, lines in wrong.items() if lines}
            print(f"{words}: killed at {count} moments, {len(bad)} times something was wrong", flush=True)
            for moment, lines in bad.items():
                print(f"  at {moment:.4f}: {'; '.join(lines)}", flush=True)


if __name__ == "__main__":
    main()
