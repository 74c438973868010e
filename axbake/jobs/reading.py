"""What a statement of a module's top level says, as a digest of all that can change a result, and where it leads."""

import ast
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

from axbake.jobs.definitions import ANY, Module, Place, chain_of, classes, free, is_text, is_type_checking, loaded
from axbake.jobs.speech import FIELDS, REPORTERS, Names, Speech, does_more

#: What finds code, docstrings or annotations by other means than names.
REFUSED = {"eval", "exec", "globals", "locals", "__import__"}
REFUSED_ATTRIBUTES = {
    *("__subclasses__", "__init_subclass__", "__doc__", "__annotations__"),
    *("get_type_hints", "get_annotations", "getsource", "getdoc"),
}
#: What gives the text of an error without `except … as`.
LISTENING = {
    *("exc_info", "exception", "TracebackException", "__cause__", "__context__"),
    *("format_exc", "format_exception", "print_exc", "print_exception"),
}
#: Parts of annotations that a dataclass reads.
NO_FIELDS = {"ClassVar", "InitVar", "KW_ONLY"}


@dataclass(frozen=True)
class Reading:
    """What one statement says.

    Attributes:
        places: where its names lead within the package.
        uses: those of them that it does more with than to raise what they give.
        origins: what each imported name that it reads means.
        modules: of the package, that are imported within it.
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


@functools.cache
def reading_of(module: Module, index: int, *, full: bool) -> Reading:
    """What statement *index* of *module* says; *full*: the texts of its errors too."""
    statement = module.statements[index]
    reading = _Reader(module, statement, full=full).read()
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (full or not reading.unsaid):
        statement.body = []  # read for the last time, and its reading is kept; all of them are 40 MB
    return reading


class _Reader:
    """Writes a statement as a row of words.

    They are the same in all versions of Python, as those of `ast.dump` and `ast.unparse` are not.
    """

    def __init__(self, module: Module, statement: ast.stmt, *, full: bool) -> None:
        self.module = module
        self.statement = statement
        self.full = full
        self.names = Names(module, statement)
        self.words: list[str] = []
        self.chains: set[str] = set()  # names that are read, with their attributes
        self.raised: set[str] = set()  # those behind `raise`
        self.unsaid: set[str] = set()
        self.hears: set[str] = set()
        self.makes: set[str] = set()
        self.speech: Speech | None = None  # of the function that is being read
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
            ast.ExceptHandler: self._handler,
            ast.Raise: self._raise,
            ast.Assert: self._assert,
        }

    def read(self) -> Reading:
        self._write(self.statement)
        local = self._local()
        follow, imports = self.module.follow, self.names.imports
        chains = {chain for chain in self.chains | self.raised if chain.partition(".")[0] not in local}
        pairs = [(chain, place) for chain in chains for place in follow(chain, imports)]
        roots = [(chain.partition(".")[0], place) for chain, place in pairs]
        origins = {f"{root} {place.module} {place.name}" for root, place in roots if root in self.module.imports}
        inner = {place for places in imports.values() for place in places}
        return Reading(
            digest=hashlib.sha256("\n".join(self.words).encode()).hexdigest(),
            places=frozenset(place for _, place in pairs if place.module),
            uses=frozenset(place for chain, place in pairs if place.module and chain in self.chains),
            origins=frozenset(origins),
            modules=frozenset(name for place in inner for name in loaded(place)),
            unsaid=frozenset(self.unsaid),
            hears=frozenset(self.hears),
            makes=frozenset(self.makes),
        )

    def _local(self) -> set[str]:
        """Names that the module binds too, but that are always a function's own here."""
        roots = {chain.partition(".")[0] for chain in self.chains | self.raised}
        clashing = {name for name in roots & self.names.stored if any(True for _ in self.module.define(name, []))}
        clashing -= set(self.names.imports)
        return clashing - set(free(self.statement)) if clashing else set()

    def _write(self, node: Any) -> None:
        special = self.special.get(node.__class__)
        if special:
            special(node)
            return
        name, parts = FIELDS[node.__class__]
        self.words.append(name)
        for part in parts:
            value = getattr(node, part, None)
            if value.__class__ is list:
                self._row(value)
            elif isinstance(value, ast.AST):
                self._write(value)
            else:
                self.words.append(repr(value))

    def _row(self, values: list) -> None:
        self.words.append("(")
        for value in values:
            if not isinstance(value, ast.AST):
                self.words.append(repr(value))
            elif not isinstance(value, ast.stmt) or not (is_text(value) or self.names.is_idle(value)):
                self._write(value)
        self.words.append(")")

    def _look(self, chain: str) -> None:
        """Whether a name, or an attribute, is one of those that matter beyond what they lead to."""
        root, *attributes = chain.split(".")
        if root == "__doc__":
            self.words.append(repr(self.module.docstring))
        for name in (root, *attributes):
            if name in LISTENING:
                self.hears.add(ANY)
            if name in (REFUSED if name == root else REFUSED_ATTRIBUTES):
                raise ValueError(f"{self.module.name}: axbake cannot follow how {name} finds code; use names.")

    def _name(self, node: ast.Name) -> None:
        self.words.append(f"={node.id}")
        if isinstance(node.ctx, ast.Load):
            self.chains.add(node.id)
            self._look(node.id)
        else:
            self.names.stored.add(node.id)

    def _attribute(self, node: ast.Attribute) -> None:
        chain = chain_of(node)
        if chain:
            self.words.append(f"={chain}")
            self.chains.add(chain)
        else:
            self.words += (".", node.attr)
            self._write(node.value)
        self._look(chain or f".{node.attr}")

    def _constant(self, node: ast.Constant) -> None:
        is_blank = self.speech and node in self.speech.blank
        self.words.append(repr("…" if is_blank and node.value else node.value))

    def _joined(self, node: ast.JoinedStr) -> None:
        """An f-string. Versions of Python differ in how many pieces its constant parts are."""
        self.words.append("JoinedStr")
        text = ""
        for value in node.values:
            if isinstance(value, ast.Constant):
                is_blank = self.speech and value in self.speech.blank
                text = "…" if is_blank and (text or value.value) else text + str(value.value)
                continue
            self.words += [repr(text)] if text else []
            text = ""
            self._write(value)
        self.words += [repr(text), "."] if text else ["."]

    def _call(self, node: ast.Call) -> None:
        self.words.append("Call")
        self._write(node.func)
        if self.speech and node in self.speech.built:
            self.unsaid |= self.names.errors(node.func)
        elif not self.names.is_speaker(node.func) or does_more(node):
            self._row(node.args)
            self._row(node.keywords)

    def _argument(self, node: ast.arg) -> None:
        self.words.append(node.arg)
        self.names.stored.add(node.arg)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = self.speech
        self._look(f".{node.name}")
        if not outer:
            self.speech = Speech(self.names, node, full=self.full, is_method=self.in_class)
            self.unsaid |= self.speech.unsaid
            self.hears |= set() if f"{self.module.name}.{node.name}" in REPORTERS else self.speech.hears
            self.makes |= self.speech.makes
        self.names.stored.add(node.name)
        self.words += (type(node).__name__, node.name)
        self._write(node.args)
        self._row(node.decorator_list)
        self._row(node.body)
        self.speech = outer

    def _class(self, node: ast.ClassDef) -> None:
        outer = self.speech, self.in_class
        self.speech, self.in_class = None, True
        self.names.stored.add(node.name)
        self.words += ("ClassDef", node.name)
        for part in (node.bases, node.keywords, node.decorator_list, node.body):
            self._row(part)
        self.speech, self.in_class = outer

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.words.append("Import")
        for name, place in self.module.origins(node):
            self.words += (name, place.module, place.name)
            self.names.imports.setdefault(name, []).append(place)
            if self.in_class and not self.speech:  # an attribute of the class, read by any name
                self.chains.add(name)

    def _annotated(self, node: ast.AnnAssign) -> None:
        self.words.append("AnnAssign")
        self._write(node.target)
        parts = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.annotation)}
        self.words += [*sorted(parts & NO_FIELDS), "."]
        if node.value:
            self._write(node.value)

    def _augmented(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.chains.add(node.target.id)
        self.words += ("AugAssign", type(node.op).__name__)
        self._write(node.target)
        self._write(node.value)

    def _global(self, node: ast.Global) -> None:
        self.chains |= set(node.names)
        self.words += ("Global", *node.names, ".")

    def _if(self, node: ast.If) -> None:
        self.words.append("If")
        if not is_type_checking(node.test):
            self._write(node.test)
            self._row(node.body)
        self._row(node.orelse)

    def _handler(self, node: ast.ExceptHandler) -> None:
        if node.name and not self.speech:
            self.hears |= classes(self.module, node.type, self.names.imports)
        self.words += ("ExceptHandler", repr(node.name))
        self._row([node.type] if node.type else [])
        self._row(node.body)

    def _assert(self, node: ast.Assert) -> None:
        self.words.append("Assert")
        self._write(node.test)
        if node.msg and self.full:
            self._write(node.msg)
        elif node.msg:
            self.unsaid.add("AssertionError")

    def _raise(self, node: ast.Raise) -> None:
        self.words.append("Raise")
        if self.full:
            self._row([node.exc, node.cause])
        elif node.exc:
            self._thrown(node.exc)

    def _thrown(self, node: ast.expr) -> None:
        """What stands behind `raise`: of the call of an error's class its name."""
        function = node.func if isinstance(node, ast.Call) else node
        chain = chain_of(function)
        if chain and (kinds := self.names.raisable(function)):
            self.words.append(f"={chain}")
            self.raised.add(chain)
            self.unsaid |= kinds
        elif isinstance(node, ast.IfExp):
            self.words.append("IfExp")
            self._write(node.test)
            self._thrown(node.body)
            self._thrown(node.orelse)
        elif isinstance(node, ast.Call) and chain:
            self.words += ("Call", f"={chain}")
            self.raised.add(chain)
            if self.speech and chain in self.speech.makers:
                self.unsaid |= self.speech.makers[chain]
            else:
                self._row(node.args)
                self._row(node.keywords)
        else:
            self._write(node)
