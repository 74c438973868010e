# What batch.smk needs: which rows can be baked, and what became of each in this run.

import functools
import signal
import time

from snakemake_interface_logger_plugins.common import LogEvent

from axbake.cache.errors import writing
from axbake.pages.overview import write_overview
from axbake.jobs.failure import describe_failure
from axbake.printable import error_line
from axbake.pages.summary import Outcome, baked_outcome, show_outcomes, write_summary

STARTED = time.time()
FAILURES = {}  # number of a job -> Snakemake's record of its latest failure
INTERRUPTED = []  # signals by which the user stopped the run


@functools.cache
def refused_rows():
    """Why rows cannot be baked, by model: whatever would end a run that asks for the row by name."""
    refused = {name: why for name, model in MODELS.items() if (why := model.fault())}
    for why in refused.values():
        logger.warning(f"Left out: {why}")
    return refused


def of_every_model(*patterns):
    """Input function: *patterns* for every row that can be baked, and for every other one a job that fails.

    {component} in a pattern stands for each of the model's, {graph} for each that is compiled.
    """

    def paths(_):
        refused = refused_rows()
        wanted = [path for name, model in MODELS.items() if name not in refused for path in wanted_of(model, patterns)]
        return wanted + [f"results/{name}/refused.json" for name in refused]

    return paths


def wanted_of(model, patterns):
    """*patterns* of one model."""
    parts = {"component": model.family.names, "graph": list(model.compiled)}
    for pattern in patterns:
        name = next((part for part in parts if f"{{{part}}}" in pattern), None)
        for value in parts[name] if name else [None]:
            yield pattern.format(model=model.name, **({name: value} if name else {}))


def note_failure(record):
    """Keep what Snakemake says of a job that failed."""
    if getattr(record, "event", None) == LogEvent.JOB_ERROR:
        FAILURES[record.jobid] = record
    return True


def note_interrupt(number, frame):
    """Remember that the user stopped the run: the same Ctrl-C ends its jobs, which then have not failed."""
    INTERRUPTED.append(number)
    signal.default_int_handler(number, frame)


if workflow.is_main_process:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note_interrupt)
    # Hooks are not told which jobs failed. Snakemake takes handlers off its logger, but not filters.
    logger.addFilter(note_failure)


def outcomes(*, of_all):
    """What became of every row in this run; of a run of named targets, of the rows of which a job is left."""
    left = {}
    for job in workflow.dag.needrun_jobs():
        if model := job.wildcards_dict.get("model"):
            left.setdefault(model, []).append(job)
    return [outcome(model, left.get(model, [])) for model in MODELS if of_all or model in left]


def outcome(model, left):
    """What became of *model*, of which the jobs *left* have not ended well."""
    if model in refused_rows():
        return Outcome(model, "skipped", refused_rows()[model])
    needed = workflow.dag.bfs(workflow.dag.dependencies, *left)
    failed = [FAILURES[job.jobid] for job in needed if job.jobid in FAILURES and not workflow.dag.finished(job)]
    how = {"since": STARTED, "interrupted": bool(INTERRUPTED)}
    causes = [(record, describe_failure(map(Path, record.log), record.rule_msg, **how)) for record in failed]
    rules, logs = {}, []  # why -> rules that failed for it
    for record, why in causes:
        if why:  # and not only the user's Ctrl-C
            rules.setdefault(why, {})[record.rule_name] = None
            logs += map(str, record.log[:1])
    if not rules:
        stopped = ": interrupted; the same command goes on where it stopped" if INTERRUPTED else ""
        if left:
            return Outcome(model, "unfinished", f"{len(left)} jobs are left{stopped}")
        return baked_outcome(model, Path("results"))
    return Outcome(
        model, "failed", "\n".join(f"{', '.join(names)}: {why}" for why, names in rules.items()), "\n".join(logs)
    )


def summarise():
    """Say what became of each row; of a run of all rows, write the summary and the page of all models, too."""
    of_all = is_of_all()
    made = outcomes(of_all=of_all)
    if of_all:
        try:
            with writing(Path("results")):
                write_summary(made, {name: model.row for name, model in MODELS.items()}, results=Path("results"))
                write_overview(Path("results"), Path("results/report.html"), table=list(MODELS))
        except AxbakeError as error:
            logger.error(error_line(error))
    if made:
        logger.info(show_outcomes(made, of_all=of_all))
