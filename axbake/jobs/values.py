"""Values as a settings file holds them: plain ones as they are, data classes field by field, functions by their names.

So a job is given what it needs of a family by value, and depends on the functions that it is given, and on no list of families.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

EMPTY: tuple = (None, (), [], {}, "")
FUNCTION, CLASS = "function", "is"  # the only key, or the first one, of what is no plain value


def encode(value: Any) -> Any:
    """*value* as JSON can hold it: of data classes, fields are left out whose default is None or empty, and who have it.

    Raises:
        TypeError: neither plain, nor a data class, nor a function of a module's top level.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value)
    if callable(value):
        return {FUNCTION: _name_of(value)}
    raise TypeError(f"{value!r} cannot stand in a settings file; wanted plain values, data classes, named functions")


def _encode_fields(value: Any) -> dict:
    given = {field: getattr(value, field.name) for field in fields(value)}
    kept = {field.name: encode(item) for field, item in given.items() if item not in EMPTY or item != _default(field)}
    return {CLASS: _name_of(type(value)), **kept}


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


def functions_of(value: Any) -> Iterator[str]:
    """Dotted names of all code that an encoded *value* holds: functions, and data classes that compute something."""
    if isinstance(value, list):
        for item in value:
            yield from functions_of(item)
    elif isinstance(value, dict) and value.keys() == {FUNCTION}:
        yield value[FUNCTION]
    elif isinstance(value, dict):
        if CLASS in value and _computes(value[CLASS]):
            yield value[CLASS]
        for name, item in value.items():
            if name != CLASS:
                yield from functions_of(item)


def _computes(name: str) -> bool:
    """Whether a data class has methods of its own, besides those that every data class has."""
    own = vars(_found(name)).values()
    return any(callable(value) and not getattr(value, "__name__", "__").startswith("__") for value in own) or any(
        isinstance(value, property | classmethod | staticmethod) for value in own
    )
