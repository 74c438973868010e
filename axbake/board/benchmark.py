"""What a bundle does on a board: times of each model and of whole pictures, memory, temperature, and the picture it draws."""

import base64
import binascii
import functools
import io
import json
import logging
import math
import re
import statistics
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from axbake.board.bundle import Bundle, read_bundle, refuse_emulated
from axbake.board.connection import Board, Section, run_script
from axbake.board.errors import BusyCard, FailedOnBoard, MissingProgram, NotEnoughCmm, UnreadableOutput
from axbake.board.inspection import RUN_MODEL, card_of, check, check_programs, read_state
from axbake.board.measurement import BUSY, WARMUP, pretty_name, script, steps_of
from axbake.board.tools import DeviceTimes, State, read_run_model
from axbake.printable import one_line

logger = logging.getLogger(__name__)
DEPLOYMENT = "results/{}/board/deployment.json"  # without it the bundle is copied anew


def benchmark_board(
    *,
    manifest: Path,
    host: str,
    user: str,
    port: int,
    directory: str,
    kind: str,
    device: int,
    python: str,
    repeats: int,
    pictures: int,
    benchmark: Path,
    image: Path,
) -> None:
    """Measure the bundle of *manifest* on the board, where `deploy_bundle` has put it.

    The card is locked meanwhile: another benchmark of axbake's on it waits. If the connection ends, so does the benchmark
    there, and nothing is written here.

    Args:
        host, user, port, directory, kind, device: as in config's entry `board`.
        python: the board's interpreter that has the packages of the bundle's requirements.txt.
        repeats: runs of each model by `axcl_run_model` or `ax_run_model`, after a warm-up.
        pictures: that txt2img.py draws, of each number of steps.
        benchmark: JSON to write; times in ms or s as the names say, memory in bytes or MiB, temperatures in °C.
        image: PNG to write: the row's own picture, drawn by the board.

    Raises:
        BoardError: of the kind that says what is wrong.
    """
    bundle = read_bundle(manifest)
    refuse_emulated(bundle)
    board = Board(host, user, port, directory, kind, device)
    commands = script(board, bundle, python=python, repeats=repeats, pictures=pictures)
    judge = functools.partial(check_section, board, bundle, python=python, repeats=repeats)
    sections = run_script(board, commands, tell=_teller(board), judge=judge)
    check(
        board,
        sections,
        "card",
        f"no directory {directory}/{bundle.model} there; delete {DEPLOYMENT.format(bundle.model)}",
    )
    check(board, sections, "picture", "the benchmark ended before its last command")
    models = {name: model_times(board, sections[f"model:{name}"], repeats) for name in bundle.models}
    drawings = {number: timings(board, bundle, sections[f"timings:{number}"]) for number in steps_of(bundle)}
    moments = ["start", *bundle.models, *map(str, steps_of(bundle))]
    states = {moment: read_state(board, sections[f"state:{moment}"]) for moment in moments}
    picture = _picture(board, sections["picture"], bundle.manifest["settings"])
    image.write_bytes(picture)
    content = {
        "ran_on": "board",
        "emulated": False,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": bundle.model,
        "manifest_sha256": bundle.files["manifest.json"],
        "settings": bundle.manifest["settings"],
        "board": {"name": pretty_name(sections["board"].text), "kind": kind, **_told_of_card(board, states)},
        "packages": _packages(sections["packages"])["versions"],
        "host": next(iter(drawings.values()))["host"],
        "warmup": WARMUP,
        "models": {name: _told_of_model(bundle, name, found) for name, found in models.items()},
        "drawings": {str(number): drawing_summary(found, bundle, models) for number, found in drawings.items()},
    }
    benchmark.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _teller(board: Board):
    """What the screen shows while the board works."""

    def tell(section: str, line: str | None) -> None:
        if section == "card" and line == "waiting":
            logger.warning(
                "card %d of %s: another benchmark is running there; waiting for it", board.device, board.name
            )
        if line is None and section.startswith(("model:", "draw:")):
            logger.info(
                "%s: %s", board.name, section.replace("model:", "measuring ").replace("draw:", "drawing, steps: ")
            )

    return tell


