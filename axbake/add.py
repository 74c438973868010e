"""Add a row for a checkpoint to the table of models: a file, or an address from which axbake downloads it."""

import argparse
import codecs
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from axbake.cache.errors import writing
from axbake.cache.locks import lock
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.fetch.errors import BadSource, NotBakeable
from axbake.fetch.sources import Address, CivitaiAddress, HubFolder, parse_source
from axbake.fetch.store import Fetched, ask_sha256, fetch
from axbake.printable import printable, shown
from axbake.project import CONFIG, open_project
from axbake.root import BIN, shipped
from axbake.table import check_config, read_config, read_models, read_schema
from axbake.users_files import absence, is_file, lines_of

SCHEMAS = shipped("workflow/schemas")
MODELS_SCHEMA = SCHEMAS / "models.schema.yaml"
logger = logging.getLogger(__name__)
# What a new row begins with, besides the size; the user edits it.
PICTURE = {
    "prompt": "portrait of a woman in a garden, soft light",
    "negative_prompt": "lowres, blurry, bad anatomy, watermark",
    "calibration_prompts": "config/prompts/people.txt",
}
MOST_WORDS = 200  # characters of trained words that go into the prompt
# Of a distilled model, as its base model at Civitai says; https://huggingface.co/latent-consistency/lcm-lora-sdv1-5
# /lcm-lora-sdxl, /stabilityai/sdxl-turbo, /ByteDance/SDXL-Lightning
FEW_STEPS = {"steps": "4", "guidance_scale": "1"}
DISTILLED = {
    "SD 1.5 LCM": {"scheduler": "lcm", **FEW_STEPS},
    "SDXL 1.0 LCM": {"scheduler": "lcm", **FEW_STEPS},
    "SDXL Lightning": {"scheduler": "euler_trailing", **FEW_STEPS},
    "SDXL Turbo": {"scheduler": "euler_a_trailing", "height": "512", "width": "512", **FEW_STEPS},
}


class NoRow(AxbakeError):
    """The row cannot be added to the table."""


class InTable(NoRow):
    """The file is already in the table."""

    def __init__(self, table: Path, models: list[str]):
        super().__init__(
            f"{table} already has this file, as {', '.join(models)}. To add another row for it, give a --name."
        )
        self.models = models


ENCODINGS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def table_path() -> Path:
    """The table that the project's config names."""
    config = read_config(CONFIG) if is_file(CONFIG) else {}
    components = {name for family in FAMILIES.values() for name in family.names}
    schema = SCHEMAS / "config.schema.yaml"
    return Path(check_config(config, schema=schema, source=str(CONFIG), components=components)["models"])


def read_table(path: Path) -> dict[str, dict]:
    """Rows by model, checked."""
    return read_models(path, schema=MODELS_SCHEMA, families=list(FAMILIES))


