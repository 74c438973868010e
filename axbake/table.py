"""Config and table of models: read, checked against their JSON schemas, defaults filled in. All faults are reported at once."""

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import yaml

from axbake.checkpoints.containers import files_of
from axbake.digest import file_sha256, files_sha256
from axbake.errors import AxbakeError
from axbake.fetch.errors import BadSource
from axbake.fetch.sources import parse_source, path_mistake
from axbake.loras.rows import Lora, lora_cells, lora_faults, row_loras
from axbake.printable import shown
from axbake.runtime.prompt import MOST
from axbake.runtime.values import CANVAS
from axbake.users_files import UnreadableFile, absence, is_file, lines_of, read_text, read_yaml

MOST_COLUMNS = 64  # of a table
MOST_QUOTED = 120  # characters of a value in a message
MOST_FAULTS = 100  # lines of a message
MOST_BYTES = 100_000_000  # of a table, or of a file of prompts
TABLE = "a header line, and lines with the same number of cells, separated by tabs, in UTF-8"
EMBEDDING_FORMS = (".safetensors", ".pt", ".bin")
NO_LINE_BREAK = r"(?!\n)"  # in patterns: for a machine, since $ matches before a last line feed


class ProjectConfigError(AxbakeError):
    """The config has entries that cannot be used."""


class TableError(AxbakeError):
    """The table of models has cells that cannot be used."""


class PromptsError(AxbakeError):
    """A file of prompts cannot be used."""


class MissingCheckpoint(AxbakeError):
    """A model's checkpoint is not where the table says."""


class MissingVae(AxbakeError):
    """A model's autoencoder is not where the table says."""


class MissingEmbedding(AxbakeError):
    """A textual-inversion embedding is not where the table says."""


class MissingCanvas(AxbakeError):
    """The picture or the mask in a row is not there."""


class MissingLora(AxbakeError):
    """A LoRA is not where the table says."""


class WrongChecksum(AxbakeError):
    """A checkpoint does not have the checksum that the table gives."""


