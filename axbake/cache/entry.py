"""A stored build: its key, and what it made."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axbake.cache.errors import Damaged
from axbake.cache.key import FORMAT, Key
from axbake.cache.records import number_of, parse, quoted, text_of, time_of
from axbake.digest import is_sha256
from axbake.printable import shown

MOST_BYTES = 1 << 40  # of one output; beyond that it is no result of a bake
FIELDS = {"key", "outputs", "seconds", "peak_memory", "created"}


class OtherFormat(Damaged):
    """An entry of another version of axbake: of no use here, and not damaged. Says which digests are in it."""

    def __init__(self, content: bytes) -> None:
        super().__init__("an entry of another version of axbake")
        self.digests = {digest.decode() for digest in re.findall(rb"[0-9a-f]{64}", content)}


@dataclass(frozen=True)
class Blob:
    """Content of one output."""

    sha256: str
    size: int  # bytes

    def __post_init__(self) -> None:
        """Raise ValueError unless it is a digest and a size: the digest becomes a file's name."""
        if not is_sha256(self.sha256):
            raise ValueError(f"sha256 is {quoted(self.sha256)}, wanted 64 hex digits")
        if type(self.size) is not int or not 0 <= self.size <= MOST_BYTES:
            raise ValueError(f"size is {quoted(self.size)}, wanted a number of bytes")


@dataclass(frozen=True)
class Entry:
    """A build that is stored."""

    key: Key
    outputs: dict[str, Blob]
    seconds: float  # wall time of the build
    peak_memory: float  # GiB, of the building process or of the largest program it ran
    created: str  # UTC, ISO 8601

    @classmethod
    def parse(cls, content: bytes, path: Path) -> "Entry":
        """The entry that is the *content* of the file *path*.

        Raises:
            Damaged: it is not whole, or not the entry of that name.
            OtherFormat: it says that it is of another format.
        """
        record = parse(content)
        if type(record.get("format", FORMAT)) is int and record.get("format", FORMAT) != FORMAT:
            raise OtherFormat(content)
        _has(record, FIELDS, "an entry")
        key = _key(record["key"])
        if key.digest != path.stem:
            raise Damaged(f"the entry of {key.digest}")
        outputs = {name: _blob(value, name) for name, value in _object(record["outputs"], "outputs").items()}
        if outputs.keys() != key.outputs.keys():
            raise Damaged("outputs other than those of its key")
        seconds, memory = number_of(record["seconds"], "seconds"), number_of(record["peak_memory"], "peak_memory")
        return cls(key, outputs, seconds, memory, time_of(record["created"], "created"))

    def record(self) -> dict[str, Any]:
        """What `parse` reads."""
        return asdict(self)


def _key(value: Any) -> Key:
    _has(value, {"step", "component", "identity", "inputs", "outputs"}, "a key")
    text_of(value["step"], "step")
    if value["component"] is not None:
        text_of(value["component"], "component")
    for group, values in _object(value["identity"], "identity").items():
        _object(values, group)
    for name, content in _object(value["inputs"], "inputs").items():
        # One input may stand for several files, or for none.
        if not isinstance(content, str) or (content and not all(is_sha256(one) for one in content.split(" "))):
            raise Damaged(f"input {quoted(name)} is {quoted(content)}, wanted 64 hex digits")
    for name, file in _object(value["outputs"], "outputs").items():
        text_of(file, name)
    key = Key(**value)
    try:
        key.digest  # noqa: B018, it is computed here
    except ValueError as error:  # half a character, which cannot be written
        raise Damaged(f"not a key: {error}") from error
    return key


def _blob(value: Any, name: str) -> Blob:
    _has(value, {"sha256", "size"}, name)
    try:
        return Blob(**value)
    except ValueError as error:
        raise Damaged(f"output {quoted(name)}: {error}") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Damaged(f"{shown(what, 60)} is {quoted(value)}, wanted an object")
    return value


def _has(value: Any, names: set[str], what: str) -> None:
    """Raise Damaged unless *value* is an object of these *names*."""
    found = _object(value, what).keys()
    if found != names:
        differ = sorted(quoted(name) for name in found ^ names)
        raise Damaged(f"{shown(what, 60)} with or without {', '.join(differ[:5])}, wanted {', '.join(sorted(names))}")
