"""What a row of the table says of LoRAs: the column `loras`, and the web UI's `<lora:name:strength>` in its prompts.

The column says which files are fused, and how strongly. A mark in prompt or negative prompt, which names a file without its
ending, says the same and goes before the column, since that is where people change it (AUTOMATIC1111's
`extensions-builtin/Lora/extra_networks_lora.py`).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from axbake.networks.component import DENOISER, TEXT
from axbake.printable import shown
from axbake.runtime.prompt import LORA
from axbake.runtime.prompt import MOST as MOST_PROMPT

NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
ARGUMENT = re.compile(rf"\s*(?:(?P<name>te|unet)\s*=\s*)?(?P<number>{NUMBER})\s*")  # one strength
#: A1111's further arguments of a mark, and those of its extensions -> what they are
OTHER_ARGUMENTS = {
    "dyn": "a dynamic rank (dyn)",
    "lbw": "block weights of an extension (lbw)",
    "lbwe": "block weights of an extension (lbwe)",
    "start": "the steps of an extension (start)",
    "stop": "the steps of an extension (stop)",
    "step": "the steps of an extension (step)",
}
MOST_SHOWN = 8  # names in a message
MOST = 10.0  # strength; web UIs' users stay below 2
PROMPTS = ("prompt", "negative_prompt")
LCM_SCHEDULER, LCM_GUIDANCE = "lcm", (1, 2)


@dataclass(frozen=True)
class Lora:
    """A LoRA that a row gives to its model."""

    path: str
    text_encoder: float = 1.0  # strengths
    unet: float = 1.0

    @property
    def name(self) -> str:
        """What prompts call it."""
        return Path(self.path).stem

    def strength(self, role: str) -> float:
        """Of a component's role; 0 of those that LoRAs do not change."""
        return {TEXT: self.text_encoder, DENOISER: self.unet}.get(role, 0.0)


def _strengths(text: str) -> tuple[float, float]:
    """Of text encoder and UNet: `:0.8` of both, `:0.5:0.8`, `:te=0.5:unet=0.8`; nothing: 1. As A1111 reads them.

    Raises:
        ValueError: it is something else; says what.
    """
    plain: list[float] = []
    named: dict[str, float] = {}
    for argument in text.split(":")[1:]:
        match = ARGUMENT.fullmatch(argument)
        if match is None or (not match["name"] and len(plain) == 2):
            name = argument.partition("=")[0].strip()
            what = OTHER_ARGUMENTS.get(name, repr(shown(argument.strip(), 40)))
            raise ValueError(f"wanted one strength, or two, of text encoder and UNet (te=, unet=); found {what}")
        if match["name"]:
            named[match["name"]] = float(match["number"])
        else:
            plain.append(float(match["number"]))
    text_encoder = named.get("te", plain[0] if plain else 1.0)
    return text_encoder, named.get("unet", plain[1] if len(plain) > 1 else text_encoder)


def lora_cells(cell: str) -> list[Lora]:
    """LoRAs of a cell of the column `loras`: paths separated by commas, each with its strength or without."""
    found = []
    for item in filter(None, map(str.strip, cell.split(","))):
        path, *arguments = item.rsplit(":", 2)
        while arguments and not all(map(ARGUMENT.fullmatch, arguments)):  # a path may have colons
            path = f"{path}:{arguments.pop(0)}"
        found.append(Lora(path.strip(), *_strengths("".join(f":{argument}" for argument in arguments))))
    return found


def row_loras(cell: str, prompts: list[str]) -> list[Lora]:
    """LoRAs of a row with the strengths that count; in the column's order.

    Args:
        cell: of the column `loras`.
        prompts: prompt and negative prompt.
    """
    marks = {name: strengths for prompt in prompts for name, strengths in _marks(prompt)}
    found = lora_cells(cell)
    for number, lora in enumerate(found):
        if lora.name in marks and (given := _numbers(marks[lora.name])):
            found[number] = replace(lora, text_encoder=given[0], unet=given[1])
    return found


