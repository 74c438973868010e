# What the screen shows of a run. A dry run shows Snakemake's own words.

from snakemake.logging import logger

from axbake.cache import cache_directory
from axbake.jobs.terminal import Pending, show_made, show_progress


onstart:
    check_compiler()
    show_progress(
        logger,
        [
            Pending(job.jobid, job.rule.name, job.wildcards.get("component"), job.threads, bool(job.benchmark))
            for job in workflow.dag.needrun_jobs()
            if job.output
        ],
        cache_directory(None),
        cores=workflow.cores or 1,
    )


def say_what_was_made():
    """Say what a run of named targets made, and what to do with it."""
    if not any(job.rule.name == "all" for job in workflow.dag.jobs):
        logger.info(show_made([str(path) for job in workflow.dag.targetjobs for path in job.output]))
