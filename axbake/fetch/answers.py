"""What a site says, taken as what it should be: whatever else stands there is as if nothing did.

APIs answer with null, other types, and texts of any length and kind where their documentation has none of these. Each field is
read by one of these functions, so that what leaves this package is of the type that it says.
"""

import re
from typing import Any

from axbake.printable import one_line

MOST_TEXTS = 1000  # of a list


def table(value: Any) -> dict[str, Any]:
    """*value* if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    """The objects in *value*, if it is a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def text(value: Any, most: int = 200) -> str:
    """*value* on one line, if it is a text or a number; else empty.

    Args:
        most: characters.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return one_line(value if isinstance(value, str) else f"{value:.15g}" if abs(value) < 1e300 else "", most)


def texts(value: Any) -> list[str]:
    """The texts in *value*, if it is a list; or *value* alone."""
    return list(filter(None, map(text, value[:MOST_TEXTS] if isinstance(value, list) else [value])))


def number(value: Any) -> int | None:
    """*value* if it is a whole number from 0 to 10^18, or a text of one."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    return value if type(value) is int and 0 <= value <= 10**18 else None


def digest(value: Any) -> str | None:
    """*value* in small letters if it is a SHA-256, 64 hex digits. Anything else is no digest, and never part of a path."""
    return value.lower() if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value) else None


def file_name(value: Any) -> str:
    """The last part of *value*, if it is the name of a file; never a path."""
    name = re.split(r"[/\\]", text(value, 1000))[-1]
    return "" if name in (".", "..") else one_line(name)


def plain(value: Any) -> Any:
    """*value* for a record: texts, numbers, truth, null, and lists of them."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list):
        return texts(value)
    return value if type(value) is int and abs(value) <= 10**18 else text(value) or None
