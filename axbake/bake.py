"""Bake a checkpoint and open its report.

FILE_OR_LINK is a checkpoint's path, an address that `axbake add` takes, or the name of a row in the table of models. A checkpoint
without a row gets one. The command makes the same files as `snakemake results/NAME/report.html`.
"""

import argparse
import os
import subprocess
import sys
import webbrowser
from pathlib import Path

from axbake.add import InTable, add_model, open_project_for, read_table, show_fetching, table_path
from axbake.cache import Cache, cache_directory
from axbake.fetch.sources import parse_source
from axbake.plan import Planner, dry_run, total
from axbake.users_files import absence


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake bake` takes."""
    parser.description = __doc__
    parser.add_argument("what", metavar="FILE_OR_LINK", help="checkpoint, address, or name of a row")
    parser.add_argument(
        "--name", help="name of the model, if it gets a new row (default: from the name of the file or its page)"
    )
    how_to_run(parser)


def how_to_run(parser: argparse.ArgumentParser) -> None:
    """What every command that bakes takes."""
    parser.add_argument(
        "--cores",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processor cores to use (default: all, %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Exit status: Snakemake's."""
    open_project_for(options.what)
    show_fetching()
    return bake(row_of(options.what, options.name), cores=options.cores)


def row_of(what: str, name: str | None) -> str:
    """Name of the row of *what*, which gets one where it has none.

    Raises:
        AxbakeError: it can have none; the table is as it was.
    """
    rows = read_table(table_path())
    if what in rows:
        return what
    there = [model for model, row in rows.items() if _same(row["checkpoint"], what)]
    if there and name in (None, *there):
        return name or there[0]
    try:
        return add_model(what, name)
    except InTable as error:
        return error.models[0]


def _same(cell: str, what: str) -> bool:
    """Whether a row's checkpoint is *what*: the same address, or the same file."""
    if cell == what or parse_source(what) or parse_source(cell):
        return cell == what
    return not absence(Path(cell)) and not absence(Path(what)) and Path(cell).samefile(what)


def bake(model: str, *, cores: int) -> int:
    """Say what baking *model* takes, bake it, and open its report where there is a desktop. Exit status: Snakemake's.

    Raises:
        PlanError: the table or config cannot be used.
    """
    report = Path("results") / model / "report.html"
    planner = Planner(dry_run(["--cores", str(cores), str(report)]), Cache(cache_directory(None)))
    if planner.verdicts:
        print(f"{model}: {total(planner)}", flush=True)
    running = subprocess.Popen([sys.executable, "-m", "snakemake", "--cores", str(cores), "--", report])
    while True:
        try:
            status = running.wait()
            break
        except KeyboardInterrupt:  # Snakemake got it too, and ends in its own way
            continue
    if status == 0 and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        webbrowser.open(report.resolve().as_uri())
    return status
