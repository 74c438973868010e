# What the screen shows of a run. A dry run shows Snakemake's own words.

from axbake.cache import cache_directory
from axbake.jobs.identity import read_steps
from axbake.jobs.terminal import Pending, show_made, show_progress


onstart:
    check_compiler()
    show_progress(
        logger,
        [
            Pending(job.jobid, tuple(names_of_steps(job)), job.threads)
            for job in workflow.dag.needrun_jobs()
            if job.output
        ],
        cache_directory(None),
        cores=run_cores(),
        interrupted=INTERRUPTED,
    )


def names_of_steps(job):
    """Step and component of each step of a job that goes through the build cache."""
    return [
        (one.function.rpartition(".")[2], one.component) for one in read_steps(Path(job.input.settings)) if one.cached
    ]


def run_cores():
    """Processor cores that the run may use; one where jobs go elsewhere, and none are named."""
    try:
        return workflow.cores or 1
    except WorkflowError:
        return 1


def say_what_was_made():
    """Say what a run of named targets made, and what to do with it."""
    if not any(job.rule.name == "all" for job in workflow.dag.jobs):
        logger.info(show_made([str(path) for job in workflow.dag.targetjobs for path in job.output]))
