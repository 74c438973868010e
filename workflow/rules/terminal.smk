# What the screen shows of a run. A dry run shows Snakemake's own words.

from axbake.cache import cache_directory
from axbake.forecast.rows import bake_of
from axbake.jobs.identity import read_steps
from axbake.jobs.running import name_of
from axbake.jobs.terminal import Pending, show_made, show_progress


onstart:
    check_compiler()
    show_progress(logger, pending_jobs(), cache_directory(None), cores=run_cores(), interrupted=INTERRUPTED)


def pending_jobs():
    """The jobs that this run is to start."""
    jobs = [job for job in workflow.dag.needrun_jobs() if job.output]
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


def say_what_was_made():
    """Say what a run of named targets made, and what to do with it."""
    if not any(job.rule.name == "all" for job in workflow.dag.jobs):
        logger.info(show_made([str(path) for job in workflow.dag.targetjobs for path in job.output]))
