"""What AXERA's programs print on a board, read strictly: what is missing is an error, never a zero.

The forms are those of AXERA-TECH/axcl-runtime (`sample/engine/apps/benchmark/main.cc`), AXERA's `axcl-docs-en` (`axcl-smi`),
`pulsar2-docs-en` (`other_tools/ax_run_model.md`) and M5Stack's pages on the LLM-8850 card; `/proc/ax_proc/mem_cmm_info` as
programs of AXERA's and M5Stack's public repositories read it.
"""

import re
from dataclasses import dataclass

from axbake.board.errors import MissingDriver, UnreadableOutput
from axbake.printable import one_line

MOST_TABLE = 16_000  # characters of what these programs print; a card with a hundred processes has 10,000
# Codes of the AXCL runtime -> what they mean, and what to do
CODES = {
    "0x8030010b": (
        "the card's driver is not loaded (there is no /dev/axcl_host). Check that the card is seated (`lspci -d "
        "1f4b:`), and that axclhost is installed and built for this kernel (`dkms status`)."
    ),
    "0x8006008a": (
        "the card has no resources left. End the programs that use it, or restart it with `axcl-smi reboot`, and run "
        "again."
    ),
}
NUMBER = r"(\d+(?:\.\d+)?)"
CARD = re.compile(
    r"^\|\s+(?P<index>\d{1,9})\s+(?P<name>\S+)\s+(?P<firmware>\S+)\s+\|\s+(?P<bus>[0-9a-fA-F]+:[0-9a-fA-F:.]+)\s+\|"
    r"\s+(?P<memory_used>\d+) MiB /\s*(?P<memory>\d+) MiB \|\s*\n"
    r"\|\s+\S+\s+(?P<temperature>-?\d{1,9})C\s+\S+ / \S+\s+\|\s+(?P<cpu>\d+)%\s+(?P<npu>\d+)%\s+\|"
    r"\s+(?P<cmm_used>\d{1,15}) MiB /\s*(?P<cmm>\d{1,15}) MiB \|",
    re.MULTILINE,
)
TITLE = re.compile(r"AXCL-SMI\s+(?P<smi>\S+)\s+Driver\s+(?P<driver>\S+)")
CHIP = re.compile(r"total size=(?P<total>\d{1,15})KB\(.*?used=(?P<used>\d{1,15})KB\(.*?remain=\d+KB")
PROCESS = re.compile(r"^\|\s+(\d{1,9})\s+(\d{1,18})\s+(\S.*?)\s+(\d+) KiB \|", re.MULTILINE)
RULE = re.compile(r"^\s*-{20,}\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Process:
    """A program that has memory on a card."""

    card: int
    pid: int
    name: str


@dataclass(frozen=True)
class Card:
    """A card, or a chip that is the board's own. Memory for models (CMM) in MiB, temperature in °C."""

    index: int
    name: str
    firmware: str
    temperature: int
    cmm_used: int
    cmm: int

    @property
    def cmm_free(self) -> int:
        return self.cmm - self.cmm_used


@dataclass(frozen=True)
class State:
    """What a board's cards, or its own chip, are at."""

    driver: str  # version; empty on a chip of the board's own
    cards: tuple[Card, ...]
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class DeviceTimes:
    """What `axcl_run_model` or `ax_run_model` says of one model: times of the device alone, without copies to and from it."""

    kind: str  # cores that the model takes: «3 Core»
    warmup: int
    repeat: int
    cmm_bytes: int
    versions: dict[str, str]  # axclrt, pulsar2, engine, tool, as far as they are printed
    ms: dict[str, float]  # min, max, avg; of 100 repeats and more also median, 5%, 90%, 95%, 99%

    @property
    def typical_ms(self) -> float:
        """The median where it is printed, else the mean."""
        return self.ms.get("median", self.ms["avg"])


def known_code(text: str) -> str | None:
    """What the first code of the AXCL runtime in *text* means; None if there is none that is known."""
    found = re.search("|".join(CODES), text, re.IGNORECASE)
    return f"{found[0]}: {CODES[found[0].lower()]}" if found else None


def read_smi(text: str) -> State:
    """What `axcl-smi` printed.

    Raises:
        MissingDriver: it could not reach a card.
        UnreadableOutput: it is not the table that it is known to print.
    """
    _bounded("axcl-smi", text)
    if meant := known_code(text):
        raise MissingDriver(f"axcl-smi: {meant}")
    title = TITLE.search(text)
    if title is None:
        raise UnreadableOutput(_unreadable("axcl-smi", "a line «AXCL-SMI … Driver …»", text))
    above, _, below = text.partition("Processes:")
    cards = tuple(
        Card(
            index=int(found["index"]),
            name=found["name"],
            firmware=found["firmware"],
            temperature=int(found["temperature"]),
            cmm_used=int(found["cmm_used"]),
            cmm=int(found["cmm"]),
        )
        for found in CARD.finditer(above)
    )
    if not cards:
        raise UnreadableOutput(_unreadable("axcl-smi", "two lines a card, with its CMM-Usage", text))
    processes = tuple(Process(int(card), int(pid), name) for card, pid, name, _ in PROCESS.findall(below))
    return State(title["driver"], cards, processes)


def read_chip(text: str) -> State:
    """What `cat /proc/ax_proc/mem_cmm_info /sys/class/thermal/thermal_zone0/temp` printed on an AX650 board.

    Raises:
        MissingDriver: there is no such file.
        UnreadableOutput: its contents have another form.
    """
    _bounded("cat of mem_cmm_info and thermal_zone0", text)
    if "mem_cmm_info: No such file" in text:
        raise MissingDriver(
            "there is no /proc/ax_proc/mem_cmm_info: AXERA's kernel modules are not loaded, or this board does not "
            "have an AX650. For a PCIe card, set board/kind: card."
        )
    memory = CHIP.search(text)
    temperature = re.search(r"^(-?\d{1,9})$", text, re.MULTILINE)  # thousandths of °C
    if memory is None or temperature is None:
        raise UnreadableOutput(
            _unreadable("cat of mem_cmm_info and thermal_zone0", "a total size, used, remain, and °C", text)
        )
    used, total = (int(memory[name]) // 1024 for name in ("used", "total"))
    return State("", (Card(0, "SoC", "", int(temperature[1]) // 1000, used, total),), ())


def read_run_model(text: str, *, program: str, repeat: int) -> DeviceTimes:
    """What `axcl_run_model` or `ax_run_model` printed of a run that ended well.

    Args:
        program: its name, for messages.
        repeat: what was asked for; of 100 and more it prints a median and percentiles too.

    Raises:
        UnreadableOutput: something that it is known to print is not there, or the figures contradict each other.
    """
    _bounded(program, text)
    parts = RULE.split(text)
    named = (line.partition(":") for line in parts[0].splitlines())
    fields = {name.strip(): value.strip() for name, _, value in named if value[:1] in (" ", "\t") and value.strip()}
    ms = {name: float(value) for name, value in re.findall(rf"(\w+%?)\s*=\s*{NUMBER} ms", "".join(parts[1:2]))}
    wanted = ["min", "max", "avg", *(["median", "5%", "90%", "95%", "99%"] if repeat >= 100 else [])]
    missing = [name for name in ("type", "warmup", "repeat", "pulsar2 ver", "cmm size") if name not in fields]
    missing += [f"{name} = … ms" for name in wanted if name not in ms]
    cmm = re.fullmatch(r"(\d{1,15}) Bytes", fields.get("cmm size", ""))
    counts = {name: fields.get(name, "") for name in ("warmup", "repeat")}
    missing += [
        f"a number at {name}"
        for name, value in counts.items()
        if name in fields and not re.fullmatch("[0-9]{1,9}", value)
    ]
    if missing or cmm is None:
        raise UnreadableOutput(_unreadable(program, ", ".join(missing) or "«cmm size: … Bytes»", text))
    if int(counts["repeat"]) != repeat or not ms["min"] <= ms["avg"] <= ms["max"]:
        raise UnreadableOutput(_unreadable(program, f"{repeat} repeats, and an avg between min and max", text))
    return DeviceTimes(
        kind=fields["type"],
        warmup=int(counts["warmup"]),
        repeat=repeat,
        cmm_bytes=int(cmm[1]),
        versions={name.removesuffix(" ver"): value for name, value in fields.items() if name.endswith(" ver")},
        ms=ms,
    )


def _bounded(program: str, text: str) -> None:
    """Raise UnreadableOutput if *text* is longer than anything that *program* prints."""
    if len(text) > MOST_TABLE:
        raise UnreadableOutput(_unreadable(program, f"at most {MOST_TABLE} characters, not {len(text)}", text))


def _unreadable(program: str, wanted: str, text: str) -> str:
    lines = [line.strip() for line in text[:MOST_TABLE].splitlines() if line.strip()]
    said = one_line(" / ".join(lines[:3]), 300) or "nothing"
    return (
        f"{program} printed: {said}; wanted {wanted}. The whole output is in this job's log. Another version of "
        f"{program} may print a different format: please report it with the log."
    )
