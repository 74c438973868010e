"""Values as a settings file holds them: plain ones as they are, data classes field by field, functions by their names.

So a job is given what it needs of a family by value, and depends on the functions that it is given, and on no list of families.
"""

import functools
import importlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

EMPTY: tuple = (None, (), [], {}, "")
FUNCTION, CLASS = "function", "is"  # the only key, or the first one, of what is no plain value


def encode(value: Any) -> tuple[Any, list[str]]:
    """*value* as JSON can hold it, and dotted names of all code in it: functions, and data classes that compute something.

    Of data classes, fields are left out whose default is None or empty, and who have it.

    Raises:
        TypeError: neither plain, nor a data class, nor a function of a module's top level.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value, []
    if isinstance(value, Mapping):
        return _gathered([(str(name), item) for name, item in value.items()])
    if isinstance(value, list | tuple):
        encoded = [encode(item) for item in value]
        return [item for item, _ in encoded], [name for _, names in encoded for name in names]
    if is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value)
    if callable(value):
        return {FUNCTION: _name_of(value)}, [_name_of(value)]
    raise TypeError(f"{value!r} cannot stand in a settings file; wanted plain values, data classes, named functions")


#: What was encoded of data classes that still live, by their address: a thousand rows share their family's components
_ENCODED: dict[int, tuple[weakref.ref, Any, list[str]]] = {}


def _encode_fields(value: Any) -> tuple[Any, list[str]]:
    alive, encoded, names = _ENCODED.get(id(value), (None, None, []))
    if alive and alive() is value:
        return encoded, names
    given = {field: getattr(value, field.name) for field in fields(value)}
    kept = [(field.name, item) for field, item in given.items() if item not in EMPTY or item != _default(field)]
    encoded, names = _gathered(kept)
    kind: Any = type(value)
    encoded = {CLASS: _name_of(kind), **encoded}
    names = [*([_name_of(kind)] if _computes(kind) else []), *names]
    _ENCODED[id(value)] = weakref.ref(value), encoded, names
    return encoded, names


def _gathered(items: list[tuple[str, Any]]) -> tuple[dict, list[str]]:
    found = {name: encode(item) for name, item in items}
    return {name: item for name, (item, _) in found.items()}, [one for _, names in found.values() for one in names]


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _name_of(value: Any) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if "<" in name or "." in value.__qualname__:
        raise TypeError(f"{name}: wanted a function or class of a module's top level, which a name can find again")
    return name


def decode(value: Any) -> Any:
    """The value that was encoded; a sequence is a list, and a tuple anywhere in a data class."""
    return _decode(value, list)


def _decode(value: Any, sequence: type) -> Any:
    if isinstance(value, list):
        return sequence(_decode(item, sequence) for item in value)
    if not isinstance(value, dict):
        return value
    if value.keys() == {FUNCTION}:
        return _found(value[FUNCTION])
    within = tuple if CLASS in value else sequence
    items = {name: _decode(item, within) for name, item in value.items() if name != CLASS}
    return _found(value[CLASS])(**items) if CLASS in value else items


def _found(name: str) -> Callable[..., Any]:
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)


@functools.cache
def _computes(kind: type) -> bool:
    """Whether a data class has methods of its own, besides those that every data class has."""
    own = vars(kind).values()
    return any(callable(value) and not getattr(value, "__name__", "__").startswith("__") for value in own) or any(
        isinstance(value, property | classmethod | staticmethod) for value in own
    )
