"""A request's values, each checked as it is read."""

from __future__ import annotations

import base64
import binascii
import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from ..errors import BundleError
from ..prompt import MOST
from ..reading import shown
from ..resizing import decoded
from .errors import Refused

MOST_COUNT = 10  # pictures of one request
MOST_SCALE = 100.0  # of guidance
MOST_SEED = 2**63 - 1
SEEDS = 2**32  # different ones


class Given:
    """What a client gave, by name; every value that is read is checked, and the rest can be told."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """The value of *name*, whatever it is; None if it is not there."""
        self._read.add(name)
        return self._values.get(name)

    def rest(self) -> list[str]:
        """Names that nobody has read."""
        return [
            name for name, value in self._values.items() if name not in self._read and value not in (None, "", [], {})
        ]

    def text(self, name: str, default: str = "") -> str:
        """A prompt or a name."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise wrong(name, value, "text")
        if len(value) > MOST:
            raise wrong(name, Words(f"{len(value)} characters"), f"{MOST} at most")
        return value

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """A number of *least* to *most*."""
        value = self.get(name)
        if value is None or value == "":
            return default
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise wrong(name, value, "a number") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(name, value, "a number")
        if not least <= value <= most or not math.isfinite(value):
            raise wrong(name, value, f"{least:g} to {most:g}")
        return value

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        """A whole number of *least* to *most*."""
        value = self.get(name)
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
            value = int(value)
        if value is None or value == "":
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            if not isinstance(value, float) or value % 1:  # of infinity it is NaN
                raise wrong(name, value, "a whole number")
            value = int(value)
        if not least <= value <= most:
            raise wrong(name, value, f"{least} to {most}")
        return value

    def seed(self) -> int:
        """The seed; where there is none, or -1, one by chance."""
        value = self.whole("seed", -1, least=-1, most=MOST_SEED)
        return secrets.randbelow(SEEDS) if value == -1 else value

    def flag(self, name: str, default: bool = False) -> bool:
        """Yes or no."""
        value = self.get(name)
        if value is None:
            return default
        if value not in (True, False, 0, 1):
            raise wrong(name, value, "true or false")
        return bool(value)

    def one_of(self, name: str, known: Iterable[Any], default: Any) -> Any:
        """One of the values *known*."""
        value = self.get(name)
        if value is None:
            return default
        known = list(known)
        if isinstance(value, (dict, list)) or value not in known:
            raise wrong(name, value, f"one of {', '.join(map(str, known))}")
        return value


class Words(str):
    """What a value is like, instead of the value."""


def wrong(name: str, value: Any, wanted: str) -> Refused:
    """The refusal of a value."""
    found = value[:100] if isinstance(value, str) else str(value)[:100]
    found = repr(found) if isinstance(value, str) and not isinstance(value, Words) else found
    return Refused(400, f"{name}: {shown(found)}; wanted {wanted}.", code="invalid_value", parameter=name)


def picture(name: str, content: Any) -> Image.Image:
    """The picture in *content*: bytes, or text in base64, with `data:…,` before it or not."""
    if isinstance(content, str):
        if content.startswith(("http:", "https:", "file:")):
            raise wrong(name, content, "the picture itself in base64; this server fetches nothing")
        try:
            content = base64.b64decode(
                content.partition(",")[2] if content.startswith("data:") else content, validate=True
            )
        except (binascii.Error, ValueError):
            raise wrong(name, content[:30], "a picture in base64") from None
    if not isinstance(content, bytes):
        raise wrong(name, Words(type(content).__name__), "a picture")
    try:
        return decoded(content, name)
    except BundleError as error:
        raise Refused(400, str(error), code="invalid_image", parameter=name) from None