def edit_table(path: Path, edit: Callable[[list[str], list[list[str]]], None]) -> None:
    """Let *edit* change header and rows of the table *path*; it is written whole, if it still is a table that can be read.

    Lines that *edit* leaves alone stay as they are, byte for byte.

    Args:
        edit: gets the names of the header, to which it may add, and the cells of each line after it; changes both in place.

    Raises:
        TableError, NoRow, NotWritten: nothing was written.
    """
    with writing(path), lock(path.with_name(f".{path.name}.lock"), about=f"edit of {path}"):
        content = path.read_bytes()
        encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)  # a byte order mark stays in it
        ending = next((one for one in ("\r\n", "\n", "\r") if one in text), "\n")
        lines = [line.split("\t") for line in lines_of(text)]
        first = next((number for number, cells in enumerate(lines) if "model" in map(_column, cells)), 0)
        named, rows = lines[first], lines[first + 1 :]
        header = list(map(_column, named))
        known = len(header)
        edit(header, rows)
        new = ending.join("\t".join(cells) for cells in [*lines[:first], [*named, *header[known:]], *rows]) + ending
        beside = path.with_name(f".{path.name}.new")
        try:
            beside.write_bytes(new.encode(encoding))
            read_table(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _column(cell: str) -> str:
    """Name of a column, as spreadsheets write it or not."""
    return cell.strip('\ufeff" ')


def add_model(checkpoint: str, name: str | None) -> str:
    """Fetch *checkpoint* if it is an address, look whether it can be baked, and write its row.

    Returns:
        the model's name.

    Raises:
        AxbakeError: the table is as it was; what was downloaded stays.
    """
    source = parse_source(checkpoint)
    table = table_path()
    rows = read_table(table)
    if name and not re.fullmatch(form := read_schema(MODELS_SCHEMA)["properties"]["model"]["pattern"], name):
        form = form.replace("(?!\\n)", "")  # says that no line break follows
        raise NoRow(f"--name {name!r} does not match {form}")
    if name in rows:
        raise NoRow(f"{table} already has a row {name}. Use another --name.")
    if isinstance(source, HubFolder):
        cells = _cells_of_folder(source)
    else:
        cells = _cells_of_path(Path(checkpoint)) if source is None else _cells_of_address(source, table, rows, name)
    called = cells.pop("called")
    cells["model"] = name = name or free_name(called, set(rows))

    def append(header: list[str], lines: list[list[str]]) -> None:
        header += [column for column in cells if column not in header]
        while lines and lines[-1] == [""]:
            lines.pop()
        lines.append([cells.get(column, "") for column in header])

    edit_table(table, append)
    return name


def _cells_of_folder(source: HubFolder) -> dict[str, str]:
    from axbake.fetch.folder import fetch_folder  # here, since its library takes a while to be imported

    cells = _cells_of_path(fetch_folder(source, Path("checkpoints")))
    return cells | {
        "called": source.repository.partition("/")[2],
        "source": f"https://huggingface.co/{source.repository}",
    }


def _cells_of_address(source: Address, table: Path, rows: Mapping[str, dict], name: str | None) -> dict[str, str]:
    fetched = fetch(source, "")
    said = check_bakeable(fetched.path)
    there = [row["model"] for row in rows.values() if row["sha256"] and fetched.sha256.startswith(row["sha256"])]
    if there and not name:
        raise InTable(table, there)
    logger.info("%s: %s, SHA-256 %s", fetched.record["file_name"], said["title"], fetched.sha256)
    return row_cells(pinned_address(source, fetched.record), fetched, family=said["family"], steps=said["steps"])


def open_project_for(checkpoint: str) -> None:
    """Make the working directory a project if it is none and *checkpoint* can get a row in it.

    Raises:
        BadSource: neither a path nor an address; nothing was made.
    """
    if not CONFIG.is_file() and parse_source(checkpoint) is None:
        _check_there(Path(checkpoint))
    open_project()


def _check_there(path: Path) -> None:
    if absence(path):
        raise BadSource(
            f"{shown(path, 400)}: not a file, a folder or an address. Give a checkpoint's path, https://…, Civitai's "
            "AIR, or hf://owner/repository/file."
        )


def _cells_of_path(path: Path) -> dict[str, str]:
    _check_there(path)
    if set(str(path)) & set("\t\n") or printable(str(path)) != str(path):
        raise NotBakeable(f"{shown(path, 400)}: a name that no table can hold. Rename the file.")
    said = check_bakeable(path)
    here = path.resolve().is_relative_to(Path.cwd())
    cells = {"called": path.stem, "checkpoint": str(path.resolve().relative_to(Path.cwd()) if here else path.resolve())}
    return {**cells, **_size(said["family"]), **PICTURE, **_distilled(said["steps"])}


def check_bakeable(path: Path) -> dict[str, Any]:
    """What the checkpoint *path* is, as `axbake.inspect` says it.

    Raises:
        NotBakeable
    """
    from axbake.inspect import inspect_checkpoint  # here, since torch takes seconds

    said = inspect_checkpoint(path)
    if not said["bakeable"]:
        raise NotBakeable(f"{path}: {said['why']}")
    return said


def pinned_address(source: Address, record: dict[str, Any]) -> str:
    """The address; of Civitai's models that of the version that was fetched, since an address may mean the latest."""
    if not isinstance(source, CivitaiAddress) or source.version is not None:
        return source.text
    if record.get("air"):
        file = f"+{source.file}" if source.file is not None else ""
        return f"{record['air']}{file}{'.ckpt' if source.pickled else ''}"
    page = record["page"] + (f"&fileId={source.file}" if source.file is not None else "")
    return f"{page}&format=PickleTensor" if source.pickled else page


def free_name(called: str, taken: set[str]) -> str:
    """A name for a model that no row has, made of what its site or its file calls it."""
    text = re.sub(r"[^a-z0-9._]+", "-", called.lower()).strip("-._")
    base = text[:48].rstrip("-._") or "model"
    return next(
        name for number in range(1, 10_000) if (name := base if number == 1 else f"{base}-{number}") not in taken
    )


def row_cells(address: str, fetched: Fetched, *, family: str, steps: int | None) -> dict[str, str]:
    """Cells of the new row by column, and as `called` what its site calls the model.

    Args:
        family: that the file is of.
        steps: that a distilled UNet is made for, if its file says so.
    """
    record = fetched.record
    base_model = str(record.get("base_model"))
    words = [record.get("model"), record.get("version")] if record.get("model") else [Path(record["file_name"]).stem]
    cells = {"called": " ".join(str(word) for word in words if word)}
    cells |= {"checkpoint": address, "sha256": fetched.sha256, "family": family}
    cells["source"] = source_note(record)
    cells |= _size(family) | PICTURE | DISTILLED.get(base_model, {})
    cells |= _distilled(steps)
    cells |= {"height": "768", "width": "768"} if base_model.endswith(" 768") else {}  # SD 2.0 768, SD 2.1 768
    if trained := trained_words(record):
        cells["prompt"] = f"{trained}, {PICTURE['prompt']}"
    return {column: " ".join(cell.split()) for column, cell in cells.items()}


def _size(family: str) -> dict[str, str]:
    """Cells of the size that models of *family* were trained with, and of what else they need to draw well."""
    side = str(FAMILIES[family].pixels)
    return {"height": side, "width": side, **FAMILIES[family].cells}


def _distilled(steps: int | None) -> dict[str, str]:
    """Cells of a distilled UNet that is made for *steps*."""
    return {"steps": str(steps), "guidance_scale": "1"} if steps else {}


def trained_words(record: dict[str, Any]) -> str:
    """What the model was trained to draw for, as its page says, separated by commas; what a prompt would apply is left out."""
    words = [re.sub(r"<[^<>]*>", "", str(word)).strip('=+-@, "') for word in record.get("trained_words", [])]
    text = ", ".join(filter(None, words))
    return text if len(text) <= MOST_WORDS else text[:MOST_WORDS].rpartition(",")[0]


def source_note(record: dict[str, Any]) -> str:
    """Page and terms, for the column `source`."""
    page, terms = record.get("page", ""), licence_note(record.get("licence", {}))
    return f"{page} ({terms})" if page and terms else page or terms


def licence_note(licence: dict[str, Any]) -> str:
    """Terms in a few words: those of Civitai's page, or the name of a licence."""
    if "allowNoCredit" in licence or "allowCommercialUse" in licence:
        commercial = licence.get("allowCommercialUse") or []
        uses = [commercial] if isinstance(commercial, str) else commercial
        allowed = ", ".join(str(use) for use in uses if use != "None")
        terms = ["credit its author" if not licence.get("allowNoCredit") else "no credit needed"]
        terms.append(f"commercial use: {allowed or 'none'}")
        terms += ["no merges"] if not licence.get("allowDerivatives", True) else []
        terms += ["same terms for merges"] if not licence.get("allowDifferentLicense", True) else []
        return "; ".join(terms)
    return ", ".join(f"{value}" for value in licence.values())


def pin_model(name: str) -> str:
    """Write into the row *name* the SHA-256 of what its source has now.

    Returns:
        the digest.

    Raises:
        AxbakeError: no such row, or its file is not the one that the row names.
    """
    table = table_path()
    rows = read_table(table)
    if name not in rows:
        raise NoRow(f"{table} has no row {name}; there are {', '.join(rows)}.")
    source = parse_source(rows[name]["checkpoint"])
    if source is None:
        raise NoRow(f"{name}: its checkpoint is a path, {rows[name]['checkpoint']}; --pin works only for addresses.")
    pin = rows[name]["sha256"]
    sha256 = ask_sha256(source, pin) or fetch(source, pin).sha256

    def write(header: list[str], lines: list[list[str]]) -> None:
        if "sha256" not in header:
            header.append("sha256")
        column, models = header.index("sha256"), header.index("model")
        for line in lines:
            if len(line) > models and _column(line[models]) == name:
                line += [""] * (column + 1 - len(line))
                line[column] = sha256

    edit_table(table, write)
    return sha256


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `axbake add` takes."""
    parser.description = __doc__
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a path, https://…, Civitai's page or AIR, hf://owner/repository/file[@revision], or a whole hf://owner/repository",
    )
    parser.add_argument("--name", help="name of the model (default: from the name on its page)")
    parser.add_argument("--pin", metavar="MODEL", help="write the SHA-256 of the file at a row's address into that row")


def run(options: argparse.Namespace) -> int:
    """Write a row or a pin. Exit status: 130 if the user interrupted it.

    Raises:
        AxbakeError: there is no new row, or no pin.
    """
    if (options.checkpoint is None) == (options.pin is None):
        raise NoRow("Give a checkpoint's path or address, or --pin MODEL.")
    show_fetching()
    try:
        if options.pin:
            print(f"{options.pin}: wrote sha256 {pin_model(options.pin)} to {table_path()}.")
            return 0
        open_project_for(options.checkpoint)
        name = add_model(options.checkpoint, options.name)
    except KeyboardInterrupt:
        print("Interrupted. The table is unchanged; downloaded data is kept.", file=sys.stderr)
        return 130  # as shells have it: 128 + SIGINT
    print(f"Added the row {name} to {table_path()}. Edit its size and prompts as you like. Then run:")
    print(f"  {BIN}snakemake --cores 4 results/{name}/report.html")
    return 0


def show_fetching() -> None:
    """Have the screen say how a download goes."""
    ours = logging.getLogger("axbake")  # and not Snakemake's, which a plan would have talk
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler(sys.stderr))
