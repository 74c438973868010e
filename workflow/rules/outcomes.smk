# What batch.smk needs: which rows can be baked, and what became of each in this run.

import functools
import time

from snakemake_interface_logger_plugins.common import LogEvent

from axbake.pages.overview import write_overview
from axbake.jobs.failure import describe_failure
from axbake.pages.summary import Outcome, show_outcomes, write_summary

STARTED = time.time()
FAILURES = {}  # number of a job -> Snakemake's record of its latest failure


@functools.cache
def refused_rows():
    """Why rows cannot be baked, by model: whatever would end a run that asks for the row by name."""
    refused = {name: why for name, model in MODELS.items() if (why := model.fault())}
    for why in refused.values():
        logger.warning(f"Left out: {why}")
    return refused


def of_every_model(*patterns):
    """Input function: *patterns* for every row that can be baked, and for every other one a job that fails.

    {component} and {graph} in a pattern stand for each of the model's.
    """

    def paths(_):
        refused = refused_rows()
        wanted = [path for name, model in MODELS.items() if name not in refused for path in wanted_of(model, patterns)]
        return wanted + [f"results/{name}/refused.json" for name in refused]

    return paths


def wanted_of(model, patterns):
    """*patterns* of one model."""
    parts = {"component": model.family.names, "graph": model.graphs}
    for pattern in patterns:
        name = next((part for part in parts if f"{{{part}}}" in pattern), None)
        for value in parts[name] if name else [None]:
            yield pattern.format(model=model.name, **({name: value} if name else {}))


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
        write_summary(made, {name: model.row for name, model in MODELS.items()}, results=Path("results"))
        write_overview(Path("results"), Path("results/report.html"), table=list(MODELS))
        logger.info(show_outcomes(made))
