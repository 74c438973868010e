"""What the modules of this package define, and where a name leads, read from their sources without importing them."""

import ast
import builtins
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
ABOVE = Path(__file__).parents[2]  # the package
ANY = "*"  # an error of which it is not known what it is
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Place:
    """Where a name leads: to a definition, to a whole module (no name), or to another package (no module)."""

    module: str
    name: str


def file_of(name: str) -> Path | None:
    """File of the module *name* of this package; None if there is no such module."""
    base = ABOVE.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache
def is_module(name: str) -> bool:
    """Whether there is a module or package of this name in this package."""
    return bool(file_of(name)) or ABOVE.joinpath(*name.split(".")).is_dir()


@functools.cache
def module_of(name: str) -> "Module":
    """The module *name* of this package, read once."""
    return Module(name)


class Module:
    """The statements of a module's top level, and which names each binds.

    Imports, docstrings and what is for type checkers are not among them. A statement that holds others (`if`, `try` …) is one.

    Attributes:
        statements: in their order.
        names: what each of them binds.
        bound: name -> numbers of the statements that bind it.
        imports: name -> where imports lead it.
        loads: modules of the package that it imports.
        effects: numbers of the statements that do more than to bind names when the module is imported.
        scripts: numbers of those that run where the module is run as a program.
        loggers: names of its loggers.
        docstring: of the module.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        path = file_of(name)
        tree = ast.parse(path.read_bytes()) if path else ast.Module([], [])
        self.docstring = ast.get_docstring(tree, clean=False) or ""
        self.statements: list[ast.stmt] = []
        self.names: list[list[str]] = []
        self.bound: dict[str, list[int]] = {}
        self.imports: dict[str, list[Place]] = {}
        self.loads: set[str] = set()
        self.effects: list[int] = []
        self.scripts: list[int] = []
        self.loggers: set[str] = set()
        self._is_package = path is None or path.name == "__init__.py"
        for statement in tree.body:
            self._add(statement)

    def everything(self) -> list[Place]:
        """Where each of its names leads, and all modules in it."""
        places = [Place(self.name, name) for name in self.bound]
        places += [place for name in self.imports for place in self.define(name, [])]
        inside = ABOVE.joinpath(*self.name.split(".")).iterdir() if self._is_package else ()
        below = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").is_file()}
        return places + [Place(f"{self.name}.{name}", "") for name in sorted(below - {"__init__"})]

    def _add(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If) and is_type_checking(statement.test):
            for other in statement.orelse:
                self._add(other)
            return
        for node in _in_scope(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name, place in self.origins(node):
                    self.imports.setdefault(name, []).append(place)
                    self.loads |= loaded(place)
        if isinstance(statement, ast.Import | ast.ImportFrom) or is_text(statement):
            return
        index = len(self.statements)
        self.statements.append(statement)
        self.names.append(list(dict.fromkeys(bound(statement))))
        for name in self.names[index]:
            self.bound.setdefault(name, []).append(index)
        if _is_logger(statement):
            self.loggers |= set(self.names[index])
        if _is_script(statement):
            self.scripts.append(index)
        elif any(self._has_effect(node) for node in _in_scope(statement)):
            self.effects.append(index)

    def _has_effect(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Expr):
            return not is_text(node)
        if isinstance(node, ast.Assign | ast.Delete):
            parts = [part for target in node.targets for part in ast.walk(target)]
            return any(isinstance(part, ast.Attribute | ast.Subscript) for part in parts)
        if isinstance(node, ast.AugAssign | ast.AnnAssign):
            return not isinstance(node.target, ast.Name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return any(self._enters(chain_of(getattr(each, "func", each)) or "") for each in node.decorator_list)
        return isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Assert | ast.Raise)

    def _enters(self, decorator: str) -> bool:
        """Whether a decorator may enter what it decorates in a list: one of the package, or one that says so."""
        root = decorator.partition(".")[0]
        return "register" in decorator or any(place.module for place in self.define(root, []))

    def origins(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Place]]:
        """Names that an import binds, and where they lead."""
        above = ""
        if isinstance(node, ast.ImportFrom):
            parts = self.name.split(".") if self._is_package else self.name.split(".")[:-1]
            parts = parts[: len(parts) + 1 - node.level] if node.level else []
            above = ".".join([*parts, *filter(None, [node.module])])
        for alias in node.names:
            name, path = alias.name, f"{above}.{alias.name}" if above else alias.name
            if name == "*":
                raise ValueError(f"{self.name}: from {above} import *: cannot be followed; import each name.")
            is_own = path.partition(".")[0] == PACKAGE
            if above:
                yield alias.asname or name, Place(above, name) if is_own else Place("", path)
                continue
            whole = name if alias.asname else name.partition(".")[0]
            yield alias.asname or whole, Place(whole, "") if is_own else Place("", whole)
            if is_own and whole != name:  # what is loaded is the last of the path
                yield whole, Place(name, "")

    def follow(self, chain: str, imports: dict[str, list[Place]]) -> Iterator[Place]:
        """Where a name leads, or a row of attributes of one: `components.build`; nowhere if it is a builtin or local.

        Args:
            imports: name -> where imports within the definition lead it.
        """
        root, *attributes = chain.split(".")
        for place in imports.get(root, ()):
            yield from arrive(place, attributes)
        yield from self.define(root, attributes)

    def define(self, name: str, attributes: list[str]) -> Iterator[Place]:
        """Where *attributes* of a name of this module's top level lead."""
        if name in self.bound:
            yield Place(self.name, name)
        for place in self.imports.get(name, ()):
            yield from arrive(place, attributes)


