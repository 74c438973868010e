"""What a run would do, job by job, before it does it: `python -m axbake.plan [TARGET …] [Snakemake's options]`.

`snakemake -n` says which jobs would start. Most of them may only place a result from the build cache; whether one does is known
as soon as the content of its inputs is, and that of a job not yet run is known if its result is stored. So each job is

    stored   its result is placed from the build cache, in seconds
    build    it does its work, for the reason told, and for as long as the last time
    fetch    it downloads a checkpoint, whose SHA-256 the table tells beforehand, or not
    unknown  until another job has been built
    run      it does not go through the build cache
"""

import contextlib
import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from snakemake.cli import args_to_api, parse_args
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache import Cache, Key, cache_directory, explain
from axbake.errors import AxbakeError
from axbake.jobs.identity import Identity, read_identity
from axbake.jobs.running import key_of

FETCH = "axbake.fetch.job.fetch_checkpoint"
KINDS = ("fetch", "stored", "build", "unknown", "run")


class PlanError(AxbakeError):
    """Snakemake makes no plan."""


@dataclass(frozen=True)
class Job:
    """A job that Snakemake would start."""

    rule: str
    inputs: tuple[Path, ...]  # without the settings
    outputs: tuple[Path, ...]
    settings: Path


@dataclass(frozen=True)
class Verdict:
    """What a job would do."""

    job: Job
    kind: str  # of KINDS
    name: str  # step and component
    text: str  # why, or until when
    seconds: float | None  # that it took the last time


def pending_jobs(arguments: list[str]) -> list[Job]:
    """The jobs that `snakemake` with *arguments* would start, in no order.

    Raises:
        PlanError: Snakemake's own words.
    """
    started: list[logging.LogRecord] = []

    def note(record: logging.LogRecord) -> bool:
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            started.append(record)
        return True

    # Snakemake tells of each job of a dry run in a log record; it takes handlers off its logger, but not filters.
    logger.addFilter(note)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parser, options = parse_args([*arguments, "--dry-run", "--nolock"])
            done = args_to_api(options, parser)
    except SystemExit as error:
        raise PlanError(f"{_words(said)}\n{error}".strip()) from error
    finally:
        logger.removeFilter(note)
    if not done:
        raise PlanError(f"no plan, since snakemake says:\n{_words(said)}")
    return [job for record in started if (job := _job(record))]


def _words(said: io.StringIO) -> str:
    """What Snakemake said, without what it says of every run and where in its files it was."""
    chatter = ("Using ", "Assuming ", "Building DAG", "WorkflowError in file", '  File "')
    return "\n".join(line for line in said.getvalue().strip().splitlines() if not line.startswith(chatter))


def _job(record: logging.LogRecord) -> Job | None:
    """The job that a record of Snakemake's tells of; None for one that only gathers targets."""
    told = vars(record)
    inputs = [Path(path) for path in told["input"]]
    settings = [path for path in inputs if path.parts[0] == "results" and path.parts[2:3] == ("settings",)]
    if not settings:
        return None
    read = tuple(path for path in inputs if path not in settings)
    return Job(told["rule_name"], read, tuple(Path(path) for path in told["output"]), settings[0])


class Planner:
    """Verdicts on the jobs of one dry run."""

    def __init__(self, jobs: list[Job], cache: Cache):
        self.cache = cache
        self.entries = list(cache.entries())
        self.maker = {output: job for job in jobs for output in job.outputs}
        self.digests: dict[Path, str] = {}  # of files that stored results would place
        self.verdicts: dict[Job, Verdict] = {}
        for job in jobs:
            self.judge(job)

    def judge(self, job: Job) -> Verdict:
        """The verdict on *job*, after those on the jobs whose outputs it reads."""
        if job not in self.verdicts:
            self.verdicts[job] = self._judge(job, read_identity(job.settings))
        return self.verdicts[job]

    def _judge(self, job: Job, identity: Identity) -> Verdict:
        name = "/".join(filter(None, [job.rule, identity.component]))
        if identity.function == FETCH:
            return self._fetch(job, name, identity.settings)
        if not identity.cached:
            return Verdict(job, "run", name, "always", None)
        waits = self._unknown_inputs(job, identity)
        if waits:
            return Verdict(job, "unknown", name, f"until {', '.join(waits)}", None)
        key = self._key(job, identity)
        if entry := self.cache.find(key):
            for output in job.outputs:
                self.digests[output] = entry.outputs[output.name].sha256
            return Verdict(job, "stored", name, f"built {entry.created}", entry.seconds)
        return Verdict(job, "build", name, explain(key, self.entries), self._last_time(key))

    def _fetch(self, job: Job, name: str, settings: dict) -> Verdict:
        """The verdict on a download; what the table's whole digest tells of it is known from now on."""
        if len(settings["sha256"]) == 64:
            self.digests |= {output: settings["sha256"] for output in job.outputs if output.name == "checkpoint"}
        return Verdict(job, "fetch", name, f"from {settings['source']}", None)

    def _unknown_inputs(self, job: Job, identity: Identity) -> list[str]:
        """Jobs that must be built before the content of *job*'s inputs is known."""
        read = [path for path in self._read(job, identity) if path in self.maker]
        verdicts = {path: self.judge(self.maker[path]) for path in read}
        return list(dict.fromkeys(verdict.name for path, verdict in verdicts.items() if path not in self.digests))

    def _read(self, job: Job, identity: Identity) -> list[Path]:
        """Inputs whose content enters the result, but for the user's own files, which the identity tells."""
        results = [path for path in job.inputs if path.parts[0] == "results"]
        return [path for path in results if path.parts[2] not in identity.gates]

    def _key(self, job: Job, identity: Identity) -> Key:
        paths = self._read(job, identity)
        digests = {path: self.digests.get(path) or self.cache.sha256(path) for path in paths}
        return key_of(identity, digests, job.outputs)

    def _last_time(self, key: Key) -> float | None:
        """Seconds that the newest build of the same step and component took."""
        same = [entry for entry in self.entries if (entry.key.step, entry.key.component) == (key.step, key.component)]
        return max(same, key=lambda entry: entry.created).seconds if same else None


def show(verdicts: list[Verdict]) -> str:
    """The plan for people: a line a job, and the sum."""
    lines = []
    for verdict in verdicts:
        time = f"{verdict.seconds:,.0f} s" if verdict.kind == "build" and verdict.seconds is not None else ""
        lines.append(f"{verdict.kind:8} {verdict.name:30} {time:>9}  {verdict.text}".rstrip())
    count = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in KINDS}
    known = [verdict.seconds for verdict in verdicts if verdict.kind == "build" and verdict.seconds is not None]
    new = count["build"] - len(known)
    total = f"about {sum(known):,.0f} s as the last time" + (f", and {new} never built before" if new else "")
    fetched = f"{count['fetch']} to fetch, " if count["fetch"] else ""
    lines.append(
        f"{len(verdicts)} jobs: {fetched}{count['stored']} stored, {count['build']} to build ({total}),"
        f" {count['unknown']} unknown until those are built, {count['run']} that always run."
        if verdicts
        else "Nothing to be done: all results are there and up to date."
    )
    return "\n".join(lines)


def main() -> int:
    """Print the plan of what `snakemake` with the same arguments would do."""
    try:
        planner = Planner(pending_jobs(sys.argv[1:]), Cache(cache_directory(None)))
    except AxbakeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(show(list(planner.verdicts.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
