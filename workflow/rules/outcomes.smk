# What batch.smk needs: which rows can be baked, and what became of each in this run.

import functools
import time

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from axbake.pages.overview import write_overview
from axbake.pages.summary import Outcome, describe_failure, show_outcomes, write_summary

# Functions of a row that end the run while the workflow is read, by what they look at: the first fault of each is told.
SOURCES = [
    [source_digest, converted, sidecar],
    [own_vae_digest, lambda row: row["vae"] and converted(row, "vae")],
    [embeddings_digest],
    [functools.partial(loras_of, component=component) for component in COMPONENTS] + [advise],
]
STARTED = time.time()
FAILURES = {}  # number of a job -> Snakemake's record of its latest failure


@functools.cache
def refused_rows():
    """Why rows cannot be baked, by model: all sources that are missing or wrong."""
    refused = {model: "\n".join(faults) for model, row in MODELS.items() if (faults := list(source_faults(row)))}
    for why in refused.values():
        logger.warning(f"Left out: {why}")
    return refused


def source_faults(row):
    """What is missing or wrong of all that *row* brings: whatever would end a run that asks for the row by name."""
    for functions in SOURCES:
        try:
            for function in functions:
                function(row)
        except SystemExit as error:
            yield str(error)


def of_every_model(*patterns, **wildcards):
    """Input function: *patterns* for every row whose sources are there, and for every other one a job that fails."""

    def paths(_):
        refused = refused_rows()
        models = [model for model in MODELS if model not in refused]
        wanted = [path for pattern in patterns for path in collect(pattern, model=models, **wildcards)]
        return wanted + collect("results/{model}/refused.json", model=list(refused))

    return paths


def note_failure(record):
    """Keep what Snakemake says of a job that failed."""
    if getattr(record, "event", None) == LogEvent.JOB_ERROR:
        FAILURES[record.jobid] = record
    return True


if workflow.is_main_process:
    # Hooks are not told which jobs failed. Snakemake takes handlers off its logger, but not filters.
    logger.addFilter(note_failure)


def outcomes():
    """What became of every row in this run of all rows."""
    left = {}
    for job in workflow.dag.needrun_jobs():
        if model := job.wildcards_dict.get("model"):
            left.setdefault(model, []).append(job)
    return [outcome(model, left.get(model, [])) for model in MODELS]


def outcome(model, left):
    """What became of *model*, of which the jobs *left* have not ended well."""
    if model in refused_rows():
        return Outcome(model, "skipped", refused_rows()[model])
    needed = workflow.dag.bfs(workflow.dag.dependencies, *left)
    failures = [FAILURES[job.jobid] for job in needed if job.jobid in FAILURES and not workflow.dag.finished(job)]
    if not failures:
        return Outcome(model, "unfinished" if left else "done", f"{len(left)} jobs are left" if left else "")
    rules = {}  # why -> rules that failed for it
    for record in failures:
        why = describe_failure(map(Path, record.log), record.rule_msg, since=STARTED)
        rules.setdefault(why, {})[record.rule_name] = None
    logs = [str(record.log[0]) for record in failures if record.log]
    return Outcome(
        model, "failed", "\n".join(f"{', '.join(names)}: {why}" for why, names in rules.items()), "\n".join(logs)
    )


def summarise():
    """Write the summary of a run of all rows and the page over all models, and say it."""
    if any(job.rule.name == "all" for job in workflow.dag.jobs):
        made = outcomes()
        write_summary(made, MODELS, results=Path("results"))
        write_overview(Path("results"), Path("results/report.html"), table=list(MODELS))
        logger.info(show_outcomes(made))
