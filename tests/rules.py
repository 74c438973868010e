"""Every rule of the workflow, as Snakemake read it, and jobs of each: a dry run of a table that needs them all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from snakemake.api import DAGApi

from axbake.jobs.identity import Step, read_steps
from axbake.plan import Job, pending_jobs

ROOT = Path(__file__).parents[1]
# All else has to have a default in the schemas.
CONFIG = "toolchain: native\nboard: {host: somewhere}\ncalibration: {compare_first: 4}\n"
CELLS = {"height": "64", "width": "64", "prompt": "a rocket", "calibration_prompts": "config/prompts/emoji.txt"}
ROWS = {
    "demo": {"checkpoint": "resources/demo/emoji-sd.safetensors"},
    # A pickle that is to be fetched and converted
    "remote": {"checkpoint": "https://example.org/tiny.ckpt", "sha256": "0" * 64, "family": "sd1"},
    "refused": {"checkpoint": "checkpoints/nowhere.safetensors"},
}
COLUMNS = ["model", "checkpoint", "sha256", "family", *CELLS]
TARGETS = [
    "all",
    "results/demo/board/report.html",
    "results/demo/board/served.json",
    "results/demo/host/report.html",
    "results/demo/single_file.safetensors",
    "results/demo/bundle/axbake.tar",
    "results/demo/recipe/unet.yaml",
]


@dataclass(frozen=True)
class Planned:
    """What a dry run knows."""

    rules: dict[str, Any]  # Snakemake's, by name; without `all`, which only gathers
    steps: dict[Job, list[Step]]  # of each job


def plan_all(directory: Path) -> Planned:
    """A dry run in the empty *directory* in which every rule takes part."""
    (directory / "config").mkdir(parents=True)
    (directory / "config" / "config.yaml").write_text(CONFIG)
    shutil.copytree(ROOT / "config" / "prompts", directory / "config" / "prompts")
    (directory / "resources").symlink_to(ROOT / "resources")
    rows = ({"model": model, **CELLS, **cells} for model, cells in ROWS.items())
    lines = [COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)]
    (directory / "config" / "models.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    command = ["--snakefile", ROOT / "Snakefile", "--directory", directory, "--cores", "2", "--", *TARGETS]
    with _workflows() as workflows:
        jobs = pending_jobs([str(part) for part in command])
    (workflow,) = workflows
    rules = {rule.name: rule for rule in workflow.rules if rule.name != "all"}
    return Planned(rules, {job: read_steps(directory / job.settings) for job in jobs})


@contextlib.contextmanager
def _workflows() -> Iterator[list[Any]]:
    """Snakemake's workflows of the dry runs within; the environment stays as it was."""
    found: list[Any] = []
    execute = DAGApi.execute_workflow

    def note(dag: DAGApi, *args: Any, **how: Any) -> None:
        found.append(dag.workflow_api._workflow)
        execute(dag, *args, **how)

    with mock.patch.object(DAGApi, "execute_workflow", note), mock.patch.dict(os.environ):
        yield found
