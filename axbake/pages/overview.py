"""Write one page for all models that have a report: `axbake report`, like `make report`.

It is no rule's result, since it tells of what is there: with a rule, one model that fails would keep the page from all others.
"""

import argparse
import csv
from pathlib import Path

from axbake.cache.errors import writing
from axbake.digest import write_atomically
from axbake.pages.gallery import read_picture, thumbnail_uri
from axbake.pages.html import render
from axbake.pages.summary import BAKED
from axbake.root import BIN
from axbake.table import model_names
from axbake.users_files import UnreadableFile, read_json


def write_overview(results: Path, page: Path, *, table: list[str]) -> int:
    """Write one page for all models whose `report.json` is below *results*.

    Args:
        table: names of the table's models. Below the others are those that have no report, and those that the last run of all
            rows did not do, with its reasons, as `results/summary.tsv` has them.

    Returns:
        Number of models on it.

    Raises:
        UnreadableFile: a `report.json` is damaged.
    """
    models = [_model(path) for path in sorted(results.glob("*/report.json"))]
    baked = {model["model"] for model in models}
    html = render(
        "overview.html.j2",
        models=models,
        left=_left(results, [name for name in table if name not in baked], table),
        emulated=any(model["emulated"] for model in models),
    )
    write_atomically(page, html)
    return len(models)


def _model(path: Path) -> dict:
    """What the `report.json` at *path* says, with the bytes of all components and the board's picture."""
    model = read_json(path)
    try:
        model["bytes"] = sum(part["bytes"] for part in model["components"].values())
        model["board"] = _board(path.parent)
    except (TypeError, LookupError, AttributeError) as error:
        raise UnreadableFile(
            f"{path}: {type(error).__name__}: {error}; not a report of this version of axbake. Bake it again."
        ) from None
    return model


def _left(results: Path, missing: list[str], table: list[str]) -> list[dict]:
    """Models of *table* that are *missing*, or were not done by the last run of all rows and not baked since; state, why, log."""
    summary, rows = results / "summary.tsv", {}
    if summary.is_file():
        with summary.open(encoding="utf-8", newline="") as file:
            rows = {row["model"]: row for row in csv.DictReader(file, delimiter="\t") if row["state"] not in BAKED}
        ended = summary.stat().st_mtime
        baked = set(table) - set(missing)
        later = {name for name in baked if (results / name / "report.json").stat().st_mtime > ended}
        rows = {name: row for name, row in rows.items() if name not in later}
    left = {name: {"model": name, "state": "not baked yet", "why": "", "log": ""} for name in missing} | rows
    return [left[name] for name in table if name in left]


def _board(directory: Path) -> dict | None:
    """The picture that a board drew with the model in *directory*, and whether a model is newer; None if there is none."""
    drawn = directory / "board" / "image.png"
    if not drawn.is_file():
        return None
    places = [directory, *(chain.parent for chain in directory.glob("*/chain.json"))]
    newest = max((path.stat().st_mtime for place in places for path in place.glob("*.axmodel")), default=0.0)
    return {"thumbnail": thumbnail_uri(read_picture(drawn)), "outdated": newest > drawn.stat().st_mtime}


def arguments(parser: argparse.ArgumentParser) -> None:
    """`axbake report` takes nothing."""


def run(options: argparse.Namespace) -> int:
    """Write `results/report.html` of the project in the working directory. Exit status: 0."""
    from axbake.add import table_path  # here and not above: each job reads this module, and none needs it

    table, page = table_path(), Path("results/report.html")
    with writing(page):
        page.parent.mkdir(exist_ok=True)
        count = write_overview(page.parent, page, table=model_names(table))
    if not count:
        print(f"{page}: no model has a report yet. Bake one: {BIN}snakemake --cores 4 results/NAME/report.html")
        return 0
    print(f"{page}: {count} model{'s' if count != 1 else ''}; each has its own page, results/NAME/report.html.")
    return 0