def read_schema(path: Path) -> dict:
    """A JSON schema written in YAML."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _with_defaults(value, schema: dict):
    """*value* with the schema's defaults for what is not there, at every depth."""
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, entry in schema.get("properties", {}).items():
        if name not in filled and "default" in entry:
            filled[name] = entry["default"]
        if name in filled:
            filled[name] = _with_defaults(filled[name], entry)
    return filled


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:MOST_QUOTED], known, 1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _explain(error: jsonschema.ValidationError) -> Iterator[str]:
    """A schema violation in our words: the value, what was expected, what to do."""
    value, rule, name = error.instance, error.validator, error.validator_value
    quoted = shown(repr(value), MOST_QUOTED)
    if rule == "additionalProperties":
        known = list(error.schema["properties"])
        yield from (f"{shown(key)}: unknown{_nearest(str(key), known)}" for key in value if key not in known)
    elif rule == "enum":
        yield f"{quoted} is not one of {', '.join(map(str, name))}"
    elif rule == "multipleOf":
        lower = int(value // name * name)
        yield f"{value} is not a multiple of {name}; take {lower} or {lower + name}"
    elif rule == "pattern":
        yield f"{quoted} does not match {name.replace(NO_LINE_BREAK, '')}"
    elif rule == "required":
        yield from (f"{key}: missing" for key in name if key not in value)
    elif rule == "minLength":
        yield "empty; fill it in"
    elif rule == "maxLength":
        yield f"{quoted} has {len(value)} characters; at most {name}"
    elif rule == "not":
        yield f"{quoted} is taken, since axbake writes a file of this name; use another name"
    elif rule == "type":
        yield f"{quoted} is not of type {name}"
    else:
        yield f"{shown(error.message, 3 * MOST_QUOTED)} ({rule} {name})"


def read_config(path: Path) -> dict:
    """The entries in a project's config file *path*, as they stand.

    Raises:
        ProjectConfigError: it cannot be read, has no entries, or has code that Snakemake would run.
    """
    try:
        found = read_yaml(path)
    except UnreadableFile as error:
        raise ProjectConfigError(f"{error} Wanted a YAML file of config entries.") from None
    if not isinstance(found, dict):
        raise ProjectConfigError(f"{path}: holds no entries; wanted some, as `models: config/models.tsv`")
    if "__use_yte__" in found:
        raise ProjectConfigError(
            f"{path}: __use_yte__: Snakemake would run the Python code in this file (yte). Remove this entry, and write values."
        )
    return found


def check_config(config: dict, *, schema: Path, source: str, components: Collection[str]) -> dict:
    """*config* with defaults filled in.

    Args:
        source: where it was read, for messages.
        components: names that entries by component may have, besides roles.

    Raises:
        ProjectConfigError: lists every entry that the schema refuses.
    """
    rules = read_schema(schema)
    filled = _with_defaults(config, rules)
    faults = [
        f"{'/'.join([*map(str, error.absolute_path), ''])}{text}"
        if error.validator == "additionalProperties"
        else f"{'/'.join(map(str, error.absolute_path))}: {text}"
        for error in jsonschema.Draft202012Validator(rules).iter_errors(filled)
        for text in _explain(error)
    ]
    faults = faults or list(_name_faults(filled, rules, components))
    if faults:
        raise ProjectConfigError(f"{source}: {_listed(faults, 'these entries cannot be used')}")
    return filled


def _name_faults(value: dict, schema: dict, components: Collection[str], above: str = "") -> Iterator[str]:
    """Entries by component, in which names are neither a role's nor a component's."""
    for name, entry in schema.get("properties", {}).items():
        if isinstance(value.get(name), dict):
            yield from _name_faults(value[name], entry, components, f"{above}{name}/")
    if isinstance(schema.get("additionalProperties"), dict):
        known = [*schema["properties"], *components]
        yield from (f"{above}{shown(name)}: unknown{_nearest(str(name), known)}" for name in value if name not in known)


def read_row_config(path: Path, config: dict, *, schema: Path, components: Mapping[str, str]) -> dict:
    """*config* with the entries of a row's own YAML file over it.

    An entry of a role counts for the components of that role which the project's config names, too.

    Args:
        components: name of each component -> its role.

    Raises:
        ProjectConfigError: the file cannot be read, or has entries that cannot be used, or that only the project has.
    """
    try:
        own = read_yaml(path)
    except UnreadableFile as error:
        raise ProjectConfigError(f"{error} Wanted a YAML file of config entries.") from None
    if not isinstance(own, dict):
        raise ProjectConfigError(
            f"{path}: no entries; wanted entries of config.yaml, such as `precision: {{unet: S16}}`"
        )
    known = read_schema(schema)["properties"]
    rows = [name for name, entry in known.items() if entry.get("ofRow")]
    if others := [str(name) for name in own if name in known and name not in rows]:
        raise ProjectConfigError(
            f"{path}: {', '.join(others)}: cannot be set for one row; set it in config/config.yaml. A row can set "
            f"{', '.join(rows)}."
        )
    return check_config(_laid_over(config, own, components), schema=schema, source=str(path), components=components)


def _laid_over(below: dict, above: dict, components: Mapping[str, str]) -> dict:
    """*above*'s entries over *below*'s, objects entry by entry, an entry of a role over those of its components."""
    of_roles = {name: above[role] for name, role in components.items() if name in below and role in above}
    laid = dict(below)
    for name, value in (of_roles | above).items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict)
        laid[name] = _laid_over(below[name], value, components) if both else value
    return laid


def _listed(faults: list[str], what: str) -> str:
    more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return what + ":\n" + "\n".join(f"  {fault}" for fault in [*faults[:MOST_FAULTS], *more])


def _typed(text: str, entry: dict):
    """Value of a cell by its column's type; the text itself where it is not a number, for the schema to refuse."""
    kind = entry.get("type")
    if kind == "integer" and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if kind == "number" and re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+", text):
        return float(text)
    return text


