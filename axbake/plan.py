"""Show what a run would do, job by job, without doing it: `axbake plan [TARGET …] [Snakemake's options]`.

`snakemake -n` says which jobs would start. Many of them only place a result from the build cache. Whether a job does is known
when the content of its inputs is known; the content of a job's result is known beforehand if it is stored. So each job is

    stored   its results are placed from the build cache, in seconds
    build    it does its work, or a part of it, for the given reason
    fetch    it downloads a checkpoint, whose SHA-256 may be in the table
    unknown  until another job has been built
    run      it does not use the build cache

with a forecast of its time (`axbake.forecast`).
"""

import argparse
import contextlib
import functools
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from snakemake.api import DAGApi
from snakemake.cli import args_to_api, parse_args

from axbake.cache import Cache, Entry, cache_directory, explain
from axbake.cache.remote.index import size_of_outputs
from axbake.cache.remote.remote import Remote
from axbake.errors import AxbakeError
from axbake.forecast.history import builds_in
from axbake.forecast.left import run_time
from axbake.forecast.machine import Machine
from axbake.forecast.rows import bake_of
from axbake.forecast.work import Bake
from axbake.jobs.identity import Files, Step, files_of, read_steps
from axbake.jobs.record import last_made
from axbake.jobs.running import key_of, made_here, name_of, named_files
from axbake.model import Model
from axbake.units import duration, size_of

FETCH = "axbake.fetch.job.fetch_checkpoint"
REMOTE = "(remote)"  # behind *stored*
KINDS = ("fetch", "stored", "build", "unknown", "run")


class PlanError(AxbakeError):
    """Snakemake cannot make a plan."""


@dataclass(frozen=True, eq=False)
class Job:
    """A job that Snakemake would start."""

    rule: str
    name: str  # rule and component, or graph
    inputs: Files  # without the settings
    outputs: Files
    settings: Path
    log: Path
    model: str  # its row
    threads: int


@dataclass(frozen=True)
class Run:
    """What Snakemake would do."""

    jobs: list[Job]  # in no order
    models: dict[str, Model]  # rows of the table
    cores: int  # that it may use


@dataclass(frozen=True)
class Verdict:
    """What a job would do."""

    job: Job
    kind: str  # of KINDS
    name: str  # rule and component
    text: str  # why, or until when
    seconds: float  # forecast, if what is unknown of it turns out to be stored
    most: float  # the same, if it has to be built


def pending_jobs(arguments: list[str]) -> list[Job]:
    """The jobs that `snakemake` with *arguments* would start, in no order.

    Raises:
        PlanError: Snakemake's own words.
    """
    return dry_run(arguments).jobs


