"""Forecast against truth of a bake that is done: of each step, and of all.

    python bench/forecast.py PROJECT MODEL [--cores 2] [--since 2026-01-31T12:00:00]

PROJECT is a directory with config and results in which MODEL was baked; the build cache is AXBAKE_CACHE's or the user's. The
forecast is that of a machine that has built only what was in the cache before the bake began; so an empty cache gives that of
the costs that are committed. Truth is what each job's log says. Only steps that the bake built count; --since, in UTC, leaves out
what earlier bakes built.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from axbake.cache import Cache, cache_directory
from axbake.forecast.history import builds_in
from axbake.forecast.left import run_time
from axbake.forecast.machine import Machine
from axbake.forecast.rows import bake_of
from axbake.jobs.identity import read_steps
from axbake.jobs.record import read_records
from axbake.jobs.running import name_of
from axbake.plan import dry_run

ROOT = Path(__file__).parents[1]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("project", type=Path)
    arguments.add_argument("model")
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--since", default="")
    options = arguments.parse_args()
    os.chdir(options.project)
    command = ["--snakefile", ROOT / "Snakefile", "--cores", options.cores, "--forceall"]
    run = dry_run([*map(str, command), "--", f"results/{options.model}/report.html"])
    built = {
        (record.step, record.component): record
        for job in run.jobs
        for record in read_records(job.log)
        if not record.stored and record.made > options.since
    }
    cache, began = Cache(cache_directory(None)), min(record.made for record in built.values())
    before = [entry for entry in cache.entries() if entry.created < began]
    machine = Machine(builds_in(cache, before, cores=run.cores))
    bake = bake_of(run.models[options.model], cores=run.cores)
    print(f"{len(before)} builds before; the machine took {machine.factor:.2f} times what is usual for them\n")
    print("| step | forecast | truth | forecast : truth |\n|---|---:|---:|---:|")
    sums, seconds = [0.0, 0.0], {}
    for number, job in enumerate(run.jobs):
        steps = [(name_of(step), step.component) for step in read_steps(job.settings)]
        steps = [step for step in steps if step in built]
        if steps:
            seconds[number] = machine.job_seconds(steps, bake)
        for step in steps:
            told, truth = machine.seconds(*step, bake), built[step].work_seconds
            sums = [sums[0] + told, sums[1] + truth]
            print(line("/".join(filter(None, step)), told, truth))
    print(line("all steps", *sums))
    makers = {path: number for number, job in enumerate(run.jobs) for files in job.outputs.values() for path in files}
    needs = {
        number: [makers[path] for files in job.inputs.values() for path in files if path in makers]
        for number, job in enumerate(run.jobs)
    }
    shares = {number: min(job.threads, run.cores) / run.cores for number, job in enumerate(run.jobs)}
    print(f"\nThe run, with what its jobs take to start: {run_time(seconds, shares, needs):.0f} s.")


def line(name: str, told: float, truth: float) -> str:
    """A line of the table."""
    return f"| {name} | {told:.1f} s | {truth:.1f} s | {(told + 0.1) / (truth + 0.1):.2f} |"


if __name__ == "__main__":
    main()
