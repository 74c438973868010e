"""What the code of every step of a job depends on: `depends.txt`, which a test compares with the code.

    python -m tests.unit.depends    writes it anew

A step's identity follows the definitions that it reaches (`axbake.jobs.code`), so every line here is code whose change builds the
step again; a new line for a step is a reason to look twice.
"""

import tempfile
from pathlib import Path

from axbake.jobs.code import symbols_of
from axbake.jobs.identity import Step
from axbake.jobs.values import decode, encode
from tests.rules import Planned, plan_all

PLACE = Path(__file__).with_suffix(".txt")
HEAD = """\
# What the code of each step depends on, for a Stable Diffusion 1.x model: modules of axbake, and how many of their definitions.
# Written by `python -m tests.unit.depends`; a diff here says which builds a change of the code, or a new import, makes anew.
"""


def text(planned: Planned) -> str:
    """The content of the file."""
    named: dict[tuple[str, tuple[str, ...]], set[str]] = {}  # step, and what it depends on -> components
    for steps in planned.steps.values():
        for step in steps:
            if any(name.partition(".")[0] == "axbake" for name in step.code):
                named.setdefault((_title(step), _modules(step)), set()).add(step.component or "")
    blocks = []
    for (title, modules), components in sorted(named.items()):
        of = ", ".join(sorted(components))
        blocks.append("\n".join([f"{title}{f': {of}' if of else ''}", *modules]) + "\n")
    return "\n".join([HEAD, *blocks])


def _title(step: Step) -> str:
    return step.function.rpartition(".")[2] + ("" if step.cached else " (not in the build cache)")


def _modules(step: Step) -> tuple[str, ...]:
    """Modules that *step* reaches, and of how many definitions of each."""
    _, given = encode(decode(step.settings))
    roots = (step.function, *dict.fromkeys(given))
    return tuple(f"  {module.removeprefix('axbake.')} {len(names)}" for module, names in symbols_of(*roots).items())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        PLACE.write_text(text(plan_all(Path(directory))))
