"""Pulsar2's command line: `python -m axbake.emulator build|run|version`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axbake import __version__
from axbake.emulator.build import build
from axbake.emulator.config import NotEmulatedError
from axbake.emulator.fields import ENUM, INTEGER, MESSAGES, NUMBER, ROOT, SWITCH, Field
from axbake.emulator.run import run
from axbake.errors import AxbakeError

VERSION = f"axbake emulator {__version__} of Pulsar2 (emulated; its models run on hosts only)"

SECTIONS = {"": ROOT, "onnx_opt.": "OnnxOptimizeOption", "quant.": "QuantConfig", "compiler.": "CompilerConfig"}

RUN_UNDONE = {"config": "", "batch_size": 0, "enable_perlayer_output": False, "mode": "Reference", "group_index": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command that *arguments* (None: the process's) name."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("axbake.emulator").setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "build":
                flags = {name: value for name, value in vars(options).items() if name not in ("command", "config")}
                build(options.config, flags)
            case "run":
                _refuse_undone(options)
                run(options.model, options.input_dir, options.output_dir, options.list, options.random_input)
            case _:
                logging.getLogger("axbake.emulator").info(VERSION)
    except (AxbakeError, OSError) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"axbake emulator: {line}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m axbake.emulator", description=VERSION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build_flags(commands.add_parser("build", help="quantise a model", allow_abbrev=False))
    _add_run_flags(commands.add_parser("run", help="run a model on raw input files", allow_abbrev=False))
    commands.add_parser("version", help="print the version")
    return parser


def _add_build_flags(parser: argparse.ArgumentParser) -> None:
    """`--config`, and a flag for each field of the root and three sections that is not a message.

    A flag that is not given is absent from the result, so that it overrides nothing.
    """
    parser.add_argument("--config", type=Path, default=None, help="JSON file; comments and trailing commas are fine")
    for prefix, message in SECTIONS.items():
        for name, field in MESSAGES[message].items():
            if field.kind not in MESSAGES and not (prefix == "compiler." and name.endswith("_tensor_names")):
                parser.add_argument(f"--{prefix}{name}", default=argparse.SUPPRESS, **_flag(field))


def _flag(field: Field) -> dict[str, Any]:
    kinds = {INTEGER: int, NUMBER: float, SWITCH: _switch}
    arguments: dict[str, Any] = {"type": kinds.get(field.kind, str), "metavar": field.kind.upper()}
    if field.kind == ENUM:
        arguments["metavar"] = "|".join(field.options)
    if field.kind == SWITCH:
        return arguments | {"nargs": "?", "const": True}
    return arguments | ({"nargs": "*"} if field.repeated else {})


def _switch(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted one of {', '.join(values)}")
    return values[text.lower()]


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="float ONNX model, or emulated .axmodel")
    parser.add_argument("--input_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--list", type=Path, default=None, help="text file: one subdirectory of input_dir per line")
    parser.add_argument("--random_input", type=_switch, nargs="?", const=True, default=False)
    parser.add_argument("--config", default="")
    parser.add_argument("--batch_size", type=int, default=0)
    parser.add_argument("--enable_perlayer_output", type=_switch, nargs="?", const=True, default=False)
    parser.add_argument("--mode", default="Reference")
    parser.add_argument("--group_index", type=int, default=0)


def _refuse_undone(options: argparse.Namespace) -> None:
    refused = [
        f"--{name}: the emulator does not do {getattr(options, name)!r}; leave it out or use the real Pulsar2"
        for name, resting in RUN_UNDONE.items()
        if getattr(options, name) != resting
    ]
    if refused:
        raise NotEmulatedError("\n".join(refused))


if __name__ == "__main__":
    sys.exit(main())
