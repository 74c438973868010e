"""What a board is, and whether it can take a bundle: looked at before anything is sent to it or measured on it."""

import logging
import re
import shlex
from dataclasses import dataclass

from axbake.board.connection import Board, Section, run_script
from axbake.board.errors import FailedOnBoard, MissingProgram, NoSuchCard, UnreadableOutput
from axbake.board.tools import MOST_TABLE, Card, State, known_code, read_chip, read_smi
from axbake.printable import one_line

logger = logging.getLogger(__name__)
RUN_MODEL = {"card": "axcl_run_model", "soc": "ax_run_model"}
STATE = {"card": "axcl-smi", "soc": "cat /proc/ax_proc/mem_cmm_info /sys/class/thermal/thermal_zone0/temp"}
READERS = {"card": read_smi, "soc": read_chip}
PACKAGES = {"rsync": "rsync", "flock": "util-linux", "timeout": "coreutils", "sha256sum": "coreutils"}


@dataclass(frozen=True)
class Inspection:
    """What a board has."""

    free_bytes: int  # on the disk of the bundles' directory
    files: dict[str, str]  # SHA-256 of each file that lies in the bundle's directory, and in what was begun of it
    manifest: str  # text of the manifest there; empty if there is none
    state: State


def inspect_board(board: Board, model: str) -> Inspection:
    """Look at *board* and at what it has of *model*'s bundle; makes the directory of bundles.

    Raises:
        MissingProgram: lists all that are missing.
        MissingDriver, NoSuchCard, UnreadableOutput, FailedOnBoard, and what `run_script` raises.
    """
    place = shlex.quote(board.directory)
    there = shlex.quote(f"{board.directory}/{model}")
    begun = shlex.quote(f"{board.directory}/.incoming/{model}")
    body = f"""
{programs_section(board)}
section directory mkdir -p {place}
section space df -Pk {place}
section files find {there} {begun} -type f -exec sha256sum {{}} +
section manifest cat {there}/manifest.json
section state {STATE[board.kind]}
"""
    sections = run_script(board, body)
    check_programs(board, check(board, sections, "missing", "its programs could not be listed"))
    check(board, sections, "directory", f"no directory {board.directory} there (board/directory in config)")
    state = read_state(board, sections["state"])
    card_of(board, state)
    manifest = sections["manifest"]
    return Inspection(
        free_bytes=_free_bytes(sections["space"]),
        files=_digests(sections["files"].text, f"{board.directory}/{model}", f"{board.directory}/.incoming/{model}"),
        manifest="" if manifest.status else manifest.text,
        state=state,
    )


def programs_section(board: Board) -> str:
    """Commands for the section `missing`, which lists the programs that *board* needs and lacks."""
    programs = [*PACKAGES, RUN_MODEL[board.kind], *(["axcl-smi"] if board.kind == "card" else [])]
    listing = f"for name in {' '.join(programs)}; do command -v $name >/dev/null || echo $name; done"
    return f"missing() {{ {listing}; }}\nsection missing missing"


def check_programs(board: Board, section: Section) -> None:
    """Raise MissingProgram, which names all, if the section `missing` lists any."""
    if missing := section.text.split():
        raise MissingProgram(_missing_text(board, missing))


def check(board: Board, sections: dict[str, Section], name: str, what: str) -> Section:
    """The section *name*, whose command ended well.

    Raises:
        FailedOnBoard: it did not, or was not come to; says *what* failed and in which words.
    """
    section = sections.get(name)
    if section is None:
        raise FailedOnBoard(f"{board.name}: {what}: its shell ended before that. This job's log has its output.")
    if section.status:
        meant = known_code(section.text) or _last_words(section.text)
        raise FailedOnBoard(f"{board.name}: {what} (status {section.status}): {meant}")
    return section


def read_state(board: Board, section: Section) -> State:
    """What the command of `STATE` said in *section*.

    Raises:
        MissingDriver, FailedOnBoard, UnreadableOutput.
    """
    try:
        return READERS[board.kind](section.text)
    except UnreadableOutput:
        check(board, {section.name: section}, section.name, f"`{STATE[board.kind]}` failed")
        raise


def card_of(board: Board, state: State) -> Card:
    """The board's card that config names."""
    for card in state.cards:
        if card.index == board.device:
            return card
    known = ", ".join(f"{card.index} ({card.name})" for card in state.cards)
    raise NoSuchCard(f"{board.name}: no card {board.device} (board/device in config); found {known}.")


def _missing_text(board: Board, missing: list[str]) -> str:
    advice = [f"{name}: apt install {PACKAGES[name]}" for name in missing if name in PACKAGES]
    vendor = [name for name in missing if name not in PACKAGES]
    if vendor and board.kind == "card":
        advice.append(f"{', '.join(vendor)}: axclhost, the card's driver package; axbake also looks in /usr/bin/axcl")
    elif vendor:
        advice.append(f"{', '.join(vendor)}: AXERA's board support package; for a PCIe card, set board/kind: card")
    return f"{board.name}: missing: {', '.join(missing)}. Install there: {'; '.join(advice)}."


def _free_bytes(section: Section) -> int:
    figures = r"^\S.*?\s(\d{1,18})\s+(\d{1,18})\s+(-?\d{1,18})\s+\d+%"
    found = re.search(figures, section.text[:MOST_TABLE], re.MULTILINE)
    if section.status or found is None:
        raise UnreadableOutput(f"df -Pk printed: {one_line(section.text, 300)!r}; wanted blocks, used and available.")
    return int(found[3]) * 1024


def _digests(text: str, *places: str) -> dict[str, str]:
    """SHA-256 of the files in *places*, by place and path in it, as sha256sum prints them."""
    found = re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)
    return {path: sha256 for sha256, path in found if any(path.startswith(f"{place}/") for place in places)}


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text[-MOST_TABLE:].splitlines() if line.strip()]
    return one_line(" / ".join(lines[-3:]), 500) or "no reason given"
