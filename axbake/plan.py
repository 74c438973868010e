"""What a run would do, job by job, before it does it: `axbake plan [TARGET …] [Snakemake's options]`.

`snakemake -n` says which jobs would start. Most of them may only place a result from the build cache; whether one does is known
as soon as the content of its inputs is, and that of a job not yet run is known if its result is stored. So each job is

    stored   its results are placed from the build cache, in seconds
    build    it does its work, or a part of it, for the reason told, and for as long as the last time
    fetch    it downloads a checkpoint, whose SHA-256 the table tells beforehand, or not
    unknown  until another job has been built
    run      it does not go through the build cache
"""

import argparse
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from snakemake.api import DAGApi
from snakemake.cli import args_to_api, parse_args

from axbake.cache import Cache, Key, cache_directory, explain
from axbake.errors import AxbakeError
from axbake.jobs.identity import Files, Step, files_of, read_steps
from axbake.jobs.running import key_of, made_here, named_files

FETCH = "axbake.fetch.job.fetch_checkpoint"
KINDS = ("fetch", "stored", "build", "unknown", "run")


class PlanError(AxbakeError):
    """Snakemake makes no plan."""


@dataclass(frozen=True, eq=False)
class Job:
    """A job that Snakemake would start."""

    rule: str
    name: str  # rule and component, or graph
    inputs: Files  # without the settings
    outputs: Files
    settings: Path


@dataclass(frozen=True)
class Verdict:
    """What a job would do."""

    job: Job
    kind: str  # of KINDS
    name: str  # rule and component
    text: str  # why, or until when
    seconds: float | None  # that what is built of it took the last time