def read_models(path: Path, *, schema: Path, families: Collection[str]) -> dict[str, dict]:
    """Rows of the table *path* by model, typed, defaults filled in.

    `calibration_prompts` is a list of prompts, `embeddings` of paths, `loras` of `axbake.loras.rows.Lora`; `sizes` is added, and
    it, `image_guidance_scale` and `cfg_trunc_ratio` are what `axbake.runtime.values.Picture` has by these names.

    Args:
        families: that the column `family` may name.

    Raises:
        TableError: lists every cell that cannot be used, with its line in the file, its model and its column.
    """
    if not is_file(path):
        raise TableError(f"{shown(path, 400)}: no such file. config.yaml's entry models names the table of models.")
    rules = read_schema(schema)
    header, cells = _read_cells(path)
    known = rules["properties"]
    faults = [f"column {shown(name)}: unknown{_nearest(name, list(known))}" for name in header if name not in known]
    faults += [f"column {name}: missing" for name in rules["required"] if name not in header]
    faults += [
        f"column {shown(name)}: appears {count} times" for name, count in Counter(header).items() if count > 1 and name
    ]
    if faults:
        raise TableError(f"{path}: {_listed(faults, 'these columns cannot be used')}")
    rows = {
        line: {name: _typed(cell.strip(), known[name]) for name, cell in zip(header, row, strict=False) if cell.strip()}
        for line, row in cells.items()
    }
    for row in rows.values():
        if "sha256" in row:
            row["sha256"] = row["sha256"].lower()  # Civitai shows it in capitals
    # jsonschema tells of each missing column apart, and `_explain` of all of them each time.
    faults = list(
        dict.fromkeys(fault for line, row in rows.items() for fault in _row_faults(line, row, rules, families))
    )
    names = Counter(row.get("model") for row in rows.values())
    faults += [
        f"line {line} ({shown(row['model'])}), column model: {shown(row['model'])!r} appears {names[row['model']]} times"
        for line, row in rows.items()
        if names[row.get("model")] > 1 and row.get("model")
    ]
    if faults:
        raise TableError(f"{path}: {_listed(faults, 'these cells cannot be used')}")
    filled = [_with_defaults(row, rules) for row in rows.values()]
    return {
        row["model"]: row
        | {
            "calibration_prompts": read_prompts(Path(row["calibration_prompts"])),
            "embeddings": embedding_paths(row["embeddings"]),
            "loras": row_loras(row["loras"], [row["prompt"], row["negative_prompt"]]),
            "sizes": _sizes(row),
            "image_guidance_scale": row["image_guidance_scale"] if _is_for_instructions(row) else None,
            "cfg_trunc_ratio": row["cfg_trunc_ratio"] if row["cfg_trunc_ratio"] < 1 else None,
        }
        for row in filled
    }


