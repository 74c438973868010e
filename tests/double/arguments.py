"""The command line and the config as they are documented, checked against `documented.json`."""

import json
import re
from pathlib import Path
from typing import Any

DOCUMENTED = json.loads((Path(__file__).parent / "documented.json").read_text())
BUILD, RUN = DOCUMENTED["build_flags"], DOCUMENTED["run_flags"]
MESSAGES, PUBLISHED = DOCUMENTED["messages"], DOCUMENTED["published"]
TYPES = {"string": str, "bool": bool, "int32": int, "float": (int, float), "double": (int, float), "Struct": dict}
SWITCH = {"true": True, "1": True, "false": False, "0": False}
TOKEN = re.compile(r"""//[^\n]*|\#[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\])*")""", re.DOTALL)


class UsageError(Exception):
    """A flag that is not documented, or without its value."""


class ParseError(Exception):
    """A config that does not fit the documented messages."""


def parse(flags: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """Flag -> value, for *arguments* that are flags of *flags*; abbreviations are none of them."""
    found: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        flag = waiting.pop(0)
        kind = flags.get(flag.removeprefix("--")) if flag.startswith("--") else None
        if kind is None:
            raise UsageError(f"unrecognized arguments: {flag}")
        values = []
        while waiting and not waiting[0].startswith("--") and (kind == "list" or not values):
            values.append(waiting.pop(0))
        if kind == "value" and not values:
            raise UsageError(f"argument {flag}: expected one argument")
        name = flag.removeprefix("--")
        found[name] = (
            values if kind == "list" else SWITCH[(values or ["true"])[0].lower()] if kind == "switch" else values[0]
        )
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The JSON of *path*, without its comments."""
    return json.loads(TOKEN.sub(lambda match: match[1] or "", path.read_text(encoding="utf-8")))


def check(values: Any, message: str = "BuildConfig", path: str = "") -> None:
    """Raise ParseError unless *values* fit *message*."""
    if not isinstance(values, dict):
        raise ParseError(f"{path}: {values!r} is no {message}")
    fields = MESSAGES[message]
    for name, value in values.items():
        if name in PUBLISHED["fields"].get(message, ()):
            continue
        if name not in fields:
            raise ParseError(f'Message type "yamain.{message}" has no field named "{name}" at "{path}".')
        field = fields[name]
        if field.get("repeated") and not isinstance(value, list):
            raise ParseError(f'repeated field "{path}{name}" must be in [] which is {value!r}')
        for item in value if field.get("repeated") else [value]:
            _check_value(field, item, f"{path}{name}")
    missing = [name for name, field in fields.items() if field.get("required") and name not in values]
    if missing:
        raise ParseError(f'"{path}" of {message}: required: {", ".join(missing)}')
    if message == "LayerConfig":
        _check_layer(values, path)


def _check_value(field: dict, value: Any, path: str) -> None:
    known = PUBLISHED["enums"].get(field["type"], field.get("options", ()))
    if "options" in field and value not in known:
        raise ParseError(f'Invalid enum value {value!r} for enum type "yamain.{field["type"]}" at "{path}".')
    if field["type"] in MESSAGES:
        check(value, field["type"], f"{path}.")
    elif field["type"] in TYPES:
        wanted = TYPES[field["type"]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise ParseError(f'Failed to parse "{path}": {value!r} is no {field["type"]}')


def _check_layer(values: dict, path: str) -> None:
    ways = [name for name in ("layer_name", "layer_names", "op_type", "op_types") if values.get(name)]
    ways += ["start_tensor_names"] if values.get("start_tensor_names") and values.get("end_tensor_names") else []
    if len(ways) != 1:
        raise ParseError(f"{path}: must choose between layer_name, op_type, layer_names, op_types; found {ways}")


def check_build(values: dict[str, Any]) -> None:
    """Raise ParseError unless *values*, config and flags together, are a build that Pulsar2 is documented to do."""
    check(values)
    hardware, mode = values.get("target_hardware", "AX650"), values.get("npu_mode", "NPU1")
    if mode not in DOCUMENTED["npu_mode"].get(hardware, [mode]):
        raise ParseError(f"npu mode of {hardware} can be {DOCUMENTED['npu_mode'][hardware]}, not {mode}")
    for group in DOCUMENTED["exclusive"]:
        places = [path.split(".") for path in group]
        both = [".".join(place) for place in places if values.get(place[0], {}).get(place[1])]
        if len(both) > 1:
            raise ParseError(f"{' and '.join(both)} exclude each other")
    for entry in values.get("quant", {}).get("input_configs", []):
        if not Path(entry["calibration_dataset"]).is_file():
            raise FileNotFoundError(f"calibration dataset {entry['calibration_dataset']} does not exist")
