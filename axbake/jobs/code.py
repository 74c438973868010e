"""What of this package's code can change a function's result: the definitions that it reaches, directly or not.

A definition is a name bound at the top level of a module, with the statements that bind it. It reaches every definition
whose name it reads, also in another module; nothing is imported to find that out. So a function that nobody calls, a new
module, or what a package's `__init__` hands on to others changes no job's identity.

Left out is what cannot change a result: comments, docstrings, annotations, layout, and what only *speaks*. That is log lines,
progress, the texts of errors, and texts that are gathered for an error alone. The text of an error counts where code reads it
(`except … as error` and then `str(error)`, unless only for a log line or another error): there it can get into a result.

Followed are names, as Python's scopes have them. Not followed are modules named in strings (`importlib.import_module`, a child
process' `-m`), data files that code opens, and other packages; a rule has to name them. Code that the reading here
cannot follow (`from … import *`, `eval`, `__subclasses__` …) is an error.
"""

import ast
import builtins
import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = __name__.partition(".")[0]
DIGITS = 16  # of a digest: 64 bits; among 10,000 versions of a module two are the same by chance once in 4e11
#: Modules that only speak: what they define is never reached, and statements that only call it are left out.
SPEAKS = (
    "axbake.runtime.progress",  # log lines that say how far a job is; nothing of it comes back
)
#: Calls of these leave a log line and nothing else, of a logger that is called as its module. One of another name may be the
#: output of a program that another one reads, as the emulator's is by its job.
LOGS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
#: Errors whose arguments are values: an exit status, what a generator returns.
CARRIERS = {"SystemExit", "StopIteration", "StopAsyncIteration"}
#: What finds code, docstrings or annotations in ways that are not followed here.
REFUSED = {
    *("eval", "exec", "globals", "locals", "__import__", "__subclasses__", "__init_subclass__", "__set_name__"),
    *("__annotations__", "get_type_hints", "get_annotations", "getsource", "getdoc"),
}
#: What gives the text of an error without `except … as`.
LISTENING = {"exc_info", "format_exc", "format_exception", "TracebackException", "__cause__", "__context__"}
ANY = "*"  # an error of a class that cannot be known


def code_of(*functions: str) -> dict[str, str]:
    """Digest of all that *functions* reach of each module, by module.

    Args:
        functions: dotted names of functions, classes or constants of this package, or of whole modules:
            `axbake.graphs.export.export_onnx`.

    Raises:
        ValueError: there is no such thing, or it reaches code that cannot be followed.
    """
    return {module: part.digest() for module, part in sorted(_reach(functions).items())}


def symbols_of(*functions: str) -> dict[str, tuple[str, ...]]:
    """Names of all definitions that *functions* reach, by module; `<module>`: statements that run when it is imported."""
    return {module: tuple(sorted(part.names)) for module, part in sorted(_reach(functions).items())}


def parameters_of(function: str) -> tuple[str, ...]:
    """Names of a function's parameters, positional ones first; without those behind `*` and `**`.

    Raises:
        ValueError: there is no such function.
    """
    for place in _named(function):
        module = _module(place.module)
        for index in module.bound.get(place.name, []):
            statement = module.statements[index]
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = statement.args
                return tuple(a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
    raise ValueError(f"{function}: is not a function; wanted one of this package, with its module.")


# Reaching -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a name leads: a definition of a module, the module itself (no name), or another package's (no module)."""

    module: str
    name: str


@dataclass
class Part:
    """What is reached of one module."""

    module: str
    names: set[str] = field(default_factory=set)
    readings: dict[int, "Reading"] = field(default_factory=dict)  # by number of the statement
    origins: set[str] = field(default_factory=set)

    def digest(self) -> str:
        """Of the statements in their order, but that of plain functions does not count; and of what imported names mean."""
        statements = _module(self.module).statements
        ordered, loose = [], []
        for index in sorted(self.readings):
            (loose if _is_plain(statements[index]) else ordered).append(self.readings[index].digest)
        text = "\n".join([*ordered, "", *sorted(loose), "", *sorted(self.origins)])
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _is_plain(statement: ast.stmt) -> bool:
    """Whether *statement* is a function that computes nothing when it is defined."""
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) or statement.decorator_list:
        return False
    defaults = [*statement.args.defaults, *statement.args.kw_defaults]
    return all(default is None or isinstance(default, ast.Constant) for default in defaults)


@functools.cache
def _reach(functions: tuple[str, ...]) -> dict[str, Part]:
    """What *functions* reach, by module.

    Which texts of errors are heard is known only when all is reached, and they may reach more; so it is done until nothing comes
    in addition.
    """
    heard: frozenset[str] = frozenset()
    while True:
        closure = _Closure(heard)
        for function in functions:
            for place in _named(function):
                closure.reach(place)
        if closure.hears <= heard:
            return {name: part for name, part in closure.parts.items() if part.readings}
        heard |= closure.hears


def _named(function: str) -> list[Place]:
    """Where the dotted name *function* leads."""
    root, _, rest = function.partition(".")
    places = list(_walk(root, rest.split("."))) if root == PACKAGE else []
    found = [place for place in places if place.name or function == place.module]
    if not found:
        raise ValueError(f"{function}: no such definition; wanted one of {PACKAGE} with its module, as in the source.")
    return found