def _read_cells(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The header, and the cells of each line that is neither blank nor a comment, by its number in the file.

    Cells are text as they stand, but for the quotes that spreadsheets put around some: prompts hold quotes and the word «null».
    """
    try:
        text = lines_of(read_text(path, most_bytes=MOST_BYTES))
    except UnreadableFile as error:
        raise TableError(f"{error} Wanted a table: {TABLE}.") from None
    try:
        table = pd.read_csv(
            io.StringIO("\n".join("" if line.lstrip().startswith("#") else line for line in text)),
            sep="\t",
            header=None,
            names=range(MOST_COLUMNS),  # so that a line of too many cells is seen, and not cut
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            skip_blank_lines=False,  # lines are counted as editors count them
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TableError(f"{path}: {error}. Wanted a table: {TABLE}.") from error
    lines = [[cell if isinstance(cell, str) else "" for cell in row] for row in table.itertuples(index=False)]
    lines = [line[: 1 + max((i for i, cell in enumerate(line) if cell.strip()), default=-1)] for line in lines]
    first = next((number for number, line in enumerate(lines) if line), None)
    if first is None:
        raise TableError(f"{path}: empty. Wanted a table: {TABLE}.")
    every = all(_is_quoted(name) for name in lines[first] if name)  # a spreadsheet may be told to quote all texts
    lines = [[unquoted(cell, every=every) for cell in line] for line in lines]
    header = [name.strip() for name in lines[first]]
    long = [number for number, line in enumerate(lines, start=1) if len(line) > len(header)]
    if long:
        raise TableError(
            f"{path}: line {', '.join(map(str, long))}: more cells than the {len(header)} of the header. Is a tab in a prompt?"
        )
    spaced = [
        number for number, line in enumerate(lines, start=1) if len(line) == 1 < len(header) and " " in line[0].strip()
    ]
    if spaced:
        raise TableError(
            f"{path}: line {', '.join(map(str, spaced))}: one cell, but the header has {len(header)}. Cells are "
            "separated by tabs; your editor may have written spaces instead. Copy the tabs of another row."
        )
    return header, {number: line for number, line in enumerate(lines, start=1) if line and number > first + 1}


def model_names(path: Path) -> list[str]:
    """Names in the column `model` of the table *path*, whose other cells are not looked at.

    Raises:
        TableError: no table.
    """
    header, lines = _read_cells(path)
    place = header.index("model") if "model" in header else len(header)
    return [cells[place].strip() for cells in lines.values() if len(cells) > place]


def commented_line(path: Path, model: str) -> int | None:
    """Number of the line in the table *path* that would be the row of *model* if it were no comment."""
    for number, line in enumerate(lines_of(read_text(path, most_bytes=MOST_BYTES)), start=1):
        if re.match(rf"\s*#[#\s]*{re.escape(model)}\s*\t", line):
            return number
    return None


def unquoted(cell: str, *, every: bool = False) -> str:
    """A cell without the quotes that a spreadsheet put around it, as it does where it has a quote or a comma in it.

    Others stay: whoever writes a prompt of one quoted word means the quotes.

    Args:
        every: whether the spreadsheet put quotes around all texts.
    """
    inside = cell.strip()[1:-1]
    if _is_quoted(cell) and (every or '""' in inside or "," in inside) and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"')
    return cell


def _is_quoted(cell: str) -> bool:
    return len(cell.strip()) > 1 and cell.strip()[0] == cell.strip()[-1] == '"'


def _row_faults(line: int, row: dict, rules: dict, families: Collection[str]) -> Iterator[str]:
    place = f"line {line} ({shown(row.get('model', 'no name'), MOST_QUOTED)})"
    for error in jsonschema.Draft202012Validator(rules).iter_errors(row):
        for text in _explain(error):
            column = f", column {error.absolute_path[0]}" if error.absolute_path else ", column"
            yield f"{place}{column}{':' if error.absolute_path else ''} {text}"
    yield from (f"{place}, column vae_tile: {fault}" for fault in _tile_faults(row, rules["properties"]["vae_tile"]))
    try:
        parse_source(row.get("checkpoint", ""))
    except BadSource as error:
        yield f"{place}, column checkpoint: {error}"
    if row.get("family") and row["family"] not in families:
        yield f"{place}, column family: {shown(row['family'])!r}: unknown{_nearest(row['family'], list(families))}"
    paths = embedding_paths(row.get("embeddings", ""))
    files = [(name, row[name]) for name in ("vae", "config", "calibration_prompts", *CANVAS) if row.get(name)]
    files += [("embeddings", path) for path in paths] + [
        ("loras", one.path) for one in lora_cells(row.get("loras", ""))
    ]
    if mistakes := [(name, said) for name, path in files if (said := path_mistake(path))]:
        yield from (f"{place}, column {name}: {said}" for name, said in mistakes)
        return
    if row.get("config") and not is_file(Path(row["config"])):
        yield f"{place}, column config: {shown(row['config'], 400)} not found; wanted a YAML file of config entries"
    if row.get("calibration_prompts"):
        try:
            read_prompts(Path(row["calibration_prompts"]))
        except PromptsError as error:
            yield f"{place}, column calibration_prompts: {error}"
    if row.get("mask") and not row.get("image"):
        yield f"{place}, column image: empty, but column mask is not; wanted both, of an inpainting model, or no mask"
    if "image_guidance_scale" in row and not _is_for_instructions(row):
        yield (
            f"{place}, column image_guidance_scale: {shown(row['image_guidance_scale'])}, wanted an empty cell: only models for "
            "instructions (InstructPix2Pix) take it, whose rows have an image and no mask"
        )
    yield from (f"{place}, column {fault}" for fault in lora_faults(row))
    for path in paths:
        if Path(path).suffix not in EMBEDDING_FORMS:
            yield f"{place}, column embeddings: {shown(path, 400)!r} is not one of {', '.join(EMBEDDING_FORMS)}"
    names = Counter(Path(path).stem.lower() for path in paths)  # capitals do not count in prompts
    for name in sorted(name for name, count in names.items() if count > 1):
        yield f"{place}, column embeddings: {shown(name, 400)!r} appears {names[name]} times"


def _is_for_instructions(row: Mapping[str, Any]) -> bool:
    """Whether a row gives a picture to draw on, and no mask."""
    return bool(row.get("image")) and not row.get("mask")


def _tile_faults(row: Mapping[str, Any], rules: Mapping[str, Any]) -> Iterator[str]:
    """Why the tiles of a row do not fit its picture."""
    tile, sides = row.get("vae_tile"), [row.get("height"), row.get("width")]
    lengths = [side for side in sides if isinstance(side, int)]
    most = min(lengths, default=0) // rules["multipleOf"] * rules["multipleOf"]
    if isinstance(tile, int) and len(lengths) == len(sides) and tile > min(lengths) and most:
        yield (
            f"{tile} is larger than the picture, which is {sides[0]} high and {sides[1]} wide; take at most {most}, or leave the"
            " cell empty"
        )


def _sizes(row: Mapping[str, Any]) -> tuple[int, ...]:
    """`Picture.sizes` of a row."""
    own = f"{row['height']}x{row['width']}"
    cells = row["original_size"], row["crop"], row["target_size"]
    texts = [cell or usual for cell, usual in zip(cells, (own, "0,0", own), strict=True)]
    return tuple(int(number) for text in texts for number in re.split("[x,]", text)) if any(cells) else ()


def embedding_paths(cell: str) -> list[str]:
    """Paths in a cell of the column `embeddings`, separated by commas."""
    return [path.strip() for path in cell.split(",") if path.strip()]


def read_prompts(path: Path) -> list[str]:
    """Prompts of the text file *path*, one per line, without blank lines and those that start with #.

    Raises:
        PromptsError: no such file, not UTF-8, no prompt in it, or one that is too long.
    """
    try:
        lines = [unquoted(line.strip()) for line in lines_of(read_text(path, most_bytes=MOST_BYTES))]
    except UnreadableFile as error:
        raise PromptsError(f"{error} Wanted text, one prompt per line.") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if long := [prompt for prompt in prompts if len(prompt) > MOST]:
        raise PromptsError(
            f"{path}: {shown(long[0], 40)!r} has {len(long[0])} characters; at most {MOST}. Is a line break missing?"
        )
    if not prompts:
        raise PromptsError(f"{path} has no prompts; wanted one per line")
    return prompts


def checkpoint_path(row: dict) -> Path:
    """A model's checkpoint, which is there.

    Raises:
        MissingCheckpoint: not there; says where to download it and where to put it.
    """
    path = Path(row["checkpoint"])
    if why := absence(path):
        source = f"Download it from {shown(row['source'], 400)} and save" if row["source"] else "Put"
        known = f" (SHA-256 {row['sha256']}{'…' if len(row['sha256']) < 64 else ''})" if row["sha256"] else ""
        raise MissingCheckpoint(
            f"{row['model']}: {shown(path, 400)} is {why}. {source} the file{known} there, or correct the column checkpoint. A "
            "run without targets leaves out this row and bakes the others."
        )
    return path


def checkpoint_sha256(row: dict) -> str:
    """SHA-256 of a model's checkpoint, compared with the table's; of a folder, that of its files' names and digests.

    Raises:
        MissingCheckpoint: not there.
        UnreadableCheckpoint: of no form that axbake reads, or a folder with parts missing.
        WrongChecksum: another file than the table's.
    """
    path = checkpoint_path(row)
    found = files_sha256(files_of(path))
    if not found.startswith(row["sha256"]):
        raise WrongChecksum(
            f"{row['model']}: {path} has SHA-256 {found}, the table says {row['sha256']}. Download it again, or "
            "correct the column sha256 if this is the right file."
        )
    return found


def vae_sha256(row: dict) -> str:
    """SHA-256 of the file in a row's column `vae`; of a folder, as `checkpoint_sha256` has it.

    Raises:
        UnreadableCheckpoint: of no form that axbake reads, or a folder with parts missing.
        MissingVae: not there.
    """
    path = Path(row["vae"])
    if why := absence(path):
        raise MissingVae(
            f"{row['model']}: {shown(path, 400)} is {why}. Put the VAE there, or correct the column vae; an empty cell takes "
            "the checkpoint's VAE."
        )
    return files_sha256(files_of(path))


def embeddings_sha256(row: dict) -> list[str]:
    """SHA-256 of each of a model's embeddings, in their order.

    Raises:
        MissingEmbedding: lists those that are not there.
    """
    missing = [shown(path, 400) for path in row["embeddings"] if not is_file(Path(path))]
    if missing:
        raise MissingEmbedding(
            f"{row['model']}: {', '.join(missing)}: not there. Put the files there, or correct the column embeddings."
        )
    return [file_sha256(Path(path)) for path in row["embeddings"]]


def canvas_sha256(row: dict) -> list[str]:
    """SHA-256 of the picture and the mask that a model draws on, as far as its row gives them.

    Raises:
        MissingCanvas: lists those that are not there.
    """
    paths = [Path(row[name]) for name in CANVAS if row[name]]
    if missing := [shown(path, 400) for path in paths if not is_file(path)]:
        raise MissingCanvas(
            f"{row['model']}: {', '.join(missing)}: not there. Put the files there, or correct the columns image and mask."
        )
    return [file_sha256(path) for path in paths]


def loras_sha256(row: dict, loras: list[Lora]) -> list[str]:
    """SHA-256 of each of a model's *loras*, in their order.

    Raises:
        MissingLora: lists those that are not there.
    """
    missing = [shown(lora.path, 400) for lora in loras if not is_file(Path(lora.path))]
    if missing:
        raise MissingLora(
            f"{row['model']}: {', '.join(missing)}: not there. Put the files there, or correct the column loras."
        )
    return [file_sha256(Path(lora.path)) for lora in loras]
