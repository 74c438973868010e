"""What in a function only speaks to people, and so cannot change a result: log lines, progress, texts of errors."""

import ast
import functools
from collections.abc import Iterator
from typing import Any

from axbake.jobs.definitions import (
    ANY,
    Module,
    Place,
    ancestors,
    bound,
    chain_of,
    classes,
    is_type_checking,
    parameters,
)

#: Modules that only speak: nothing of them is ever reached, and statements that only call them are left out.
SPEAKS = (
    "axbake.runtime.progress",  # logs how far a piece of work is; what it gives back does nothing but that
)
#: Functions that catch an error, look into its text, and only report it: their job fails, so the text gets into no result.
REPORTERS = (
    "axbake.checkpoints.pickles.main",  # to the process that started this one, which raises it again
    "axbake.emulator.__main__.main",  # on stderr, and ends with status 1
    "axbake.emulator.build.build",  # in the build_context.json of a build that failed, and raises it again
)
#: What a logger is asked for, that leaves a line in the log and nothing else.
LOGS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
#: Errors whose arguments are no text: an exit status, what a generator returns.
CARRIERS = {"SystemExit", "StopIteration", "StopAsyncIteration"}
#: Calls that make a text of texts, or a list of a list.
JOINING, LISTING = {"join", "format"}, {"str", "repr", "list", "tuple", "sorted"}

SKIPPED = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind"}
#: Kind of node -> its name, and those of its parts that count.
FIELDS = {
    kind: (name, tuple(part for part in kind._fields if part not in SKIPPED))
    for name, kind in vars(ast).items()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


def does_more(call: ast.Call) -> bool:
    """Whether the arguments of a call bind names, or wait for something."""
    return any(isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for node in ast.walk(call))


@functools.cache
def _speaking(module: Module) -> frozenset[str]:
    """Names that a module imports from those that only speak."""
    return frozenset(name for name in module.imports if any(p.module in SPEAKS for p in module.define(name, [])))


class Names:
    """What names mean in one statement of a module.

    Attributes:
        imports: name -> where imports within the statement lead it.
        stored: names that are bound within it.
    """

    def __init__(self, module: Module, statement: ast.stmt) -> None:
        self.module = module
        self.imports: dict[str, list[Place]] = {}
        self.stored: set[str] = set()
        self._speakers = self._find_speakers(statement) if _speaking(module) else set()

    def _find_speakers(self, statement: ast.stmt) -> set[str]:
        """Names that are given what `SPEAKS` makes, and never anything else: `tell`, `self.tell`."""
        given, targets, others = set(), set(), set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.value, ast.Call):
                if (name := chain_of(node.targets[0])) and self.is_speaker(node.value.func):
                    given.add(name)
                    targets.add(node.targets[0])
            elif isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Load):
                others |= set() if node in targets else {chain_of(node)}
            elif isinstance(node, ast.arg):
                others.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.ExceptHandler):
                others |= {name for name in bound(node) if name}
            elif isinstance(node, ast.Global):
                others |= set(node.names)
        return given - others

    def errors(self, node: ast.expr) -> set[str]:
        """Errors whose class an expression is; none if it is, or may be, anything else, or carries more than a text."""
        found = classes(self.module, node, self.imports) if chain_of(node) else set()
        above = [ancestors(kind) for kind in found]
        return found if all("BaseException" in kinds and not kinds & CARRIERS for kinds in above) else set()

    def raisable(self, function: ast.expr) -> set[str]:
        """The same of what stands behind `raise`: there what another package gives is an error too."""
        if kinds := self.errors(function):
            return kinds
        places = list(self.module.follow(chain_of(function) or "", self.imports))
        return {f"?{place.name}" for place in places} if not any(place.module for place in places) else set()

    def is_speaker(self, function: ast.expr) -> bool:
        """Whether a function is of a module that only speaks."""
        chain = chain_of(function) or ""
        root = chain.partition(".")[0]
        if root not in _speaking(self.module) and root not in self.imports:
            return False
        places = list(self.module.follow(chain, self.imports))
        return bool(places) and all(place.module in SPEAKS for place in places)

    def is_idle(self, statement: ast.stmt) -> bool:
        """Whether a statement does nothing, or only speaks."""
        if isinstance(statement, ast.Pass):
            return True
        call = getattr(statement, "value", None)
        if not isinstance(call, ast.Call):
            return False
        if isinstance(statement, ast.Assign):
            speaks = self.is_speaker(call.func) and all(chain_of(each) in self._speakers for each in statement.targets)
        else:
            speaks = isinstance(statement, ast.Expr) and self._only_speaks(call.func)
        return speaks and not does_more(call)

    def _only_speaks(self, function: ast.expr) -> bool:
        chain = chain_of(function) or ""
        root, _, method = chain.rpartition(".")
        if method in LOGS and root in self.module.loggers:
            return root not in self.stored
        if chain == "warnings.warn" or (method in LOGS and root == "logging"):
            return list(self.module.follow(chain, self.imports)) == [Place("", root)]
        return chain in self._speakers or self.is_speaker(function)