class _Closure:
    """All that is reached while the texts of errors of the classes *heard* count."""

    def __init__(self, heard: frozenset[str]) -> None:
        self.heard = heard
        self.hears: set[str] = set()
        self.parts: dict[str, Part] = {}
        self.seen: set[Place] = set()
        self.imported: set[str] = set()

    def reach(self, start: Place) -> None:
        waiting = [start]
        while waiting:
            place = waiting.pop()
            if place in self.seen or not place.module or place.module in SPEAKS:
                continue
            self.seen.add(place)
            module = _module(place.module)
            if not place.name:
                waiting += [Place(place.module, name) for name in module.bound]
                waiting += [goal for name in module.imports for goal in module.follow(name)]
                waiting += [Place(below, "") for below in module.below()]
            elif place.name in module.bound:
                self._part(module).names.add(place.name)
            waiting += self._import(place.module)
            for index in [*module.bound.get(place.name, []), *module.scripts]:
                waiting += self._take(module, index)

    def _part(self, module: "_Module") -> Part:
        return self.parts.setdefault(module.name, Part(module.name))

    def _take(self, module: "_Module", index: int) -> Iterable[Place]:
        part = self._part(module)
        if index in part.readings:
            return ()
        reading = module.reading(index, full=False)
        if any(_is_heard(error, by) for error in reading.unsaid for by in self.heard):
            reading = module.reading(index, full=True)
        part.readings[index] = reading
        part.origins |= reading.origins
        self.hears |= reading.hears
        for place in reading.uses:  # an error that a function builds, and another one may look into
            for maker in _module(place.module).bound.get(place.name, []) if place.module else ():
                self.hears |= _module(place.module).reading(maker, full=False).makes
        goals = [goal for name in reading.modules for goal in self._import(name)]
        return [*goals, *reading.places, *(Place(module.name, name) for name in module.names[index])]

    def _import(self, name: str) -> list[Place]:
        """What importing a module runs: statements that bind nothing, its own and those of what it imports."""
        goals: list[Place] = []
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self.imported or name in SPEAKS:
                continue
            self.imported.add(name)
            module = _module(name)
            waiting += [name.rpartition(".")[0]] if "." in name else []
            waiting += module.loads
            for index in module.effects:
                self._part(module).names.add("<module>")
                goals += self._take(module, index)
        return goals


# Errors ---------------------------------------------------------------------------------------------------------------


@functools.cache
def _ancestors(error: str) -> frozenset[str]:
    """An error's class and those that it derives from: dotted names in the package, names of builtins, others with a `?`."""
    if isinstance(known := getattr(builtins, error, None), type):
        return frozenset(kind.__name__ for kind in known.__mro__ if kind is not object)
    module, _, name = error.rpartition(".")
    found = {error}
    if error[0] not in (ANY, "?"):
        for index in _module(module).bound[name]:
            statement = _module(module).statements[index]
            for base in statement.bases if isinstance(statement, ast.ClassDef) else ():
                for above in _classes(_module(module), base, {}):
                    found |= _ancestors(above)
    return frozenset(found)


@functools.cache
def _is_heard(error: str, by: str) -> bool:
    """Whether `except` *by* may catch an *error*."""
    above = _ancestors(error)
    if ANY in above or by == ANY or by in above:
        return True
    if any(kind[0] == "?" for kind in above):  # whose bases are not known
        return "." not in by or by[0] == "?"
    # Another name of a builtin, such as `socket.error` of OSError.
    return by[0] == "?" and bool({kind for kind in above if "." not in kind} - {"Exception", "BaseException"})


def _classes(module: "_Module", node: ast.expr | None, imports: dict[str, list[Place]]) -> set[str]:
    """Classes that an expression names, as `_ancestors` has them: one, a tuple of some, a constant that holds them."""
    if isinstance(node, ast.Tuple):
        return {kind for element in node.elts for kind in _classes(module, element, imports)}
    if isinstance(node, ast.Starred):
        return _classes(module, node.value, imports)
    chain = _chain(node)
    if not chain:
        return {ANY}
    places = list(module.follow(chain, imports))
    if not places:
        known = getattr(builtins, chain, None)
        return {known.__name__ if isinstance(known, type) else ANY}
    found = set()
    for place in places:
        if not place.module:
            found.add(f"?{place.name}")
            continue
        origin = _module(place.module)
        for index in origin.bound.get(place.name, [-1]):
            statement = origin.statements[index] if index >= 0 else None
            if isinstance(statement, ast.ClassDef):
                found.add(f"{place.module}.{place.name}")
            elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                found |= _classes(origin, statement.value, {})
            else:
                found.add(ANY)
    return found


def _is_error(error: str) -> bool:
    """Whether a class is an error's, of the package or of Python."""
    return "BaseException" in _ancestors(error) and not CARRIERS & _ancestors(error)


# Modules --------------------------------------------------------------------------------------------------------------


def _file(name: str) -> Path | None:
    """File of the module *name* of this package; None if there is none of that name."""
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache
def _is_module(name: str) -> bool:
    return bool(_file(name)) or ROOT.joinpath(*name.split(".")).is_dir()


@functools.cache
def _module(name: str) -> "_Module":
    return _Module(name)