def _marks(prompt: str) -> list[tuple[str, str]]:
    # A longer prompt is refused, and the pattern takes time in the square of the length.
    return [(match["name"].strip().strip("\"'"), match["strengths"]) for match in LORA.finditer(prompt[:MOST_PROMPT])]


def lora_faults(row: dict) -> Iterator[str]:
    """What of a row's LoRAs cannot be used: the column, and what is wrong."""
    loras = lora_cells(row.get("loras", ""))
    names = Counter(lora.name for lora in loras)
    for lora in loras:
        if Path(lora.path).suffix != ".safetensors":
            yield f"loras: {shown(lora.path, 400)!r} is not the path of a .safetensors file, with its strength after a colon"
        if max(abs(lora.text_encoder), abs(lora.unet)) > MOST:
            yield f"loras: {shown(lora.path, 400)} has a strength above {MOST:g}"
    yield from (
        f"loras: {shown(name, 400)!r} appears {count} times" for name, count in sorted(names.items()) if count > 1
    )
    said: dict[str, set[str]] = {}
    for column in PROMPTS:
        for name, strengths in _marks(row.get(column, "")):
            if name not in names:
                continue
            try:
                given = _strengths(strengths)
            except ValueError as error:
                yield f"{column}: <lora:{shown(name)}{shown(strengths)}>: {error}"
                continue
            if max(map(abs, given)) > MOST:
                yield f"{column}: <lora:{shown(name)}{shown(strengths)}>: a strength above {MOST:g}"
            said.setdefault(name, set()).add(":".join(f"{number:g}" for number in given))
    for name, several in said.items():
        if len(several) > 1:
            yield f"prompt: <lora:{shown(name)}:…> appears with strengths {' and '.join(sorted(several))}; wanted one"


def unknown_marks(row: dict) -> Iterator[str]:
    """Marks in a row's prompts that change nothing, a sentence each.

    A model has its LoRAs in its weights, so calibration prompts cannot give it others, nor other strengths.
    """
    loras = {lora.name: lora for lora in row["loras"]}
    texts = [(f"column {column}", row[column]) for column in PROMPTS]
    texts += [("a calibration prompt", prompt) for prompt in row["calibration_prompts"]]
    there = ", ".join(list(loras)[:MOST_SHOWN]) + (" …" if len(loras) > MOST_SHOWN else "") or "there is none"
    seen = set()
    for place, text in texts:
        for name, strengths in _marks(text):
            mark = f"<lora:{shown(name)}{shown(strengths)}>"
            if mark in seen:
                continue
            seen.add(mark)
            if name not in loras:
                yield f"{mark} in {place} is not applied: it names no file of column loras ({there})"
            elif place.startswith("a") and _numbers(strengths) != (loras[name].text_encoder, loras[name].unet):
                yield (
                    f"{mark} in {place} is not applied with this strength: it is in the model's weights with another "
                    "strength"
                )


def _numbers(strengths: str) -> tuple[float, float] | None:
    """Strengths of a mark; None if they cannot be read."""
    try:
        return _strengths(strengths)
    except ValueError:
        return None


def lcm_advice(row: dict, path: Path) -> Iterator[str]:
    """What to change of a row that uses the LCM-LoRA *path*: its scheduler and guidance, which the LoRA was trained for."""
    low, high = LCM_GUIDANCE
    wrong = [f"scheduler {row['scheduler']}"] if row["scheduler"] != LCM_SCHEDULER else []
    wrong += [f"guidance_scale {row['guidance_scale']:g}"] if not low <= row["guidance_scale"] <= high else []
    if wrong:
        yield (
            f"{path} is an LCM-LoRA, and the row has {' and '.join(wrong)}: with scheduler {LCM_SCHEDULER}, "
            f"guidance_scale {low} to {high} and 4 to 8 steps it draws as it was trained"
        )
