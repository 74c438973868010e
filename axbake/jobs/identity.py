"""A job's identity: all that decides its results besides its input files, and how it is run, as one small JSON file.

It is written while the workflow is read, only when its text changes, and is an input file of the job. So a changed setting
remakes what reads it and nothing else; and since the job reads its settings there and nowhere else, what is not in it
cannot change the result.

A job does one step or several, one after the other; each is a function of this package with a key of its own in the build cache.
"""

import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axbake.cache.errors import writing
from axbake.digest import write_atomically
from axbake.jobs.known import code_of, parameters_of
from axbake.jobs.values import encode
from axbake.root import ROOT, shipped

LOCK = ROOT / "requirements.lock"


@functools.cache
def data_digest(path: str) -> str:
    """Digest of a data file of this package, or of all files below a folder, by name and content.

    Modules are no data: of them counts what a step reaches, and Python writes compiled ones beside them when it likes.

    Args:
        path: from the checkout's root on: `resources/clip`.
    """
    base = shipped(path)
    below = (file for file in base.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc"))
    files = sorted(below) if base.is_dir() else [base]
    contents = {
        str(Path(path) / file.relative_to(base)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


@functools.cache
def tool_version(package: str) -> str:
    """Version of *package*: the installed one, or the pinned one where it lives in a rule's own environment."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pinned = re.search(rf"(?mi)^{re.escape(package)}==(\S+)", LOCK.read_text(encoding="utf-8"))
        assert pinned, f"{package} is in no environment and not in {LOCK.name}"
        return pinned[1]


@functools.cache
def _code(functions: tuple[str, ...], data: tuple[str, ...]) -> dict[str, str]:
    return code_of(*functions) | {path: data_digest(path) for path in data}


_parameters = functools.cache(parameters_of)


@dataclass(frozen=True)
class Step:
    """What decides the result of one function that a job calls, besides its input files, and how it is called."""

    function: str  # that does the work: axbake.graphs.export.export_onnx
    component: str | None  # that it is of, or address of a graph
    parameters: list[str]  # of the function, settings and means apart: those that the rule names are inputs and outputs
    names: dict[
        str, str | list[str]
    ]  # parameter -> what the rule calls those files, where not the same; of several, all names
    settings: dict  # encoded (`axbake.jobs.values`); what the function is given, and nothing else
    means: dict  # the same of what does not decide the result, so is in no key: how a program is started
    sources: dict[str, str]  # parameter -> SHA-256, of files that the user brings
    code: dict[str, str]  # module -> digest of what of it the function reaches; data file or folder -> digest
    tools: dict[str, str]  # Python package -> version
    cached: bool  # whether the result goes through the build cache


def identify(
    function: str,
    *,
    component: str | None,
    settings: Mapping[str, Any],
    sources: Mapping[str, str] | None = None,
    tools: Sequence[str] = (),
    names: Mapping[str, str | list[str]] | None = None,
    means: Mapping[str, Any] | None = None,
    data: Sequence[str] = (),
    own_code: bool = True,
    cached: bool = True,
) -> Step:
    """The step that calls *function*.

    Args:
        tools: Python packages whose version can change the result.
        data: files and folders of the package that the job reads, from the checkout's root on.
        own_code: whether the code of this package that the function reaches is part of it.
    """
    encoded = {name: encode(value) for name, value in settings.items()}
    given = {name: value for name, (value, _) in encoded.items()}
    roots = (function, *dict.fromkeys(one for _, names in encoded.values() for one in names))
    code = _code(roots if own_code else (), tuple(data))
    taken = [name for name in _parameters(function) if name not in given and name not in (means or {})]
    versions = {tool: tool_version(tool) for tool in tools}
    return Step(
        function=function,
        component=component,
        parameters=taken,
        names=dict(names or {}),
        settings=given,
        means=dict(means or {}),
        sources=dict(sources or {}),
        code=code,
        tools=versions,
        cached=cached,
    )


def write_steps(path: Path, steps: Sequence[Step]) -> None:
    """Write *steps* to *path*, unless it says so already.

    Raises:
        NotWritten
    """
    # One line per step: without indentation, json is ten times as fast.
    lines = [json.dumps(vars(step), sort_keys=True, ensure_ascii=False) for step in steps]
    text = '{"steps": [\n' + ",\n".join(lines) + "\n]}\n"
    with writing(path):
        try:
            if path.read_text(encoding="utf-8") == text:
                return
        except FileNotFoundError:
            pass
        write_atomically(path, text)


def read_steps(path: Path) -> list[Step]:
    """The steps in a settings file."""
    return [Step(**step) for step in json.loads(path.read_text(encoding="utf-8"))["steps"]]


Files = Mapping[str, list[Path]]  # by the name that the rule has for them


def files_of(steps: Sequence[Step], inputs: Files, outputs: Files) -> list[tuple[dict, dict]]:
    """Of each of a job's *steps*, the files that it reads and those that it makes, by parameter.

    A step makes an output that no step before it has made, and reads one that is made already. What no step takes only has to be
    there: a gate.

    Args:
        inputs, outputs: of the job.
    """
    made: set[str] = set()
    found = []
    for step in steps:
        reads, makes = {}, {}
        for parameter in step.parameters:
            names = names_of(step, parameter)
            if all(name in outputs and name not in made for name in names):
                makes[parameter] = [path for name in names for path in outputs[name]]
            elif all(name in made or name in inputs for name in names):
                reads[parameter] = [path for name in names for path in (outputs if name in made else inputs)[name]]
        made |= {name for parameter in makes for name in names_of(step, parameter)}
        found.append((reads, makes))
    return found


def names_of(step: Step, parameter: str) -> list[str]:
    """What the rule calls the files of a parameter."""
    name = step.names.get(parameter, parameter)
    return [name] if isinstance(name, str) else name