def check_section(board: Board, bundle: Bundle, section: Section, *, python: str, repeats: int) -> None:
    """Raise what *section*, which has just ended, says against going on."""
    place = f"{board.directory}/{bundle.model}"
    step, _, what = section.name.partition(":")
    if step == "missing":
        check_programs(board, section)
    if step == "card" and section.status == BUSY:
        raise BusyCard(
            f"{board.name}: another benchmark kept card {board.device} busy the whole time; run again later."
        )
    if step == "packages" and (missing := _packages(section)["missing"]):
        raise MissingProgram(
            f"{board.name}: {python} lacks {', '.join(missing)}. Install there, in a virtual environment that board/python in"
            f" config names: `{python} -m pip install -r {place}/requirements.txt`; axengine is a wheel of github"
            " AXERA-TECH/pyaxengine."
        )
    failed = {
        "card": f"card {board.device} could not be locked in /tmp",
        "packages": f"{python} does not run (board/python in config)",
        "compare": f"{place} does not match what was copied there; delete {DEPLOYMENT.format(bundle.model)} and run "
        "again",
        "model": f"{RUN_MODEL[board.kind]} failed on the {what}",
        "draw": f"txt2img.py failed at {what} steps",
        "timings": "txt2img.py wrote no timings",
        "picture": "txt2img.py wrote no picture",
    }
    if step in failed:
        check(board, {section.name: section}, section.name, failed[step])
    if section.name == "state:start":
        check_card(board, bundle, read_state(board, section))
    elif step == "state":
        read_state(board, section)
    elif step == "model":
        model_times(board, section, repeats)
    elif step == "timings":
        timings(board, bundle, section)


def check_card(board: Board, bundle: Bundle, state: State) -> None:
    """Raise unless the card is free of others' programs, and its memory takes the models."""
    card = card_of(board, state)
    others = [process for process in state.processes if process.card == board.device]
    if others:
        listed = ", ".join(f"{process.name} (process {process.pid})" for process in others)
        raise BusyCard(
            f"{board.name}: {listed} is using card {board.device}, so both would be slow. End it there, or run again "
            "when it is done."
        )
    needed = bundle.drawing_bytes / 2**20  # MiB
    if card.cmm_free < needed:
        raise NotEnoughCmm(
            f"{board.name}: card {board.device} has {card.cmm_free} of {card.cmm} MiB of CMM free, the files of "
            f"{', '.join(bundle.drawing)} alone are {needed:.0f} MiB. End the programs that use it (`axcl-smi`), or "
            "restart the card (`axcl-smi reboot`)."
        )