class _Module:
    """The statements of a module's top level, and which names each binds.

    Attributes:
        statements: all that count; imports on their own are not among them.
        names: what each of them binds, in the same order.
        bound: name -> numbers of the statements that bind it.
        imports: name -> what imports bind it to.
        loads: modules of the package that it imports.
        effects: numbers of the statements that do something when the module is imported.
        scripts: of those that do so when it is run as a program.
        loggers: names of its loggers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        path = _file(name)
        self.is_package = path is None or path.name == "__init__.py"
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
        self._readings: dict[tuple[int, bool], Reading] = {}
        for statement in tree.body:
            self._add(statement)

    def below(self) -> list[str]:
        """Modules and packages directly in this one."""
        if not self.is_package:
            return []
        found = [*ROOT.joinpath(*self.name.split(".")).iterdir()]
        names = {path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").is_file()}
        return sorted(f"{self.name}.{name}" for name in names - {"__init__"})

    def reading(self, index: int, *, full: bool) -> "Reading":
        """What statement *index* says; *full*: the texts of its errors too."""
        if (index, full) not in self._readings:
            self._readings[index, full] = _Reader(self, full=full).read(self.statements[index])
        return self._readings[index, full]

    def _add(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If) and _is_type_checking(statement.test):
            for other in statement.orelse:
                self._add(other)
            return
        for node in _in_scope(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name, place in self.origins(node):
                    self.imports.setdefault(name, []).append(place)
                    self.loads |= _loaded(place)
        if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass) or _is_text(statement):
            return
        index = len(self.statements)
        names = list(dict.fromkeys(_bound(statement)))
        self.statements.append(statement)
        self.names.append(names)
        for name in names:
            self.bound.setdefault(name, []).append(index)
        if _is_logger(statement):
            self.loggers |= set(names)
        if _is_script(statement):
            self.scripts.append(index)
        elif any(self._has_effect(node) for node in _in_scope(statement)):
            self.effects.append(index)

    def _has_effect(self, node: ast.AST) -> bool:
        """Whether a statement does more than to bind names."""
        if isinstance(node, ast.Expr):
            return not isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Assign | ast.Delete):
            return not all(isinstance(target, ast.Name | ast.Tuple | ast.List) for target in node.targets)
        if isinstance(node, ast.AugAssign | ast.AnnAssign):
            return not isinstance(node.target, ast.Name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):  # one that enters it in some list
            return any(self._enters(_chain(getattr(each, "func", each)) or "") for each in node.decorator_list)
        return isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Assert | ast.Raise)

    def _enters(self, decorator: str) -> bool:
        root = decorator.partition(".")[0]
        own = root in self.bound or any(place.module for place in self.imports.get(root, []))
        return own or "register" in decorator

    def origins(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Place]]:
        """Names that an import binds, and to what."""
        above = ""
        if isinstance(node, ast.ImportFrom):
            parts = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
            before = parts[: len(parts) + 1 - node.level] if node.level else []
            above = ".".join([*before, *filter(None, [node.module])])
        for alias in node.names:
            if alias.name == "*":
                raise ValueError(f"{self.name}: from {above} import *: cannot be followed; import each name.")
            if above:
                inside = above.partition(".")[0] == PACKAGE
                place = Place(above, alias.name) if inside else Place("", f"{above}.{alias.name}")
                yield alias.asname or alias.name, place
                continue
            root = alias.name.partition(".")[0]
            whole = alias.name if alias.asname else root
            yield alias.asname or root, Place(whole, "") if root == PACKAGE else Place("", whole)
            if root == PACKAGE and not alias.asname:  # what is loaded is the whole path
                yield root, Place(alias.name, "")

    def follow(self, chain: str, imports: dict[str, list[Place]] | None = None) -> Iterator[Place]:
        """Where a name, or a row of attributes of one, leads; nowhere if it is a builtin or local.

        Args:
            imports: name -> what imports within the definition bind it to.
        """
        root, *attributes = chain.split(".")
        for place in (imports or {}).get(root, ()):
            yield from _arrive(place, attributes)
        yield from self.define(root, attributes)

    def define(self, name: str, attributes: list[str]) -> Iterator[Place]:
        """The same of a name of this module's top level."""
        if name in self.bound:
            yield Place(self.name, name)
        for place in self.imports.get(name, ()):
            yield from _arrive(place, attributes)


def _arrive(place: Place, attributes: list[str]) -> Iterator[Place]:
    """Where *attributes* of what an import binds lead."""
    if not place.module:
        yield place
    elif not place.name:
        yield from _walk(place.module, attributes)
    elif not _is_module(place.module):
        raise ValueError(f"{place.module}: no such module of this package, but {place.name} is imported from it.")
    else:
        module = _module(place.module)
        if place.name in module.bound or place.name in module.imports:
            yield from module.define(place.name, attributes)
        elif _is_module(f"{place.module}.{place.name}"):
            yield from _walk(f"{place.module}.{place.name}", attributes)
        elif "__getattr__" in module.bound:
            yield Place(place.module, "")
        else:
            raise ValueError(f"{place.module}: defines no {place.name}, but it is imported from there.")


def _walk(name: str, attributes: list[str]) -> Iterator[Place]:
    """Where *attributes* of the module *name* lead; the module itself where they are no definition of it."""
    for number, attribute in enumerate(attributes):
        module = _module(name)
        if attribute in module.bound or attribute in module.imports:
            yield from module.define(attribute, attributes[number + 1 :])
            return
        if not _is_module(f"{name}.{attribute}"):
            break
        name = f"{name}.{attribute}"
    yield Place(name, "")


def _loaded(place: Place) -> set[str]:
    """Modules that an import of *place* loads, besides the packages that they are in."""
    if not place.module:
        return set()
    inner = f"{place.module}.{place.name}"
    return {place.module} | ({inner} if place.name and _is_module(inner) else set())


def _in_scope(node: ast.AST) -> Iterator[ast.AST]:
    """*node* and all statements in it that run in its scope, at once; not those for type checkers."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    blocks = [] if isinstance(node, ast.If) and _is_type_checking(node.test) else getattr(node, "body", [])
    for part in (blocks, getattr(node, "orelse", []), getattr(node, "finalbody", [])):
        for statement in part if isinstance(part, list) else ():
            yield from _in_scope(statement)
    for handler in getattr(node, "handlers", []):
        yield from _in_scope(handler)
    for case in getattr(node, "cases", []):
        for statement in case.body:
            yield from _in_scope(statement)


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that *node* binds in the scope that it stands in."""
    if isinstance(node, ast.Name):
        if not isinstance(node.ctx, ast.Load):
            yield node.id
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, COMPREHENSIONS):
        yield from (each.target.id for each in ast.walk(node) if isinstance(each, ast.NamedExpr))  # binds around it
        return
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        for statement in node.orelse:
            yield from _bound(statement)
        return
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    if isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)