def arrive(place: Place, attributes: list[str]) -> Iterator[Place]:
    """Where *attributes* of what an import gives lead: through modules that only hand a name on, to where it is defined."""
    if not place.module:
        yield place
        return
    if not is_module(place.module):
        raise ValueError(f"{place.module}: no such module, but {place.name or 'it'} is imported.")
    module, inner = module_of(place.module), f"{place.module}.{place.name}"
    if not place.name:
        yield from walk(place.module, attributes)
    elif place.name in module.bound or place.name in module.imports:
        yield from module.define(place.name, attributes)
    elif is_module(inner):
        yield from walk(inner, attributes)
    elif "__getattr__" in module.bound:
        yield Place(place.module, "")
    else:
        raise ValueError(f"{place.module}: does not define {place.name}, which is imported from it.")


def walk(name: str, attributes: list[str]) -> Iterator[Place]:
    """Where *attributes* of the module *name* lead; to the module itself if none of them is defined in it."""
    for number, attribute in enumerate(attributes):
        module = module_of(name)
        if attribute in module.bound or attribute in module.imports:
            yield from module.define(attribute, attributes[number + 1 :])
            return
        if not is_module(f"{name}.{attribute}"):
            break
        name = f"{name}.{attribute}"
    yield Place(name, "")


def loaded(place: Place) -> set[str]:
    """Modules of the package that an import of *place* loads, besides those that they are in."""
    if not place.module:
        return set()
    inner = f"{place.module}.{place.name}"
    return {place.module, inner} if place.name and is_module(inner) else {place.module}


def chain_of(node: ast.AST | None) -> str | None:
    """`a.b.c` of an expression that is a name, or attributes of one; None of any other."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else None


def is_type_checking(test: ast.expr) -> bool:
    """Whether what depends on *test* is for type checkers alone."""
    return chain_of(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def is_text(statement: ast.AST) -> bool:
    """Whether a statement is a constant on its own: a docstring, or `...`."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_script(statement: ast.stmt) -> bool:
    test = statement.test if isinstance(statement, ast.If) else None
    return isinstance(test, ast.Compare) and chain_of(test.left) == "__name__"


def _is_logger(statement: ast.stmt) -> bool:
    """Whether this is `logger = logging.getLogger(__name__)`.

    The lines of a logger of another name may be a program's output that another one reads, as those of the emulator are.
    """
    call = statement.value if isinstance(statement, ast.Assign) else None
    if not isinstance(call, ast.Call) or chain_of(call.func) != "logging.getLogger":
        return False
    return [chain_of(argument) for argument in call.args] == ["__name__"]


# Scopes ---------------------------------------------------------------------------------------------------------------