def _packages(section: Section) -> dict:
    """Versions of the board's packages, and which are missing; both empty if its Python did not come to say so."""
    found = re.search(r"^packages: (.+)$", section.text, re.MULTILINE)
    try:
        said = json.loads(found[1]) if found else {"versions": {}, "missing": []}
        versions = {one_line(name): one_line(version) for name, version in said["versions"].items()}
        return {"versions": versions, "missing": [one_line(name) for name in said["missing"]]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnreadableOutput(
            f"the board's Python printed {one_line(found[0] if found else '')!r} of its packages"
        ) from None


def model_times(board: Board, section: Section, repeats: int) -> DeviceTimes:
    """What AXERA's benchmark program found of one model."""
    return read_run_model(section.text, program=RUN_MODEL[board.kind], repeat=repeats)


def timings(board: Board, bundle: Bundle, section: Section) -> dict:
    """What the bundle's txt2img.py wrote of its pictures (docs/bundles.md, «--timings»)."""
    try:
        found = json.loads(section.text)
        if found["emulated"] or found["runtime"] == "onnxruntime":
            raise FailedOnBoard(f"{board.name}: txt2img.py ran on {one_line(found['runtime'])}, not on the card.")
        drawing_summary(found, bundle, {})
        host = {name: one_line(found["host"][name]) for name in ("machine", "system", "python")}
        cores = int(_quantity(found["host"]["cores"]))
        packages = {one_line(name): one_line(version) for name, version in found["host"]["packages"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = one_line(repr(error), 300)
        raise UnreadableOutput(f"txt2img.py's timings do not match docs/bundles.md: {why}") from error
    return found | {"host": host | {"cores": cores, "packages": packages}}


def drawing_summary(found: dict, bundle: Bundle, models: dict[str, DeviceTimes]) -> dict:
    """Seconds of the parts of pictures, over all pictures; and what of a component's run is not the device's.

    Args:
        found: timings of txt2img.py.
        models: what the device alone takes for each model, by address; empty: it was not measured.
    """
    drawn = found["pictures"]
    runs = {name: [run for picture in drawn for run in picture["runs"][name]] for name in bundle.drawing}
    return {
        "pictures": len(drawn),
        "load_seconds": {one_line(name): _quantity(seconds) for name, seconds in found["load_seconds"].items()},
        "text_embedding_seconds": spread([picture["text_embedding_seconds"] for picture in drawn]),
        "step_seconds": spread([step for picture in drawn for step in picture["step_seconds"]]),
        "decode_seconds": spread([picture["decode_seconds"] for picture in drawn]),
        "total_seconds": spread([picture["total_seconds"] for picture in drawn]),
        "program_seconds": _quantity(found["total_seconds"]),
        "seconds_of_each_step": [picture["step_seconds"] for picture in drawn],
        "run_ms": {name: spread([1000 * _quantity(run) for run in of_model]) for name, of_model in runs.items()},
        "beside_device_ms": {
            name: round(1000 * statistics.median(runs[name]) - sum(models[one].typical_ms for one in addresses), 3)
            for name, addresses in bundle.drawing.items()
            if models
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and range of *values*.

    Raises:
        ValueError, TypeError: there are none, or they are not quantities.
    """
    values = [_quantity(value) for value in values]
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 6) for name, value in found.items()} | {"count": len(values)}


def _quantity(value: float) -> float:
    """*value* if it is a number of seconds or milliseconds, or a count: finite, and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{one_line(repr(value), 40)} is not a number")
    if not 0 <= value < 1e12 or not math.isfinite(value):
        raise ValueError(f"{one_line(repr(value), 40)} is not a time")
    return value


def _picture(board: Board, section: Section, settings: dict) -> bytes:
    """The PNG in *section*, of the size in *settings*: a picture of another may fill the memory of who opens it."""
    wanted = settings["width"], settings["height"]
    try:
        picture = base64.b64decode("".join(section.text.split()), validate=True)
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            found = image.size
            if found == wanted:
                image.verify()
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableOutput(f"{board.name}: what txt2img.py drew is not a PNG ({one_line(str(error))}).") from error
    if found != wanted:
        raise UnreadableOutput(
            f"{board.name}: what txt2img.py drew is {found[0]} x {found[1]} pixels; wanted {wanted[0]} x {wanted[1]}."
        )
    return picture


def _told_of_card(board: Board, states: dict[str, State]) -> dict:
    card = card_of(board, states["start"])
    return {
        "card": card.name,
        "firmware": card.firmware,
        "driver": states["start"].driver,
        "cmm_mib": card.cmm,
        "cmm_used_mib": {name: card_of(board, state).cmm_used for name, state in states.items()},
        "temperature_c": {name: card_of(board, state).temperature for name, state in states.items()},
    }


def _told_of_model(bundle: Bundle, name: str, found: DeviceTimes) -> dict:
    file = bundle.models[name]
    return {
        "file": file,
        "sha256": bundle.files[file],
        "bytes": bundle.bytes_of(file),
        "repeat": found.repeat,
        "cores": found.kind,
        "cmm_bytes": found.cmm_bytes,
        "versions": found.versions,
        "device_ms": found.ms,
    }
