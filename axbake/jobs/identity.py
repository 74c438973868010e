"""A job's identity: all that decides its result besides its input files, and how it is run, as one small JSON file.

It is written while the workflow is read, only when its text changes, and is an input file of the job. So a changed setting
remakes what reads it and nothing else; and since the job reads its settings there and nowhere else, what is not in it
cannot change the result.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from axbake.digest import write_atomically

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"


def _module_path(module: str) -> Path | None:
    """File of *module* of this package; None if there is none of that name."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(tree: ast.AST, package: str) -> set[str]:
    """Modules of this package that *tree*, in *package*, imports, anywhere in it; and the packages that they lie in."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    names |= {name.rpartition(".")[0] for name in names}  # Python runs a package's __init__ before its modules
    return {name for name in names if name.split(".")[0] == "axbake" and _module_path(name)}


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


@functools.cache
def _own_digest(module: str) -> tuple[str, frozenset[str]]:
    """Digest of a module's code without comments and docstrings, and the modules it imports."""
    path = _module_path(module)
    assert path, f"no module {module}"
    tree = ast.parse(path.read_text())
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports = frozenset(_imports(tree, package) | {package})
    # Dumped without line numbers, so neither comments nor blank lines nor line breaks count.
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imports


@functools.cache
def code_digest(module: str) -> str:
    """Digest of *module* (`axbake.graphs.export`) and of all modules of the package that it imports, directly or not.

    Comments, docstrings and layout do not change it.
    """
    found: dict[str, str] = {}
    waiting = {module}
    while waiting:
        name = waiting.pop()
        digest, imports = _own_digest(name)
        found[name] = digest
        waiting |= imports - set(found)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@functools.cache
def data_digest(path: str) -> str:
    """Digest of a data file of this package, or of all files below a folder, by name and content.

    Args:
        path: from the checkout's root on: `resources/clip`.
    """
    base = ROOT / path
    files = sorted(file for file in base.rglob("*") if file.is_file()) if base.is_dir() else [base]
    contents = {str(file.relative_to(ROOT)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


@functools.cache
def tool_version(package: str) -> str:
    """Version of *package*: the installed one, or the pinned one where it lives in a rule's own environment."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pinned = re.search(rf"(?mi)^{re.escape(package)}==(\S+)", LOCK.read_text())
        assert pinned, f"{package} is in no environment and not in {LOCK.name}"
        return pinned[1]


@dataclass(frozen=True)
class Identity:
    """What decides a job's result besides its input files, and how the job is run."""

    function: str  # that does the work: axbake.graphs.export.export_onnx
    component: str | None
    settings: dict  # plain values; what the job reads, and nothing else
    means: dict  # the same of what does not decide the result, so is in no key: how a program is started
    sources: dict[str, str]  # input name -> SHA-256, of files that the user brings
    code: dict[str, str]  # module -> digest of it and of what it imports; data file or folder of the package -> digest
    tools: dict[str, str]  # Python package -> version
    cached: bool  # whether the result goes through the build cache
    gates: list[str]  # directories of results/{model} whose files must be there, but do not enter the result


def identify(
    function: str,
    *,
    component: str | None,
    settings: dict,
    sources: dict[str, str],
    tools: Sequence[str],
    cached: bool,
    means: dict | None = None,
    data: Sequence[str] = (),
    gates: Sequence[str] = (),
    own_code: bool = True,
) -> Identity:
    """Identity of a job that calls *function*.

    Args:
        tools: Python packages whose version can change the result.
        data: files and folders of the package that the job reads, from the checkout's root on.
        own_code: whether the code of this package that the job runs is part of it.
    """
    module = function.rpartition(".")[0]
    code = ({module: code_digest(module)} if own_code else {}) | {path: data_digest(path) for path in data}
    versions = {tool: tool_version(tool) for tool in tools}
    return Identity(function, component, settings, means or {}, sources, code, versions, cached, list(gates))


def write_identity(path: Path, identity: Identity) -> None:
    """Write *identity* to *path*, unless it says so already."""
    text = json.dumps(vars(identity), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        if path.read_text() == text:
            return
    except FileNotFoundError:
        pass
    write_atomically(path, text)


def read_identity(path: Path) -> Identity:
    """The identity in a settings file."""
    return Identity(**json.loads(path.read_text()))