def _in_scope(node: ast.AST) -> Iterator[ast.AST]:
    """*node*, and all statements in it that run in its own scope; not those for type checkers."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    skipped = isinstance(node, ast.If) and is_type_checking(node.test)
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, part, None)
        if isinstance(inner, list) and not (skipped and part == "body"):
            for each in inner:
                yield from _in_scope(each)


def bound(node: ast.AST) -> Iterator[str]:
    """Names that *node* binds in the scope that it stands in."""
    children: Any = ()
    if isinstance(node, ast.Name):
        yield from () if isinstance(node.ctx, ast.Load) else (node.id,)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, COMPREHENSIONS):
        children = [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]  # bound around it
    elif isinstance(node, ast.If) and is_type_checking(node.test):
        children = node.orelse
    elif not isinstance(node, ast.Lambda):
        if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping):
            name = node.rest if isinstance(node, ast.MatchMapping) else node.name
            yield from (name,) if name else ()
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from bound(child)


def free(node: ast.AST, hidden: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names that *node* looks up in its module; *hidden*: names of the functions around it."""
    children: Any = ast.iter_child_nodes(node)
    if isinstance(node, ast.Name):
        yield from () if node.id in hidden else (node.id,)
    elif isinstance(node, ast.Global):
        yield from node.names
    elif isinstance(node, FUNCTIONS):
        for each in (*node.args.defaults, *filter(None, node.args.kw_defaults), *getattr(node, "decorator_list", [])):
            yield from free(each, hidden)
        children = node.body if isinstance(node.body, list) else [node.body]
        shared = {name for each in children for inner in ast.walk(each) for name in _shared(inner)}
        hidden = (hidden | set(parameters(node.args)) | {name for each in children for name in bound(each)}) - shared
    elif isinstance(node, COMPREHENSIONS):
        yield from free(node.generators[0].iter, hidden)
        hidden |= {name for part in node.generators for name in bound(part.target)}
    for child in children:
        yield from free(child, hidden)


def _shared(node: ast.AST) -> list[str]:
    return node.names if isinstance(node, ast.Global) else []


def parameters(arguments: ast.arguments) -> list[str]:
    """Names of a function's parameters, in their order."""
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [each.arg for each in every if each]


# Errors ---------------------------------------------------------------------------------------------------------------


def classes(module: Module, node: ast.expr | None, imports: dict[str, list[Place]]) -> set[str]:
    """Classes of errors that an expression names: one, a tuple of some, or a constant that holds them.

    A class of the package is known by its dotted name, one of Python by its name, one of another package by what is
    imported, behind a `?`; anything else is `ANY`.
    """
    if isinstance(node, ast.Tuple):
        return {kind for element in node.elts for kind in classes(module, element, imports)}
    if isinstance(node, ast.Starred):
        return classes(module, node.value, imports)
    chain = chain_of(node)
    places = list(module.follow(chain, imports)) if chain else []
    if not places:
        known = getattr(builtins, chain or "", None)
        return {known.__name__ if isinstance(known, type) else ANY}
    return {kind for place in places for kind in _classes_at(place)}


def _classes_at(place: Place) -> set[str]:
    if not place.module:
        return {f"?{place.name}"}
    found, module = set(), module_of(place.module)
    for index in module.bound.get(place.name, []):
        statement = module.statements[index]
        if isinstance(statement, ast.ClassDef):
            found.add(f"{place.module}.{place.name}")
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            found |= classes(module, statement.value, {})
        else:
            found.add(ANY)
    return found or {ANY}


@functools.cache
def ancestors(error: str) -> frozenset[str]:
    """A class of errors, and those that it derives from, each as `classes` has it."""
    if isinstance(known := getattr(builtins, error, None), type):
        return frozenset(kind.__name__ for kind in known.__mro__)
    found = {error}
    if error[0] not in (ANY, "?"):
        name, _, inside = error.rpartition(".")
        module = module_of(name)
        for index in module.bound[inside]:
            for base in getattr(module.statements[index], "bases", []):
                for above in classes(module, base, {}):
                    found |= ancestors(above)
    return frozenset(found)


@functools.cache
def is_heard(error: str, by: str) -> bool:
    """Whether `except` *by* may catch an *error*."""
    above = ancestors(error)
    if ANY in above or by == ANY or by in above:
        return True
    if any(kind[0] == "?" for kind in above):  # of which is not known what it derives from
        return "." not in by or by[0] == "?"
    # Another package may have a name of its own for a class of Python's: `socket.error` is OSError.
    return by[0] == "?" and bool({kind for kind in above if "." not in kind} - {"Exception", "BaseException", "object"})