def pending_jobs(arguments: list[str]) -> list[Job]:
    """The jobs that `snakemake` with *arguments* would start, in no order.

    Raises:
        PlanError: Snakemake's own words.
    """
    workflows: list[Any] = []
    execute = DAGApi.execute_workflow

    def note(dag: DAGApi, *args: Any, **how: Any) -> None:
        execute(dag, *args, **how)
        workflows.append(dag.workflow_api._workflow)

    said = io.StringIO()
    try:
        # Nothing else that a dry run gives says which of a job's files has which name.
        with (
            mock.patch.object(DAGApi, "execute_workflow", note),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            parser, options = parse_args(["--dry-run", "--nolock", *arguments])
            done = args_to_api(options, parser)
    except SystemExit as error:
        raise PlanError(f"{_words(said)}\n{error}".strip()) from error
    if not done:
        raise PlanError(f"no plan, since snakemake says:\n{_words(said)}")
    return [job for workflow in workflows for one in workflow.dag.needrun_jobs(False) if (job := _job(one))]


def _words(said: io.StringIO) -> str:
    """What Snakemake said, without what it says of every run and where in its files it was."""
    chatter = ("Using ", "Assuming ", "Building DAG", "WorkflowError in file", '  File "')
    return "\n".join(line for line in said.getvalue().strip().splitlines() if not line.startswith(chatter))


def _job(job: Any) -> Job | None:
    """The job of Snakemake's; None for one that only gathers targets."""
    inputs = named_files(job.input)
    if "settings" not in inputs:
        return None
    (settings,) = inputs.pop("settings")
    of = next(
        (job.wildcards_dict[name] for name in ("graph", "component", "layout", "column") if name in job.wildcards_dict),
        None,
    )
    return Job(job.rule.name, "/".join(filter(None, [job.rule.name, of])), inputs, named_files(job.output), settings)


class Planner:
    """Verdicts on the jobs of one dry run."""

    def __init__(self, jobs: list[Job], cache: Cache):
        self.cache = cache
        self.entries = list(cache.entries())
        self.maker = {output: job for job in jobs for files in job.outputs.values() for output in files}
        self.digests: dict[Path, str] = {}  # of files that stored results would place
        self.verdicts: dict[Job, Verdict] = {}
        for job in jobs:
            self.judge(job)

    def judge(self, job: Job) -> Verdict:
        """The verdict on *job*, after those on the jobs whose outputs it reads."""
        if job not in self.verdicts:
            self.verdicts[job] = self._judge(job)
        return self.verdicts[job]

    def _judge(self, job: Job) -> Verdict:
        steps = read_steps(job.settings)
        if steps[0].function == FETCH:
            return self._fetch(job, steps[0].settings)
        found = [
            self._judge_step(job, step, reads, makes)
            for step, (reads, makes) in zip(steps, files_of(steps, job.inputs, job.outputs), strict=True)
            if step.cached
        ]
        if not found:
            return Verdict(job, "run", job.name, "always", None)
        kind = next(kind for kind in ("build", "unknown", "stored") if kind in [one for one, _, _ in found])
        texts = dict.fromkeys(text for one, text, _ in found if one == kind)
        if kind == "stored":
            texts = dict.fromkeys([max(texts)])  # when the last of them was built
        seconds = [time for one, _, time in found if one == kind]
        known = [time for time in seconds if time is not None]
        return Verdict(job, kind, job.name, "; ".join(texts), sum(known) if len(known) == len(seconds) else None)

    def _judge_step(self, job: Job, step: Step, reads: Files, makes: Files) -> tuple[str, str, float | None]:
        """Kind, reason and seconds of one step."""
        waits = self._unknown_inputs(job, step, reads)
        if waits:
            return "unknown", f"until {', '.join(waits)}", None
        outputs = [path for files in makes.values() for path in files]
        digests = {path: self.digests.get(path) or self.cache.sha256(path) for path in made_here(step, reads)}
        key = key_of(step, digests, outputs)
        if entry := self.cache.find(key):
            for output in outputs:
                self.digests[output] = entry.outputs[output.name].sha256
            return "stored", f"built {entry.created}", entry.seconds
        return "build", explain(key, self.entries), self._last_time(key)

    def _fetch(self, job: Job, settings: dict) -> Verdict:
        """The verdict on a download; what the table's whole digest tells of it is known from now on."""
        if len(settings["sha256"]) == 64:
            self.digests |= dict.fromkeys(job.outputs["checkpoint"], settings["sha256"])
        return Verdict(job, "fetch", job.name, f"from {settings['source']}", None)

    def _unknown_inputs(self, job: Job, step: Step, reads: Files) -> list[str]:
        """Jobs that must be built before the content of what *step* reads is known; this one, where a step before must be."""
        read = [path for path in made_here(step, reads) if path in self.maker]
        verdicts = {path: None if self.maker[path] is job else self.judge(self.maker[path]) for path in read}
        return list(
            dict.fromkeys(v.name if v else job.name for path, v in verdicts.items() if path not in self.digests)
        )

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
    return "\n".join([*lines, total(verdicts)])


def total(verdicts: list[Verdict]) -> str:
    """The plan in a line."""
    count = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in KINDS}
    known = [verdict.seconds for verdict in verdicts if verdict.kind == "build" and verdict.seconds is not None]
    new = count["build"] - len(known)
    time = f"about {sum(known):,.0f} s as the last time" + (f", and {new} never built before" if new else "")
    fetched = f"{count['fetch']} to fetch, " if count["fetch"] else ""
    return (
        f"{len(verdicts)} jobs: {fetched}{count['stored']} stored, {count['build']} to build ({time}),"
        f" {count['unknown']} unknown until those are built, {count['run']} that always run."
        if verdicts
        else "Nothing to be done: all results are there and up to date."
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake plan` takes besides Snakemake's options."""
    parser.usage = "axbake plan [TARGET …] [Snakemake's options]"


def run(options: argparse.Namespace) -> int:
    """Print the plan of what `snakemake` with the same arguments would do.

    Raises:
        PlanError
    """
    planner = Planner(pending_jobs(options.given), Cache(cache_directory(None)))
    print(show(list(planner.verdicts.values())))
    return 0
