"""Records: small JSON files in a directory that others write to as well. What does not have its form is damaged."""

import json
import re
from typing import Any

from axbake.cache.errors import Damaged
from axbake.printable import shown

LONGEST = 4 << 20  # bytes; an entry, the longest record, has 5 kB, or a few hundred where a row has many prompts
DEEPEST = 32  # values within values
MOST_SECONDS = 1e9
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(\+00:00|Z)?")


def parse(content: bytes) -> dict[str, Any]:
    """The object in a record.

    Raises:
        Damaged: it is no JSON object, or nested more deeply than anything that axbake writes.
    """
    try:
        record = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise Damaged("nested too deeply") from error
    except ValueError as error:
        raise Damaged(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Damaged(f"JSON of the kind {type(record).__name__}, wanted an object")
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return record
    raise Damaged("nested too deeply")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def text_of(value: Any, what: str) -> str:
    """*value*, if it is a text of one line that a screen can show.

    Raises:
        Damaged
    """
    if not isinstance(value, str) or not value.isprintable():
        raise Damaged(f"{shown(what, 60)} is {quoted(value)}, wanted a text")
    return value


def number_of(value: Any, what: str) -> float:
    """*value*, if it is a number from 0 to `MOST_SECONDS`.

    Raises:
        Damaged
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_SECONDS:
        raise Damaged(f"{what} is {quoted(value)}, wanted a number from 0 to {MOST_SECONDS:g}")
    return value


def time_of(value: Any, what: str) -> str:
    """*value*, if it is a time in UTC, as ISO 8601 has it.

    Raises:
        Damaged
    """
    if not isinstance(value, str) or not TIME.fullmatch(value):
        raise Damaged(f"{what} is {quoted(value)}, wanted a time such as 2025-01-31T12:00:00+00:00")
    return value


def quoted(value: Any) -> str:
    """*value* in a sentence: the beginning of its JSON, which is ASCII."""
    if isinstance(value, (dict, list)):
        return f"{type(value).__name__} of {len(value)}"
    text = json.dumps(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:59]}…"