def dry_run(arguments: list[str]) -> Run:
    """What `snakemake` with *arguments* would do; on all cores, if they name no number of them, or of jobs.

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
            # A dry run would take one.
            cores = next(one for one in (options.cores, options.jobs, os.cpu_count(), 1) if isinstance(one, int))
            options.cores = cores
            done = args_to_api(options, parser)
    except SystemExit as error:
        raise PlanError(f"{_words(said)}\n{error}".strip()) from error
    if not done:
        raise PlanError(f"no plan, because snakemake reported:\n{_words(said)}")
    jobs = [job for workflow in workflows for one in workflow.dag.needrun_jobs(False) if (job := _job(one))]
    models = {name: model for workflow in workflows for name, model in workflow.globals["MODELS"].items()}
    return Run(jobs, models, cores)


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
    return Job(
        rule=job.rule.name,
        name="/".join(filter(None, [job.rule.name, of])),
        inputs=inputs,
        outputs=named_files(job.output),
        settings=settings,
        log=Path(job.log[0]),
        model=job.wildcards_dict["model"],
        threads=job.threads,
    )


class Planner:
    """Verdicts on the jobs of one dry run."""

    def __init__(self, run: Run, cache: Cache):
        self.run = run
        self.cache = cache
        self.entries = list(cache.entries())
        self.machine = Machine(builds_in(cache, self.entries, cores=run.cores))
        self.maker = {output: job for job in run.jobs for files in job.outputs.values() for output in files}
        self.digests: dict[Path, str] = {}  # of files that stored results would place
        self.verdicts: dict[Job, Verdict] = {}
        self.stored: list[Entry] = []  # that the local cache has
        for job in run.jobs:
            self.judge(job)

    @functools.cached_property
    def total(self) -> tuple[float, float]:
        """Seconds that the whole run takes: if all that is unknown turns out to be stored, and if it has to be built."""
        number = {job: place for place, job in enumerate(self.verdicts)}
        shares = {place: min(job.threads, self.run.cores) / self.run.cores for job, place in number.items()}
        needs = {place: [number[one] for one in self._makers(job)] for job, place in number.items()}
        least = {number[job]: verdict.seconds for job, verdict in self.verdicts.items()}
        most = {number[job]: verdict.most for job, verdict in self.verdicts.items()}
        return run_time(least, shares, needs), run_time(most, shares, needs)

    def _makers(self, job: Job) -> set[Job]:
        """Jobs that make what *job* reads."""
        return {self.maker[path] for files in job.inputs.values() for path in files if path in self.maker}

    @functools.cache  # noqa: B019, planners are few
    def _bake(self, model: str) -> Bake:
        return bake_of(self.run.models[model], cores=self.run.cores)

    def judge(self, job: Job) -> Verdict:
        """The verdict on *job*, after those on the jobs whose outputs it reads."""
        if job not in self.verdicts:
            self.verdicts[job] = self._judge(job)
        return self.verdicts[job]

    def _judge(self, job: Job) -> Verdict:
        steps = read_steps(job.settings)
        if steps[0].function == FETCH:
            return self._fetch(job, steps[0])
        last = last_made(job.log)
        found = [
            self._judge_step(job, step, reads, makes, last)
            for step, (reads, makes) in zip(steps, files_of(steps, job.inputs, job.outputs), strict=True)
        ]
        kinds = [kind for kind, _ in found]
        kind = next(kind for kind in ("build", "unknown", "stored", "run") if kind in kinds)
        texts = dict.fromkeys(text for one, text in found if one == kind)
        if kind == "stored":
            fetched = [text for text in texts if text.startswith(REMOTE)]
            texts = dict.fromkeys(fetched or [max(texts)])  # when the last of them was built
        least, most = (self._seconds(job, steps, kinds, of) for of in (("build", "run"), ("build", "run", "unknown")))
        return Verdict(job, kind, job.name, "; ".join(texts), least, most)

    def _seconds(self, job: Job, steps: list[Step], kinds: list[str], of: tuple[str, ...]) -> float:
        """Forecast of a job of which the steps of these kinds do their work."""
        work = [(name_of(step), step.component) for step, kind in zip(steps, kinds, strict=True) if kind in of]
        return self.machine.job_seconds(work, self._bake(job.model))

    def _judge_step(self, job: Job, step: Step, reads: Files, makes: Files, last: Mapping) -> tuple[str, str]:
        """Kind of one step, and the reason; *last*: when the results were built that the job had before, by step."""
        if not step.cached:
            return "run", "always"
        waits = self._unknown_inputs(job, step, reads)
        if waits:
            return "unknown", f"until {', '.join(waits)}"
        outputs = [path for files in makes.values() for path in files]
        digests = {path: self.digests.get(path) or self.cache.sha256(path) for path in made_here(step, reads)}
        key = key_of(step, digests, outputs)
        if entry := self.cache.find(key):
            self.stored.append(entry)
            for output in outputs:
                self.digests[output] = entry.outputs[output.name].sha256
            return "stored", f"built {entry.created}"
        brought = self.cache.remote.outputs(key) if self.cache.remote else None
        if brought and {output.name for output in outputs} == brought.keys():
            for output in outputs:
                self.digests[output] = brought[output.name].sha256
            return "stored", f"{REMOTE} {size_of(size_of_outputs(brought))} to fetch"
        return "build", explain(key, self.entries, last=last.get((key.step, key.component), ""))

    def _fetch(self, job: Job, step: Step) -> Verdict:
        """The verdict on a download; what the table's whole digest tells of it is known from now on."""
        settings = step.settings
        if len(settings["sha256"]) == 64:
            self.digests |= dict.fromkeys(job.outputs["checkpoint"], settings["sha256"])
        seconds = self._seconds(job, [step], ["run"], ("run",))
        return Verdict(job, "fetch", job.name, f"from {settings['source']}", seconds, seconds)

    def _unknown_inputs(self, job: Job, step: Step, reads: Files) -> list[str]:
        """Jobs that must be built before the content of what *step* reads is known; this one, where a step before must be."""
        read = [path for path in made_here(step, reads) if path in self.maker]
        verdicts = {path: None if self.maker[path] is job else self.judge(self.maker[path]) for path in read}
        return list(
            dict.fromkeys(v.name if v else job.name for path, v in verdicts.items() if path not in self.digests)
        )


def show(planner: Planner) -> str:
    """The plan for people: one line per job, and the sum."""
    verdicts = list(planner.verdicts.values())
    if not verdicts:
        return "Nothing to be done: all results are up to date."
    lines = []
    for verdict in verdicts:
        time = f"{'up to ' if verdict.seconds < verdict.most else ''}{duration(verdict.most)}"
        lines.append(f"{verdict.kind:8} {verdict.name:30} {time:>18}  {verdict.text}".rstrip())
    return "\n".join([*lines, total(planner)])


def total(planner: Planner) -> str:
    """The plan as a whole: its jobs, and how long they take."""
    verdicts = planner.verdicts.values()
    count = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in KINDS}
    fetched = f"{count['fetch']} to fetch, " if count["fetch"] else ""
    jobs = (
        f"{len(verdicts)} jobs: {fetched}{count['stored']} stored, {count['build']} to build, {count['unknown']} "
        f"unknown until those are built, {count['run']} that always run."
    )
    least, most = map(duration, planner.total)
    cores = f"{planner.run.cores} core{'s' if planner.run.cores > 1 else ''}"
    if count["unknown"] and least != most:
        return f"{jobs}\nOn {cores} between {least} (if all unknown results are stored) and {most}."
    return f"{jobs}\nOn {cores} about {most}."


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake plan` takes besides Snakemake's options."""
    parser.usage = "axbake plan [TARGET …] [Snakemake's options]"


def run(options: argparse.Namespace) -> int:
    """Print the plan of what `snakemake` with the same arguments would do.

    Raises:
        PlanError
    """
    run = dry_run(options.given)  # which sets what the config says of the caches
    cache = Cache(cache_directory(None), Remote.from_environment)
    said = cache.remote.refresh() if cache.remote else ""
    print(show(Planner(run, cache)))
    if said:
        print(f"{said[0].upper()}{said[1:]}.")
    return 0