def _free(node: ast.AST, hidden: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names that *node* looks up in its module, as Python's scopes have it; *hidden* are those of the functions around it."""
    if isinstance(node, ast.Name):
        if node.id not in hidden:
            yield node.id
    elif isinstance(node, FUNCTIONS):
        arguments = node.args
        outside = [*arguments.defaults, *filter(None, arguments.kw_defaults), *getattr(node, "decorator_list", [])]
        body = node.body if isinstance(node.body, list) else [node.body]
        own = {argument.arg for argument in ast.walk(arguments) if isinstance(argument, ast.arg)}
        own |= {name for statement in body for name in _bound(statement)}
        shared = {name for each in body for inner in _in_scope(each) for name in _declared(inner)}
        for child in outside:
            yield from _free(child, hidden)
        for child in body:
            yield from _free(child, (hidden | own) - shared)
    elif isinstance(node, COMPREHENSIONS):
        own = {name for part in node.generators for name in _bound(part.target)}
        yield from _free(node.generators[0].iter, hidden)
        for child in ast.iter_child_nodes(node):
            yield from _free(child, hidden | own)
    else:
        if isinstance(node, ast.Global):
            yield from node.names
        for child in ast.iter_child_nodes(node):
            yield from _free(child, hidden)


def _declared(node: ast.AST) -> list[str]:
    return node.names if isinstance(node, ast.Global) else []


def _chain(node: ast.AST | None) -> str | None:
    """`a.b.c` of an expression that is a name, or attributes of one; None of any other."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *parts[::-1]])


def _is_type_checking(test: ast.expr) -> bool:
    return _chain(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _is_script(statement: ast.stmt) -> bool:
    """Whether this is `if __name__ == "__main__"`."""
    test = statement.test if isinstance(statement, ast.If) else None
    return isinstance(test, ast.Compare) and _chain(test.left) == "__name__"


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_logger(statement: ast.stmt) -> bool:
    """Whether this is `logger = logging.getLogger(__name__)`."""
    value = statement.value if isinstance(statement, ast.Assign) else None
    if not isinstance(value, ast.Call) or _chain(value.func) != "logging.getLogger":
        return False
    return [_chain(argument) for argument in value.args] == ["__name__"]


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What one statement of a module's top level says.

    Attributes:
        places: definitions and modules whose names it reads.
        uses: of them, those that it does more with than to raise what they give.
        origins: what each imported name that it reads means.
        modules: of the package, that it imports within.
        unsaid: errors whose texts were left out.
        hears: errors whose texts it looks into.
        makes: errors that it returns, whose texts were left out.
    """

    digest: str
    places: frozenset[Place]
    uses: frozenset[Place]
    origins: frozenset[str]
    modules: frozenset[str]
    unsaid: frozenset[str]
    hears: frozenset[str]
    makes: frozenset[str]


SKIPPED = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind"}
FIELDS = {
    kind: (name, tuple(part for part in kind._fields if part not in SKIPPED))
    for name, kind in vars(ast).items()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


class _Reader:
    """Writes a statement as a row of words in which nothing counts but what can change a result.

    The words do not depend on Python's version, as `ast.dump` and `ast.unparse` do.
    """

    def __init__(self, module: _Module, *, full: bool) -> None:
        self.module = module
        self.full = full
        self.words: list[str] = []
        self.chains: set[str] = set()
        self.raised: set[str] = set()
        self.stored: set[str] = set()
        self.imports: dict[str, list[Place]] = {}
        self.unsaid: set[str] = set()
        self.hears: set[str] = set()
        self.makes: set[str] = set()
        self.speakers: set[str] = set()  # names of what `SPEAKS` gave
        self.speech: _Speech | None = None  # of the function that is being read
        self.in_class = False
        self.special: dict[type, Any] = {
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.Constant: self._constant,
            ast.JoinedStr: self._joined,
            ast.Call: self._call,
            ast.arg: self._argument,
            ast.FunctionDef: self._function,
            ast.AsyncFunctionDef: self._function,
            ast.ClassDef: self._class,
            ast.Import: self._import,
            ast.ImportFrom: self._import,
            ast.AnnAssign: self._annotated,
            ast.AugAssign: self._augmented,
            ast.Global: self._global,
            ast.If: self._if,
            ast.Raise: self._raise,
            ast.Assert: self._assert,
        }

    def read(self, statement: ast.stmt) -> Reading:
        self.write(statement)
        clashing = {chain.partition(".")[0] for chain in self.chains | self.raised} & self.stored
        clashing = {name for name in clashing if name in self.module.bound or name in self.module.imports}
        if clashing and not isinstance(statement, ast.Assign | ast.AugAssign):
            local = clashing - set(_free(statement))
            self.chains = {chain for chain in self.chains if chain.partition(".")[0] not in local}
            self.raised = {chain for chain in self.raised if chain.partition(".")[0] not in local}
        uses = {place: chain for chain in self.chains for place in self.module.follow(chain, self.imports)}
        raised = {place: chain for chain in self.raised for place in self.module.follow(chain, self.imports)}
        inner = {place for places in self.imports.values() for place in places}
        origins = {
            f"{chain.partition('.')[0]} {place.module} {place.name}"
            for place, chain in (uses | raised).items()
            if chain.partition(".")[0] in self.module.imports
        }
        return Reading(
            digest=hashlib.sha256("\n".join(self.words).encode()).hexdigest(),
            places=frozenset(uses) | frozenset(raised),
            uses=frozenset(uses),
            origins=frozenset(origins),
            modules=frozenset(name for place in inner for name in _loaded(place)),
            unsaid=frozenset(self.unsaid),
            hears=frozenset(self.hears),
            makes=frozenset(self.makes),
        )

    def write(self, node: Any) -> None:
        kind = node.__class__
        special = self.special.get(kind)
        if special:
            special(node)
            return
        name, parts = FIELDS[kind]
        self.words.append(name)
        for part in parts:
            value = getattr(node, part, None)
            if value.__class__ is list:
                self._row(value)
            elif isinstance(value, ast.AST):
                self.write(value)
            else:
                self.words.append(repr(value))

    def _row(self, values: list) -> None:
        self.words.append("(")
        for value in values:
            if isinstance(value, ast.stmt):
                if not self.is_idle(value):
                    self.write(value)
            elif isinstance(value, ast.AST):
                self.write(value)
            else:
                self.words.append(repr(value))
        self.words.append(")")

    def is_idle(self, statement: ast.stmt) -> bool:
        """Whether a statement does nothing, or only speaks."""
        if isinstance(statement, ast.Pass) or _is_text(statement):
            return True
        value = getattr(statement, "value", None)
        if not isinstance(value, ast.Call):
            return False
        if isinstance(statement, ast.Expr):
            return self.only_speaks(value)
        if isinstance(statement, ast.Assign) and self.is_speaker(value.func):
            targets = [_chain(target) for target in statement.targets]
            if all(targets) and not _does_more(value):
                self.speakers |= {target for target in targets if target}
                return True
        return False

    def only_speaks(self, call: ast.Call) -> bool:
        """Whether a call leaves nothing but a log line."""
        chain = _chain(call.func)
        if not chain or _does_more(call):
            return False
        root, _, method = chain.rpartition(".")
        logs = method in LOGS and (root in self.module.loggers or root == "logging")
        return logs or chain == "warnings.warn" or chain in self.speakers or self.is_speaker(call.func)

    def is_speaker(self, function: ast.expr) -> bool:
        """Whether a function is of a module that only speaks."""
        chain = _chain(function)
        places = list(self.module.follow(chain, self.imports)) if chain else []
        return bool(places) and all(place.module in SPEAKS for place in places)

    def errors(self, node: ast.expr | None) -> set[str]:
        """Errors whose class *node* is; empty if it is, or may be, anything else."""
        if not _chain(node):
            return set()
        found = _classes(self.module, node, self.imports)
        return found if all(kind[0] != "?" and _is_error(kind) for kind in found) else set()

    def _chained(self, chain: str) -> None:
        root, *attributes = chain.split(".")
        for name in (root, *attributes):
            if name in REFUSED and (name[0] == "_" or name == root or name.startswith("get")):
                raise ValueError(f"{self.module.name}: {name} finds code in a way that cannot be followed; name it.")
            if name in LISTENING:
                self.hears.add(ANY)
        if root == "__doc__":
            self.words.append(repr(self.module.docstring))

    def _name(self, node: ast.Name) -> None:
        self.words.append(f"={node.id}")
        if isinstance(node.ctx, ast.Load):
            self.chains.add(node.id)
            self._chained(node.id)
        else:
            self.stored.add(node.id)

    def _attribute(self, node: ast.Attribute) -> None:
        chain = _chain(node)
        if chain:
            self.words.append(f"={chain}")
            self.chains.add(chain)
            self._chained(chain)
        else:
            self.words += (".", node.attr)
            self.write(node.value)
            self._chained(f".{node.attr}")

    def _constant(self, node: ast.Constant) -> None:
        if self.speech and node in self.speech.blank:
            self.words.append("'…'" if node.value else "''")
        else:
            self.words.append(repr(node.value))

    def _joined(self, node: ast.JoinedStr) -> None:
        """An f-string; its constant parts may be in any number of pieces, which differs between Python's versions."""
        self.words.append("JoinedStr(")
        text = ""
        for value in node.values:
            if isinstance(value, ast.Constant):
                text += ("…" if value.value else "") if self.speech and value in self.speech.blank else value.value
                continue
            self.words += [repr(text)] if text else []
            text = ""
            self.write(value)
        self.words += [repr(text)] if text else []
        self.words.append(")")

    def _call(self, node: ast.Call) -> None:
        self.words.append("Call")
        self.write(node.func)
        if self.speech and node in self.speech.built:
            self.unsaid |= self.errors(node.func)
        elif self.is_speaker(node.func) and not _does_more(node):
            return
        else:
            self._row(node.args)
            self._row(node.keywords)

    def _argument(self, node: ast.arg) -> None:
        self.words.append(node.arg)
        self.stored.add(node.arg)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = self.speech
        self.stored.add(node.name)
        if not outer:
            self.speech = _Speech(self, node, method=self.in_class)
        self.words += (type(node).__name__, node.name)
        if node.name in REFUSED:
            self._chained(node.name)
        self.write(node.args)
        self._row(node.decorator_list)
        self._row(node.body)
        self.speech = outer

    def _class(self, node: ast.ClassDef) -> None:
        outer = self.speech, self.in_class
        self.speech, self.in_class = None, True
        self.stored.add(node.name)
        self.words += ("class", node.name)
        for part in (node.bases, node.keywords, node.decorator_list, node.body):
            self._row(part)
        self.speech, self.in_class = outer

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.words.append("import")
        for name, place in self.module.origins(node):
            self.words += (name, place.module, place.name)
            self.imports.setdefault(name, []).append(place)

    def _annotated(self, node: ast.AnnAssign) -> None:
        """The name and its value. Of what a dataclass reads in an annotation, the kinds that are no fields count."""
        self.words.append("AnnAssign")
        self.write(node.target)
        kinds = {getattr(part, "id", getattr(part, "attr", None)) for part in ast.walk(node.annotation)}
        self.words += sorted(kinds & {"ClassVar", "InitVar", "KW_ONLY"})
        if node.value:
            self.write(node.value)

    def _augmented(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.chains.add(node.target.id)
        self.words += ("AugAssign", type(node.op).__name__)
        self.write(node.target)
        self.write(node.value)

    def _global(self, node: ast.Global) -> None:
        self.chains |= set(node.names)
        self.words += ("global", *node.names)

    def _if(self, node: ast.If) -> None:
        if _is_type_checking(node.test):
            self._row(node.orelse)
            return
        self.words.append("If")
        self.write(node.test)
        self._row(node.body)
        self._row(node.orelse)

    def _assert(self, node: ast.Assert) -> None:
        self.words.append("Assert")
        self.write(node.test)
        if node.msg and self.full:
            self.write(node.msg)
        elif node.msg:
            self.unsaid.add("AssertionError")

    def _raise(self, node: ast.Raise) -> None:
        self.words.append("Raise")
        if self.full:
            for part in filter(None, (node.exc, node.cause)):
                self.write(part)
        elif node.exc:
            self._raised(node.exc)

    def _raised(self, node: ast.expr) -> None:
        function = node.func if isinstance(node, ast.Call) else node
        chain = _chain(function)
        if chain and (kinds := self.raisable(function)):
            self.words.append(chain)
            self.raised.add(chain)
            self.unsaid |= kinds
        elif isinstance(node, ast.IfExp):
            self.write(node.test)
            self._raised(node.body)
            self._raised(node.orelse)
        elif isinstance(node, ast.Call) and chain:
            self.words.append(chain)
            self.raised.add(chain)
            if self.speech and chain in self.speech.makers:
                self.unsaid |= self.speech.makers[chain] or {ANY}
            else:
                self._row(node.args)
                self._row(node.keywords)
        else:
            self.write(node)

    def raisable(self, function: ast.expr) -> set[str]:
        """Errors whose class *function* is, where it stands behind `raise`: there another package's is one too."""
        if kinds := self.errors(function):
            return kinds
        chain = _chain(function) or ""
        places = list(self.module.follow(chain, self.imports))
        return {f"?{place.name}" for place in places} if all(not place.module for place in places) else set()


def _does_more(call: ast.Call) -> bool:
    """Whether a call's arguments bind names, or hand over to another task."""
    return any(isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for node in ast.walk(call))


# Speaking -------------------------------------------------------------------------------------------------------------

COUNTED, SPOKEN, TRUTH, LENGTH, BUILT = ("counted", ""), ("spoken", ""), ("truth", ""), ("length", ""), ("built", "")
THROWN = ("thrown", "")
Use = tuple[str, str]  # where a name is read: one of the above, or in what way the value of which variable is made of it
JOINING = {"join", "format", "removeprefix", "removesuffix", "strip", "title", "capitalize", "splitlines"}
LISTING = {"str", "repr", "sorted", "list", "tuple"}


class _Speech:
    """Which texts in a function only speak.

    A local variable *speaks* if it is read nowhere but in the text of an error, a log line, or the value of another one that
    speaks. It *gathers* if it is also asked whether there is anything in it (`if faults`, `len(faults)` of a list), or
    gets more of the same (`faults += …`). The texts that such variables are given are blank, while the code around them counts;
    an empty text stays empty, so the answers stay the same.

    Scopes within the function are taken together: a name speaks only if it does so in all of them.

    Attributes:
        blank: string constants that only speak.
        built: calls of errors' classes whose arguments only speak.
        makers: function within, all of whose arguments go into an error's text -> classes of the error.
    """

    def __init__(self, reader: _Reader, function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> None:
        self.reader = reader
        self.blank: set[ast.AST] = set()
        self.built: set[ast.AST] = set()
        self.makers: dict[str, set[str]] = {}
        self._reads: dict[str, set[Use]] = {}
        self._values: dict[str, list[ast.expr]] = {}  # that a variable is given
        self._lists: dict[str, bool] = {}  # variable -> whether it is always a list
        self._elsewhere: set[str] = set()  # names that are bound in other ways
        self._inner: dict[str, list[str]] = {}  # functions within -> their parameters
        self._handlers: list[tuple[str, ast.expr | None]] = []
        self._calls: list[tuple[ast.Call, Use]] = []  # of errors' classes
        self._kinds: set[str] = set()  # of errors that are raised
        self._around = [None if method else ""]  # functions that the present place is in; "": the one of the top level
        self._special: dict[type, Any] = {
            ast.Name: self._name,
            ast.Call: self._call,
            ast.Lambda: self._apart,
            ast.ClassDef: self._apart,
            ast.NamedExpr: self._named,
            ast.comprehension: self._comprehension,
            ast.FunctionDef: self._function,
            ast.AsyncFunctionDef: self._function,
            ast.Import: self._import,
            ast.ImportFrom: self._import,
            ast.Raise: self._raise,
            ast.Assert: self._assert,
            ast.Return: self._return,
            ast.Assign: self._assign,
            ast.AnnAssign: self._annotated,
            ast.AugAssign: self._augmented,
            ast.Expr: self._expression,
            ast.If: self._if,
            ast.While: self._if,
            ast.IfExp: self._if,
            ast.ExceptHandler: self._handler,
            ast.Global: self._global,
        }
        self._elsewhere |= set(_parameters(function.args))
        for statement in function.body:
            self._walk(statement)
        self._decide(function)

    def _walk(self, node: ast.AST, use: Use = COUNTED) -> None:
        special = self._special.get(node.__class__)
        if special:
            special(node, use)
            return
        for part in FIELDS[node.__class__][1]:
            value = getattr(node, part, None)
            if value.__class__ is list:
                for each in value:
                    if isinstance(each, ast.AST):
                        self._walk(each, use)
            elif isinstance(value, ast.AST):
                self._walk(value, use)

    def _read(self, name: str, use: Use) -> None:
        self._reads.setdefault(name, set()).add(use)

    def _name(self, node: ast.Name, use: Use) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id, use)
        else:
            self._elsewhere.add(node.id)

    def _call(self, node: ast.Call, use: Use) -> None:
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if use == COUNTED and function in ("len", "bool") and [type(each) for each in node.args] == [ast.Name]:
            self._read(_chain(node.args[0]) or "", LENGTH if function == "len" else TRUTH)
            return
        if self.reader.is_speaker(node.func) and not _does_more(node):
            use = SPOKEN
        elif use not in (COUNTED, SPOKEN) and self.reader.errors(node.func):
            self._calls.append((node, use))
        else:
            self._walk(node.func, use)
        for each in (*node.args, *node.keywords):
            self._walk(each, use)

    def _apart(self, node: ast.Lambda | ast.ClassDef, use: Use) -> None:
        """What runs elsewhere, or is a scope that others see."""
        self._around.append(None)
        if isinstance(node, ast.Lambda):
            self._elsewhere |= set(_parameters(node.args))
        else:
            self._elsewhere.add(node.name)
        for child in ast.iter_child_nodes(node):
            self._walk(child)
        self._around.pop()

    def _named(self, node: ast.NamedExpr, use: Use) -> None:
        self._given(node.target.id, node.value)
        self._read(node.target.id, use)

    def _comprehension(self, node: ast.comprehension, use: Use) -> None:
        self._walk(node.target)
        self._walk(node.iter, use)
        for test in node.ifs:
            self._truth(test, use)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, use: Use) -> None:
        self._elsewhere |= {node.name, *_parameters(node.args)}
        self._inner[node.name] = _parameters(node.args)
        for each in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self._walk(each)
        self._around.append(None if self._around[-1] is None else node.name)
        for statement in node.body:
            self._walk(statement)
        self._around.pop()

    def _import(self, node: ast.Import | ast.ImportFrom, use: Use) -> None:
        for name, place in self.reader.module.origins(node):
            self.reader.imports.setdefault(name, []).append(place)
            self._elsewhere.add(name)

    def _raise(self, node: ast.Raise, use: Use) -> None:
        quiet = COUNTED if self.reader.full else SPOKEN
        if node.cause:
            self._walk(node.cause, quiet)
        if node.exc and self.reader.full:
            self._walk(node.exc)
        elif node.exc:
            self._thrown(node.exc)

    def _thrown(self, node: ast.expr) -> None:
        function = node.func if isinstance(node, ast.Call) else node
        arguments = [*node.args, *node.keywords] if isinstance(node, ast.Call) else []
        chain = _chain(function)
        if chain and (kinds := self.reader.raisable(function)):
            self._kinds |= kinds
            use = SPOKEN
        elif isinstance(node, ast.IfExp):
            self._truth(node.test, COUNTED)
            self._thrown(node.body)
            self._thrown(node.orelse)
            return
        elif isinstance(node, ast.Call) and chain in self._inner:
            self._read(chain, THROWN)
            self._kinds.add(ANY)
            use = ("given", chain)
        else:
            self._kinds.add(ANY)
            self._walk(node, SPOKEN if isinstance(node, ast.Name) else COUNTED)
            return
        for each in arguments:
            self._walk(each, use)

    def _assert(self, node: ast.Assert, use: Use) -> None:
        self._truth(node.test, COUNTED)
        if node.msg:
            self._kinds.add("AssertionError")
            self._walk(node.msg, COUNTED if self.reader.full else SPOKEN)

    def _return(self, node: ast.Return, use: Use) -> None:
        if node.value:
            self._returned(node.value)

    def _returned(self, node: ast.expr) -> None:
        around = self._around[-1]
        if isinstance(node, ast.IfExp):
            self._truth(node.test, COUNTED)
            self._returned(node.body)
            self._returned(node.orelse)
        elif around is not None and isinstance(node, ast.Call) and not self.reader.full:
            self._walk(node, ("made", around) if self.reader.errors(node.func) else COUNTED)
        else:
            self._walk(node)

    def _assign(self, node: ast.Assign, use: Use) -> None:
        target = node.targets[0]
        if self.reader.is_idle(node):
            self._walk(node.value, SPOKEN)
            self._elsewhere |= set(_bound(node))
        elif len(node.targets) == 1 and isinstance(target, ast.Name):
            self._given(target.id, node.value)
        else:
            for each in (*node.targets, node.value):
                self._walk(each)

    def _annotated(self, node: ast.AnnAssign, use: Use) -> None:
        if node.value and isinstance(node.target, ast.Name):
            self._given(node.target.id, node.value)
        elif node.value:
            self._walk(node.target)
            self._walk(node.value)

    def _augmented(self, node: ast.AugAssign, use: Use) -> None:
        if isinstance(node.target, ast.Name) and isinstance(node.op, ast.Add | ast.BitOr):
            self._more(node.target.id, node.value, element=False)
        else:
            self._walk(node.target)
            self._walk(node.value)
            if isinstance(node.target, ast.Name):
                self._read(node.target.id, COUNTED)

    def _expression(self, node: ast.Expr, use: Use) -> None:
        call = node.value
        if self.reader.is_idle(node):
            self._walk(call, SPOKEN)
            return
        method = call.func if isinstance(call, ast.Call) and len(call.args) == 1 and not call.keywords else None
        builds = isinstance(method, ast.Attribute) and isinstance(method.value, ast.Name)
        if builds and method.attr in ("append", "extend"):
            self._read(method.value.id, BUILT)
            self._more(method.value.id, call.args[0], element=method.attr == "append")
        else:
            self._walk(call)

    def _if(self, node: ast.If | ast.While | ast.IfExp, use: Use) -> None:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            body = node.orelse
        else:
            self._truth(node.test, use)
            body = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [*node.body, *node.orelse]
        for each in body:
            self._walk(each, use)

    def _truth(self, node: ast.expr, use: Use) -> None:
        """Of *node* is asked whether it is true; *use*: of what depends on it."""
        if use != COUNTED:
            self._walk(node, use)
        elif isinstance(node, ast.Name):
            self._read(node.id, TRUTH)
        elif isinstance(node, ast.NamedExpr):
            self._named(node, TRUTH)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._truth(node.operand, use)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self._truth(value, use)
        else:
            self._walk(node)

    def _handler(self, node: ast.ExceptHandler, use: Use) -> None:
        if node.type:
            self._walk(node.type)
        if node.name:
            self._handlers.append((node.name, node.type))
            self._elsewhere.add(node.name)
        for statement in node.body:
            self._walk(statement)

    def _global(self, node: ast.Global, use: Use) -> None:
        self._elsewhere |= set(node.names)

    def _given(self, name: str, value: ast.expr) -> None:
        """*name* is given a *value*."""
        self._lists[name] = self._lists.get(name, True) and _is_list(value)
        self._more(name, value, element=False)

    def _more(self, name: str, value: ast.expr, *, element: bool) -> None:
        """*value* comes into the one of *name*, or is it; *element*: as one thing in a list."""
        self._values.setdefault(name, []).append(value)
        self._part(value, name, element)

    def _part(self, node: ast.expr, name: str, element: bool) -> None:
        """Where names are read in a value: as a part of it that is like the whole, as an element, or in other ways."""
        if isinstance(node, ast.List | ast.Tuple):
            for each in node.elts:
                inner = each.value if isinstance(each, ast.Starred) else each
                self._part(inner, name, element or inner is each)
        elif isinstance(node, ast.ListComp | ast.GeneratorExp):
            self._part(node.elt, name, True)
            for each in node.generators:
                self._walk(each, ("used", name))
        elif isinstance(node, ast.IfExp):
            self._walk(node.test, ("used", name))
            self._part(node.body, name, element)
            self._part(node.orelse, name, element)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            self._part(node.left, name, element)
            self._part(node.right, name, element)
        elif isinstance(node, ast.BoolOp):
            for each in node.values:
                self._part(each, name, element)
        elif element:
            self._walk(node, ("element", name))
        else:
            self._walk(node, ("value" if isinstance(node, ast.Name) else "used", name))

    def _decide(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        own = self._lists.keys() - self._elsewhere
        speaks, gathers = set(own), set(own)
        thrown = {name for name in self._inner if self._reads.get(name, set()) <= {THROWN}}
        takers = set(thrown)

        def is_quiet(name: str, *, gathering: bool = False) -> bool:
            for kind, of in self._reads.get(name, ()):
                quiet = (
                    kind in ("spoken", "built")
                    or (kind in ("used", "value") and of in speaks)
                    or (kind == "value" and of == name and of in gathers)
                    or (kind == "element" and of in gathers)
                    or (kind == "made" and (of == "" or of in thrown))
                    or (kind == "given" and of in takers)
                    or (gathering and (kind == "truth" or (kind == "length" and self._lists[name])))
                )
                if not quiet:
                    return False
            return True

        while True:
            before = len(speaks) + len(gathers) + len(takers)
            speaks = {name for name in speaks if is_quiet(name)}
            gathers = {name for name in gathers if is_quiet(name, gathering=True)}
            takers = {name for name in takers if all(is_quiet(parameter) for parameter in self._inner[name])}
            if len(speaks) + len(gathers) + len(takers) == before:
                break
        for name, kind in self._handlers:
            if not is_quiet(name):
                self.reader.hears |= _classes(self.reader.module, kind, self.reader.imports) if kind else {ANY}
        if function.name in ("__exit__", "__aexit__") and not all(map(is_quiet, _parameters(function.args)[2:3])):
            self.reader.hears.add(ANY)
        if not self.reader.full:
            self._leave_out(speaks, gathers, thrown, takers)

    def _leave_out(self, speaks: set[str], gathers: set[str], thrown: set[str], takers: set[str]) -> None:
        self.makers = {name: set() for name in takers}
        for call, (kind, of) in self._calls:
            errors = self.reader.errors(call.func)
            if kind == "made" and of == "":
                self.reader.makes |= errors
            elif kind == "made" and of in self.makers:
                self.makers[of] |= errors
            if of in {"made": {"", *thrown}, "element": gathers}.get(kind, speaks):
                self.built.add(call)
        for name in speaks | gathers:
            self.blank |= {text for value in self._values[name] for text in _texts(value)}
        if self.blank:
            self.reader.unsaid |= self._kinds


def _parameters(arguments: ast.arguments) -> list[str]:
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [each.arg for each in every if each]


def _is_list(node: ast.expr) -> bool:
    """Whether an expression always makes a list, as long whatever texts are in it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_list(node.left) and _is_list(node.right)
    if isinstance(node, ast.IfExp):
        return _is_list(node.body) and _is_list(node.orelse)
    return isinstance(node, ast.List | ast.ListComp)


def _texts(node: ast.AST) -> Iterator[ast.Constant]:
    """Constants that are the text of a value, or parts of it, and not of what decides which."""
    if isinstance(node, ast.Constant):
        yield from [node] if isinstance(node.value, str) else []
        return
    parts: list[Any] = []
    if isinstance(node, ast.JoinedStr | ast.BoolOp | ast.Dict):
        parts = node.values
    elif isinstance(node, ast.FormattedValue | ast.Starred | ast.NamedExpr | ast.Subscript):
        parts = [node.value]
    elif isinstance(node, ast.List | ast.Tuple):
        parts = node.elts
    elif isinstance(node, ast.ListComp | ast.GeneratorExp):
        parts = [node.elt]
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod | ast.BitOr):
        parts = [node.left, node.right]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        method = node.func.attr
        parts = [node.func.value, *node.args] if method in JOINING else node.args[1:] if method == "get" else []
        parts = [*parts, node.func.value] if method == "get" else parts
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LISTING:
        parts = node.args
    for part in parts:
        yield from _texts(part)
