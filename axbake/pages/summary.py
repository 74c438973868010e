"""What became of each row of the table in one run: for the screen and as a table, which `overview` shows too."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from axbake.digest import write_atomically
from axbake.errors import AxbakeError
from axbake.judging import POOR

STATES = ("done", "poor", "failed", "skipped", "unfinished")
BAKED = ("done", "poor")  # all is there; of the second the picture is far from its reference


class RowRefused(AxbakeError):
    """A row of the table cannot be baked."""


@dataclass(frozen=True)
class Outcome:
    """What became of a model."""

    model: str
    state: str  # of STATES
    why: str = ""  # one fault per line
    log: str = ""  # of the jobs that failed, a path a line


def baked_outcome(model: str, results: Path) -> Outcome:
    """Of a model of which nothing is left to do: done, or poor if its report calls the picture so."""
    try:
        picture = json.loads((results / model / "report.json").read_text(encoding="utf-8"))["picture"]
    except (
        FileNotFoundError,
        ValueError,
        TypeError,
        KeyError,
    ):  # none was asked for, or it is damaged, or of an older version
        return Outcome(model, "done")
    if picture["verdict"] != POOR:
        return Outcome(model, "done")
    return Outcome(model, "poor", f"{picture['why']}. Try: {'; '.join(picture['advice'])}.")


def refuse_row(*, why: str, never: Path) -> None:
    """Raise RowRefused, whose text is *why*; *never* is the file that is not written."""
    raise RowRefused(why)


def show_outcomes(outcomes: list[Outcome], *, of_all: bool) -> str:
    """*outcomes* for the screen: their number by state, and a line for each fault.

    Args:
        of_all: whether they are those of all rows, which `write_summary` has written.
    """
    counts = Counter(outcome.state for outcome in outcomes)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    lines = [f"{len(outcomes)} model{'s' if len(outcomes) > 1 else ''}: {told}."]
    for outcome in outcomes:
        if outcome.state != "done":
            lines += [f"  {outcome.state:10} {outcome.model}: {line}" for line in outcome.why.splitlines()]
            lines += [f"  {'':10} log: {line}" for line in outcome.log.splitlines()]
    if of_all:
        lines.append("  All of it is in results/summary.tsv and, with pictures, on the page results/report.html.")
    return "\n".join(lines)


def write_summary(outcomes: list[Outcome], rows: Mapping[str, dict], *, results: Path) -> None:
    """Write `summary.tsv` into *results*: one row per model, in the table's order.

    Figures are those of models that are done: of others, files may be there that belong to other settings.

    Args:
        rows: the table's, by model.
        results: directory that holds a directory for each model.
    """
    table = pd.DataFrame([_row(outcome, rows[outcome.model], results) for outcome in outcomes])
    write_atomically(results / "summary.tsv", table.to_csv(sep="\t", index=False))


def _row(outcome: Outcome, row: dict, results: Path) -> dict:
    """The summary's row of a model. PSNR in dB of what the compiled models draw, against the reference."""
    figures = {"compiled": "", "megabytes": "", "image_psnr_db": "", "image_ssim": "", "latent_psnr_db": ""}
    if outcome.state in BAKED:
        place = results / outcome.model
        records = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(place.glob("build/**/*.json"))
            if _is_record(path)
        ]
        emulated = any(record["emulated"] for record in records)
        figures["compiled"] = "emulated" if emulated else records[0]["version"]
        figures["megabytes"] = str(round(sum(record["bytes"] for record in records) / 1e6, 1))
        if emulated:  # hosts do not draw with others; the report forecasts it, and says so
            distance = json.loads((place / "simulation" / "distance.json").read_text(encoding="utf-8"))
            figures |= {name: distance[name] for name in figures if name in distance}
    return {
        "model": outcome.model,
        "state": outcome.state,
        "height": row["height"],
        "width": row["width"],
        **figures,
        "why": "; ".join(outcome.why.splitlines()),
        "log": " ".join(outcome.log.splitlines()),
    }


def _is_record(path: Path) -> bool:
    """Whether *path*, of a model's directory `build`, says what made a graph's model; versions before 0.2 left configs there."""
    return not path.name.endswith(".config.json")
