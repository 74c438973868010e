"""The command `axbake` starts the workflow. `snakemake` in the same directory makes the same files."""

import argparse
import importlib
import os
import sys

import shtab

from axbake import __version__
from axbake.cache.errors import disks
from axbake.errors import AxbakeError
from axbake.printable import error_line

#: Command -> module with `arguments(parser)` and `run(options)`, and what the command is for
COMMANDS = {
    "bake": ("axbake.bake", "bake a checkpoint and open its report"),
    "demo": ("axbake.demo", "bake the demo model and open its report"),
    "inspect": ("axbake.inspect", "show what a file is and whether axbake can bake it"),
    "add": ("axbake.add", "add a row for a checkpoint to the table of models"),
    "plan": ("axbake.plan", "show what a run would do, why, and how long it takes"),
    "report": ("axbake.pages.overview", "write one page for all models that have a report"),
    "cache": ("axbake.cache.command", "show what the build cache holds and what can be removed"),
}


class Parser(argparse.ArgumentParser):
    """Takes words that may be left out behind options, too, as Python's own does from 3.13 on: `axbake add --name x FILE`."""

    _mixing = False

    def parse_known_args(self, args=None, namespace=None):
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        only: the one command whose module is imported; all of them without.
    """
    made = argparse.ArgumentParser(prog="axbake", description=__doc__)
    made.add_argument("--version", action="version", version=f"axbake {__version__}")
    shtab.add_argument_to(made, help="print the completion script for a shell")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (module, purpose) in COMMANDS.items():
        if only not in (None, name):
            commands.add_parser(name, help=purpose)
            continue
        does = importlib.import_module(module)
        command = commands.add_parser(name, help=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
        does.arguments(command)
        command.set_defaults(run=does.run)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 after an error, which is printed; 2 for a wrong command line; 130 when interrupted, 141 when who
    reads the output has left.
    """
    given = sys.argv[1:] if arguments is None else arguments
    wanted = next((word for word in given if not word.startswith("-")), None)
    completes = any(word.startswith("--print-completion") for word in given)
    made = parser(None if completes else wanted)
    # Plans hand Snakemake's options on, as they are given.
    options = made.parse_known_args(given)[0] if wanted == "plan" else made.parse_args(given)
    options.given = given[given.index(options.command) + 1 :]
    try:
        with disks():
            status = options.run(options)
        sys.stdout.flush()  # here, so that a reader who has left is noticed here
        return status
    except BrokenPipeError:  # `axbake inspect FILE | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141  # as shells have it: 128 + SIGPIPE
    except AxbakeError as error:
        print(error_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130  # as shells have it: 128 + SIGINT


if __name__ == "__main__":
    sys.exit(main())
