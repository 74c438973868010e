# What the screen shows of a run. A dry run shows Snakemake's own words.

from axbake.jobs.checksums import hash_once
from axbake.jobs.interrupts import interrupt_in_a_word
from snakemake.exceptions import WorkflowError
from snakemake.io import _IOFile

if workflow.is_main_process:
    interrupt_in_a_word()  # before all else, since reading the rules and planning take seconds
    hash_once(_IOFile)

from collections import Counter
from pathlib import Path

from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from axbake.cache import Cache, cache_directory
from axbake.cache.errors import check_temporary_room
from axbake.cache.remote.remote import Remote
from axbake.forecast.rows import bake_of
from axbake.jobs.identity import read_steps
from axbake.jobs.running import name_of
from axbake.jobs.terminal import Pending, forecasts, header, install_screen, show_made, show_reports


def targets():
    """Paths that the run was asked for."""
    return [Path(path) for job in workflow.dag.targetjobs for path in (job.output or job.input)]


def reports():
    """Words on where the reports are that were asked for, of those that exist."""
    of_all = Path("results") / "report.html"
    if is_of_all() and of_all.is_file():
        return show_reports([of_all])
    return show_reports([path for path in targets() if path.name == "report.html" and path.is_file()])


def is_of_all():
    """Whether the run is of all rows."""
    return any(job.rule.name == "all" for job in workflow.dag.jobs)


# Before the other rules are read, so that what is wrong with config or table is wrapped too. Of a workflow that has this one as a
# module the screen is not ours.
SCREEN = None
if workflow.is_main_process and not workflow.output_settings.dryrun and len(workflow.modifier_stack) == 1:
    SCREEN = install_screen(logger, reports)


onstart:
    told(check_temporary_room)
    check_compiler()
    jobs = [job for job in workflow.dag.needrun_jobs() if job.output]
    counts = Counter(job.wildcards_dict["model"] for job in jobs)
    cache = cache_directory(None)
    logger.info(header(counts, cores=run_cores(), cache=cache, log=next(map(Path, log), None)))
    if remote := Cache(cache, Remote.from_environment).remote:
        logger.info(f"  {told(remote.refresh)}")
    if SCREEN:
        pending = pending_jobs(jobs)
        seconds = forecasts(Cache(cache), pending, cores=run_cores())
        SCREEN.expect(pending, seconds, cores=run_cores(), interrupted=INTERRUPTED)
        if not set(workflow.output_settings.quiet or ()) & {Quietness.ALL, Quietness.PROGRESS, Quietness.RULES}:
            SCREEN.open_display()


def pending_jobs(jobs):
    """What the screen knows of *jobs*."""
    models = {job.wildcards.model for job in jobs}
    bakes = {name: bake_of(MODELS[name], cores=run_cores()) for name in models}
    return [
        Pending(
            number=job.jobid,
            steps=tuple(names_of_steps(job)),
            threads=job.threads,
            needs=tuple(other.jobid for other in workflow.dag.dependencies[job]),
            bake=bakes[job.wildcards.model],
        )
        for job in jobs
    ]


def names_of_steps(job):
    """Step and component of each step of a job."""
    return [(name_of(one), one.component) for one in read_steps(Path(job.input.settings))]


def run_cores():
    """Processor cores that the run may use; one where jobs go elsewhere, and none are named."""
    try:
        return workflow.cores or 1
    except WorkflowError:
        return 1


def close_display():
    """End the live part of the screen; all that follows are lines."""
    if SCREEN:
        SCREEN.close_display()


def say_what_was_made():
    """Say what a run of named targets made, and what to do with it."""
    if not is_of_all():
        logger.info(show_made([str(path) for path in targets()]))
