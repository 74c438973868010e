"""What of this package's code can change a function's result: the definitions that it reaches, directly or not.

A definition is a name bound at the top level of a module, with the statements that bind it. It reaches every definition
whose name it reads, also in another module; nothing is imported to find that out. So a function that nobody calls, a new
module, or what a package's `__init__` hands on to others changes no job's identity.

Left out is what cannot change a result: comments, docstrings, annotations, layout, and what only *speaks* (`speech`): log
lines, progress, texts of errors, and texts that are gathered for an error alone. The text of an error counts where code looks
into it (`except … as error` and then `str(error)`, unless that is for a log line or another error): there it can get into a
result.

Followed are names, as Python's scopes have them. Not followed are modules that strings name (`importlib.import_module`, a child
process' `-m`), data files, and other packages: a rule has to list them. A module that enters something in a list of
another one has to do so in a statement of its own, or with a decorator. What cannot be followed (`from … import *`, `eval`,
`__subclasses__` …) is an error.
"""

import ast
import contextlib
import functools
import gc
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from axbake.jobs.definitions import PACKAGE, Module, Place, is_heard, module_of, walk
from axbake.jobs.reading import Reading, reading_of
from axbake.jobs.speech import SPEAKS

DIGITS = 16  # of a digest: 64 bits; among 10,000 versions of a module two are the same by chance once in 4e11


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
        module = module_of(place.module)
        for index in module.bound.get(place.name, []):
            statement = module.statements[index]
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = statement.args
                return tuple(a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
    raise ValueError(f"{function}: not a function; wanted a function of {PACKAGE} with its module, as in the source.")


@dataclass
class Part:
    """What is reached of one module."""

    module: Module
    names: set[str] = field(default_factory=set)
    readings: dict[int, Reading] = field(default_factory=dict)  # by number of the statement

    def digest(self) -> str:
        """Of the statements in their order, and of what the names mean that they import.

        The order of functions that compute nothing when they are defined is layout.
        """
        ordered: list[str] = []
        loose: list[str] = []
        for index in sorted(self.readings):
            is_loose = _is_plain(self.module.statements[index]) and self._is_alone(index)
            (loose if is_loose else ordered).append(self.readings[index].digest)
        origins = {origin for reading in self.readings.values() for origin in reading.origins}
        text = "\n".join([*ordered, "", *sorted(loose), "", *sorted(origins)])
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]

    def _is_alone(self, index: int) -> bool:
        """Whether no other statement binds a name that *index* binds."""
        return all(len(self.module.bound[name]) == 1 for name in self.module.names[index])


def _is_plain(statement: ast.stmt) -> bool:
    """Whether *statement* is a function that computes nothing when it is defined."""
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) or statement.decorator_list:
        return False
    defaults = [*statement.args.defaults, *statement.args.kw_defaults]
    return all(default is None or isinstance(default, ast.Constant) for default in defaults)


@functools.cache
def _reach(functions: tuple[str, ...]) -> dict[str, Part]:
    """What *functions* reach, by module.

    Which errors' texts are heard is known only when all is reached, and such texts may reach more: so it is done until nothing
    is added.
    """
    with _no_collection():
        heard: frozenset[str] = frozenset()
        while True:
            closure = _Closure(heard)
            closure.reach(place for function in functions for place in _named(function))
            if closure.hears <= heard:
                return {name: part for name, part in closure.parts.items() if part.readings}
            heard |= closure.hears


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector would walk all syntax trees again and again, a third of the time, and find nothing to free."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _named(function: str) -> list[Place]:
    """Where the dotted name *function* leads."""
    root, *attributes = function.split(".")
    places = list(walk(root, attributes)) if root == PACKAGE else []
    found = [place for place in places if place.name or function == place.module]
    if not found:
        raise ValueError(f"{function}: no such definition; wanted one of {PACKAGE} with its module, as in the source.")
    return found


class _Closure:
    """All that is reached while the texts of the errors *heard* count."""

    def __init__(self, heard: frozenset[str]) -> None:
        self.heard = heard
        self.hears: set[str] = set()  # errors whose texts the code reached looks into
        self.parts: dict[str, Part] = {}
        self._seen: set[Place] = set()
        self._imported: set[str] = set()

    def reach(self, places: Iterable[Place]) -> None:
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place in self._seen or not place.module or place.module in SPEAKS:
                continue
            self._seen.add(place)
            module = module_of(place.module)
            if not place.name:
                waiting += module.everything()
            elif place.name in module.bound:
                self._part(module).names.add(place.name)
            waiting += self._import(place.module)
            for index in [*module.bound.get(place.name, []), *module.scripts]:
                waiting += self._take(module, index)

    def _part(self, module: Module) -> Part:
        return self.parts.setdefault(module.name, Part(module))

    def _take(self, module: Module, index: int) -> Iterable[Place]:
        """Where statement *index* leads, if it is not taken yet."""
        taken = self._part(module).readings
        if index in taken:
            return ()
        reading = reading_of(module, index, full=False)
        if any(is_heard(error, by) for error in reading.unsaid for by in self.heard):
            reading = reading_of(module, index, full=True)
        taken[index] = reading
        self.hears |= reading.hears
        for place in reading.uses:  # functions whose errors go elsewhere than behind `raise`
            maker = module_of(place.module)
            for each in maker.bound.get(place.name, []):
                self.hears |= reading_of(maker, each, full=False).makes
        imported = [place for name in reading.modules for place in self._import(name)]
        return [*imported, *reading.places, *(Place(module.name, name) for name in module.names[index])]

    def _import(self, name: str) -> list[Place]:
        """Where statements lead that run when a module is imported, and with it those that it imports."""
        places: list[Place] = []
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self._imported or name in SPEAKS:
                continue
            self._imported.add(name)
            module = module_of(name)
            waiting += [*module.loads, *filter(None, [name.rpartition(".")[0]])]
            for index in module.effects:
                self._part(module).names.add("<module>")
                places += self._take(module, index)
        return places
