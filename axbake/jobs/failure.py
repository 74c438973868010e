"""Why a job failed, in one line: from its log, and from what a cluster says of it."""

import re
from collections.abc import Iterable
from pathlib import Path

INTERRUPTED = "interrupted"
SILENT = "ended without writing an error; it may have run out of memory"
ERROR = re.compile(
    rf"^\S+ \S+ ERROR (\w+: .*|{INTERRUPTED}$)", re.MULTILINE
)  # as `axbake.jobs.running.job_log` writes them
STATUS = re.compile(r"SLURM status is: '(\w+)'")  # as snakemake-executor-plugin-slurm says
# What Slurm's states of jobs mean (https://slurm.schedmd.com/job_state_codes.html), and what to do.
SLURM = {
    "TIMEOUT": "ended by its time limit; give it a higher `runtime` in the profile",
    "OUT_OF_MEMORY": "ended because memory ran out; give it a higher `mem_mb` in the profile",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node failed; run again",
    "PREEMPTED": "another job preempted it; run again",
}
# What the kernel, Slurm's own watch over memory, and Slurm's watch over time write at the end of a job's output
MEMORY = re.compile(r"oom[-_ ]kill|exceeded memory limit|Out Of Memory", re.IGNORECASE)
TIME = re.compile(r"DUE TO TIME LIMIT")


def describe_failure(logs: Iterable[Path], said: str | None, *, since: float, interrupted: bool = False) -> str:
    """One line on why a job failed; empty of one that only the user's Ctrl-C ended.

    Args:
        interrupted: whether the run was.
        logs: the job's own, then those of a cluster.
        said: Snakemake's or the cluster's words, if any.
        since: time in seconds since the epoch when the run began; logs that are older are of another run.
    """
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in logs
        if path.is_file() and path.stat().st_mtime >= since
    ]
    for text in texts[:1]:
        if errors := [error for error in ERROR.findall(text) if not interrupted or error != INTERRUPTED]:
            return errors[-1]
    if interrupted:
        return ""
    if status := STATUS.search(said or ""):
        name = _cause(texts) or status[1]
        return f"Slurm says {status[1]}: {SLURM.get(name, 'it ended, and its log does not say why')}"
    return SILENT


def _cause(texts: list[str]) -> str | None:
    """The state that a job's output tells, where Slurm itself says no more than FAILED."""
    if any(TIME.search(text) for text in texts):
        return "TIMEOUT"
    return "OUT_OF_MEMORY" if any(MEMORY.search(text) for text in texts) else None