# How a name is read. Beside these: `("used", name)`, in an expression whose value *name* is given; `("value", name)`, as
# the value itself; `("element", name)`, in something that becomes an element of that list; `("made", function)`, in
# the text of an error that a function within returns; `("handed", function)`, in what it is called with behind `raise`.
Use = tuple[str, str]
COUNTED: Use = ("counted", "")  # in a way that may change a result
SPOKEN: Use = ("spoken", "")  # in the text of an error, or a log line
TRUTH: Use = ("truth", "")  # to see whether there is anything in it
LENGTH: Use = ("length", "")  # to see how much
BUILT: Use = ("built", "")  # to add to it
SHARED: Use = ("shared", "")  # in another place too, since its value is not new
THROWN: Use = ("thrown", "")  # a function, to raise what it returns


class Speech:
    """Which texts in a function only speak.

    A local variable *speaks* if it is read only in the text of an error, a log line, or to make the value of another one that
    speaks. It *gathers* if it is also asked whether there is anything in it (`if faults`, `len(faults)` of a list), or is
    added to (`faults += …`). The texts that such variables are given are blank, while the code around them counts; an
    empty text stays empty, so whether there is something in them stays the same.

    The scopes within the function are taken together: a name speaks if it does so in all of them.

    Attributes:
        blank: string constants that only speak.
        built: calls of errors' classes whose arguments only speak.
        makers: function within, whose arguments go only into the texts of the errors that it returns -> these errors.
        unsaid: errors that the blank texts are for.
        hears: errors that are caught, and whose texts are looked into.
        makes: errors that the function returns, of those in *built*.
    """

    def __init__(
        self, names: Names, function: ast.FunctionDef | ast.AsyncFunctionDef, *, full: bool, is_method: bool
    ) -> None:
        self.blank: set[ast.AST] = set()
        self.built: set[ast.AST] = set()
        self.makers: dict[str, set[str]] = {}
        self.unsaid: set[str] = set()
        self.hears: set[str] = set()
        self.makes: set[str] = set()
        self._names = names
        self._full = full  # whether the texts of errors count
        self._reads: dict[str, set[Use]] = {}
        self._values: dict[str, list[ast.expr]] = {}  # what a variable is given, or is added to it
        self._given: set[str] = set()  # names that are bound by `name = …`
        self._elsewhere: set[str] = set()  # names that are bound in another way
        self._inner: dict[str, list[str]] = {}  # function within -> its parameters
        self._handlers: list[ast.ExceptHandler] = []
        self._calls: list[tuple[ast.Call, Use]] = []  # of errors' classes
        self._raised: set[str] = set()  # errors
        # Function whose `return` the present place would be; "": the whole one's; None: one that may be called in any way.
        self._returning: str | None = None if is_method or function.decorator_list else ""
        self._in_class = False
        self._special: dict[type, Any] = {
            ast.Name: self._name,
            ast.Call: self._call,
            ast.Lambda: self._lambda,
            ast.ClassDef: self._class,
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
        self._bind(*parameters(function.args))
        self._walk_all(function.body)
        self._decide(function)

    # Where names are read and bound ------------------------------------------------------------------------------

    def _walk(self, node: ast.AST, use: Use = COUNTED) -> None:
        special = self._special.get(node.__class__)
        if special:
            special(node, use)
            return
        for part in FIELDS[node.__class__][1]:
            value = getattr(node, part, None)
            if value.__class__ is list:
                self._walk_all(value, use)
            elif isinstance(value, ast.AST):
                self._walk(value, use)

    def _walk_all(self, nodes: Any, use: Use = COUNTED) -> None:
        for node in nodes:
            if isinstance(node, ast.AST):
                self._walk(node, use)

    def _read(self, name: str, use: Use) -> None:
        self._reads.setdefault(name, set()).add(use)

    def _bind(self, *names: str) -> None:
        self._elsewhere |= set(names)
        self._names.stored |= set(names)

    def _name(self, node: ast.Name, use: Use) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id, use)
        else:
            self._bind(node.id)

    def _call(self, node: ast.Call, use: Use) -> None:
        asked = chain_of(node.func)
        if use == COUNTED and asked in ("len", "bool") and [type(each) for each in node.args] == [ast.Name]:
            self._read(chain_of(node.args[0]) or "", LENGTH if asked == "len" else TRUTH)
            return
        if self._names.is_speaker(node.func) and not does_more(node):
            use = SPOKEN
        elif use not in (COUNTED, SPOKEN) and self._names.errors(node.func):
            self._calls.append((node, use))
        else:
            self._walk(node.func, use)
        self._walk_all([*node.args, *node.keywords], use)

    def _lambda(self, node: ast.Lambda, use: Use) -> None:
        self._bind(*parameters(node.args))
        self._walk(node.args)
        self._walk(node.body)

    def _class(self, node: ast.ClassDef, use: Use) -> None:
        outer = self._in_class, self._returning
        self._in_class, self._returning = True, None
        self._bind(node.name)
        self._walk_all(ast.iter_child_nodes(node))
        self._in_class, self._returning = outer

    def _named(self, node: ast.NamedExpr, use: Use) -> None:
        self._give(node.target.id, node.value)
        self._read(node.target.id, use)

    def _comprehension(self, node: ast.comprehension, use: Use) -> None:
        self._walk(node.target)
        self._walk(node.iter, use)
        for test in node.ifs:
            self._ask(test, use)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, use: Use) -> None:
        known = node.name in self._inner or node.name in self._names.stored
        self._bind(node.name, *parameters(node.args))
        self._walk_all([*node.decorator_list, *node.args.defaults, *node.args.kw_defaults])
        outer = self._returning
        if outer is None or known or node.decorator_list or self._in_class:
            self._returning = None
        else:
            self._inner[node.name] = parameters(node.args)
            self._returning = node.name
        self._walk_all(node.body)
        self._returning = outer

    def _import(self, node: ast.Import | ast.ImportFrom, use: Use) -> None:
        for name, place in self._names.module.origins(node):
            self._names.imports.setdefault(name, []).append(place)
            self._elsewhere.add(name)

    def _handler(self, node: ast.ExceptHandler, use: Use) -> None:
        if node.name:
            self._handlers.append(node)
            self._bind(node.name)
        self._walk_all([node.type, *node.body])

    def _global(self, node: ast.Global, use: Use) -> None:
        self._elsewhere |= set(node.names)

    def _if(self, node: ast.If | ast.While | ast.IfExp, use: Use) -> None:
        if not (isinstance(node, ast.If) and is_type_checking(node.test)):
            self._ask(node.test, use)
            self._walk_all(node.body if isinstance(node.body, list) else [node.body], use)
        self._walk_all(node.orelse if isinstance(node.orelse, list) else [node.orelse], use)

    def _ask(self, node: ast.expr, use: Use) -> None:
        """Whether *node* is true decides something that has *use*."""
        if use != COUNTED:
            self._walk(node, use)
        elif isinstance(node, ast.Name):
            self._read(node.id, TRUTH)
        elif isinstance(node, ast.NamedExpr):
            self._named(node, TRUTH)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._ask(node.operand, use)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self._ask(value, use)
        else:
            self._walk(node)

    # Errors ------------------------------------------------------------------------------------------------------

    def _raise(self, node: ast.Raise, use: Use) -> None:
        if self._full:
            self._walk_all([node.exc, node.cause])
            return
        if node.exc:
            self._throw(node.exc)
        if node.cause:
            self._walk(node.cause, SPOKEN)

    def _throw(self, node: ast.expr) -> None:
        is_call = isinstance(node, ast.Call)
        function = node.func if isinstance(node, ast.Call) else node
        arguments = [*node.args, *node.keywords] if isinstance(node, ast.Call) else []
        chain = chain_of(function)
        if chain and (kinds := self._names.raisable(function)):
            self._raised |= kinds
            self._walk_all(arguments, SPOKEN)
        elif isinstance(node, ast.IfExp):
            self._ask(node.test, COUNTED)
            self._throw(node.body)
            self._throw(node.orelse)
        else:
            self._raised.add(ANY)
            if is_call and chain in self._inner:
                self._read(chain or "", THROWN)
                self._walk_all(arguments, ("handed", chain or ""))
            else:
                self._walk(node, COUNTED if is_call else SPOKEN)

    def _assert(self, node: ast.Assert, use: Use) -> None:
        self._ask(node.test, COUNTED)
        if node.msg:
            self._raised.add("AssertionError")
            self._walk(node.msg, COUNTED if self._full else SPOKEN)

    def _return(self, node: ast.Return, use: Use) -> None:
        if node.value:
            self._give_back(node.value)

    def _give_back(self, node: ast.expr) -> None:
        if isinstance(node, ast.IfExp):
            self._ask(node.test, COUNTED)
            self._give_back(node.body)
            self._give_back(node.orelse)
        elif self._returning is not None and not self._full and isinstance(node, ast.Call):
            self._walk(node, ("made", self._returning) if self._names.errors(node.func) else COUNTED)
        else:
            self._walk(node)

    # Values of variables -----------------------------------------------------------------------------------------

    def _assign(self, node: ast.Assign, use: Use) -> None:
        target = node.targets[0]
        if self._names.is_idle(node):
            self._walk_all([*node.targets, *ast.iter_child_nodes(node.value)], SPOKEN)
        elif len(node.targets) == 1 and isinstance(target, ast.Name):
            self._give(target.id, node.value)
        else:
            self._walk_all([*node.targets, node.value])

    def _annotated(self, node: ast.AnnAssign, use: Use) -> None:
        if node.value and isinstance(node.target, ast.Name):
            self._give(node.target.id, node.value)
        else:
            self._walk_all([node.target, node.value])

    def _augmented(self, node: ast.AugAssign, use: Use) -> None:
        if isinstance(node.target, ast.Name) and isinstance(node.op, ast.Add):
            self._read(node.target.id, BUILT)
            self._add(node.target.id, node.value, element=False)
        else:
            self._walk_all([node.target, node.value])

    def _expression(self, node: ast.Expr, use: Use) -> None:
        call = node.value
        if self._names.is_idle(node):
            self._walk_all(ast.iter_child_nodes(call), SPOKEN)
            return
        if isinstance(call, ast.Call) and len(call.args) == 1 and not call.keywords:
            name, _, method = (chain_of(call.func) or "").rpartition(".")
            if method in ("append", "extend") and "." not in name:
                self._read(name, BUILT)
                self._add(name, call.args[0], element=method == "append")
                return
        self._walk(call)

    def _give(self, name: str, value: ast.expr) -> None:
        """*name* gets a *value*. What it shares with others, it may not be added to."""
        self._names.stored.add(name)
        (self._elsewhere if self._in_class else self._given).add(name)
        if not _is_fresh(value):
            self._read(name, SHARED)
        self._add(name, value, element=False)

    def _add(self, name: str, value: ast.expr, *, element: bool) -> None:
        """*value* becomes part of that of *name*; *element*: as one element of a list."""
        self._values.setdefault(name, []).append(ast.List([value], ast.Load()) if element else value)
        self._part(value, name, element)

    def _part(self, node: ast.expr, name: str, element: bool) -> None:
        """Where names are read in a value of *name*."""
        if isinstance(node, ast.List | ast.Tuple):
            for each in node.elts:
                inner = each.value if isinstance(each, ast.Starred) else each
                self._part(inner, name, element or inner is each)
        elif isinstance(node, ast.ListComp | ast.GeneratorExp):
            self._part(node.elt, name, True)
            self._walk_all(node.generators, ("used", name))
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

    # Decision ----------------------------------------------------------------------------------------------------

    def _decide(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Assume that all speak, then remove those that do not, until nothing changes."""
        speaks = self._given - self._elsewhere
        gathers = set(speaks)
        thrown = {name for name in self._inner if self._reads.get(name, set()) <= {THROWN}}
        takers = set(thrown)

        def is_quiet(name: str, *, gathering: bool = False) -> bool:
            uses = self._reads.get(name, set())
            quiet = {"spoken", "shared"} if SHARED in uses else {"spoken", "built"}
            if gathering:
                quiet |= {"truth", "length"} if LENGTH in uses and all(map(_is_long, self._values[name])) else {"truth"}
            return all(
                kind in quiet
                or (of in speaks and kind in ("used", "value"))
                or (of in gathers and (kind == "element" or (kind == "value" and of == name)))
                or (kind == "made" and (of == "" or of in thrown))
                or (kind == "handed" and of in takers)
                for kind, of in uses
            )

        while True:
            before = len(speaks) + len(gathers) + len(takers)
            speaks = {name for name in speaks if is_quiet(name)}
            gathers = {name for name in gathers if is_quiet(name, gathering=True)}
            takers = {name for name in takers if all(map(is_quiet, self._inner[name]))}
            if len(speaks) + len(gathers) + len(takers) == before:
                break
        for handler in self._handlers:
            if not is_quiet(handler.name or ""):
                self.hears |= classes(self._names.module, handler.type, self._names.imports)
        if function.name == "__exit__" and not all(map(is_quiet, parameters(function.args)[1:])):
            self.hears.add(ANY)
        if not self._full:
            self._leave_out(speaks, gathers, thrown, takers)

    def _leave_out(self, speaks: set[str], gathers: set[str], thrown: set[str], takers: set[str]) -> None:
        self.makers = {name: set() for name in takers}
        for call, (kind, of) in self._calls:
            kinds = self._names.errors(call.func)
            if of in {"made": {"", *thrown}, "element": gathers}.get(kind, speaks):
                self.built.add(call)
            if kind == "made" and of == "":
                self.makes |= kinds
            elif kind == "made" and of in takers:
                self.makers[of] |= kinds
        for name in speaks | gathers:
            self.blank |= {text for value in self._values[name] for text in texts(value, wide=name in speaks)}
        if self.blank:
            self.unsaid |= self._raised


def _is_long(node: ast.expr) -> bool:
    """Whether an expression is as long whatever texts are in it: a list, or none of its texts are in this function."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_long(node.left) and _is_long(node.right)
    if isinstance(node, ast.IfExp):
        return _is_long(node.body) and _is_long(node.orelse)
    return isinstance(node, ast.List | ast.ListComp) or not any(True for _ in texts(node, wide=True))


def _is_fresh(node: ast.expr) -> bool:
    """Whether an expression makes something new, that nobody else has."""
    if isinstance(node, ast.IfExp):
        return _is_fresh(node.body) and _is_fresh(node.orelse)
    if isinstance(node, ast.BoolOp):
        return all(map(_is_fresh, node.values))
    if isinstance(node, ast.Call):
        return chain_of(node.func) in LISTING
    return isinstance(node, ast.Constant | ast.JoinedStr | ast.List | ast.Tuple | ast.Dict | ast.BinOp | ast.ListComp)


def texts(node: ast.AST, *, wide: bool) -> Iterator[ast.Constant]:
    """String constants that a value consists of; not those that decide of which.

    Args:
        wide: also those whose being empty or not says nothing of the value's; for elements of lists, and what is never asked
            whether there is anything in it.
    """
    parts: list[Any] = []
    inside = wide
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    elif isinstance(node, ast.JoinedStr):
        parts = node.values if wide else [each for each in node.values if isinstance(each, ast.Constant)]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
    elif isinstance(node, ast.Starred):
        parts = [node.value]
    elif isinstance(node, ast.List | ast.Tuple):
        for each in node.elts:
            yield from texts(each, wide=wide or not isinstance(each, ast.Starred))
    elif isinstance(node, ast.ListComp | ast.GeneratorExp):
        parts, inside = [node.elt], True
    elif isinstance(node, ast.Dict):
        parts, inside = node.values, True
    elif wide:
        parts = _wide_parts(node)
    for part in parts:
        yield from texts(part, wide=inside)


def _wide_parts(node: ast.AST) -> list[Any]:
    if isinstance(node, ast.FormattedValue | ast.Subscript):
        return [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return [node.left, node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LISTING:
        return node.args
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in JOINING:
            return [node.func.value, *node.args, *(each.value for each in node.keywords)]
        if node.func.attr == "get":
            return [node.func.value, *node.args[1:]]
    return []
