"""Files that users bring, opened and read within bounds: regular files only, text in UTF-8, JSON, YAML.

Strangers made them. Reading one takes memory and time in proportion to its size, which is limited, and an error quotes a bounded
part of it, without control characters.
"""

import codecs
import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from axbake.errors import AxbakeError
from axbake.printable import shown

MOST_JSON_BYTES = 1_000_000  # of a config beside weights
MOST_YAML_BYTES = 200_000  # PyYAML reads about 100 kB a second; recipes and LDM configs have 1 to 10 kB
MOST_EXPANDED = 500_000  # characters and entries of a YAML once each alias is replaced by what it stands for
# What PyYAML raises besides its own error on dates that are none, numbers that are none, tables as keys, and endless nesting.
YAML_FAULTS = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class UnreadableFile(AxbakeError):
    """A file from the user cannot be opened, is too large, or is not the expected text."""


def kind_of(path: Path) -> str:
    """What lies at *path*: `a file`, `a folder`, `a device`, `a pipe`, `a socket`; empty if nothing that can be looked at."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # among others a name that is too long, a link to itself, a NUL in a name
        return ""
    return "a file" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "not a regular file")


def absence(path: Path) -> str:
    """That nothing can be looked at at *path*, and why, as in `Permission denied`; empty if something is there."""
    try:
        path.stat()
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return f"not there ({os.strerror(error.errno or 0)})"
    except ValueError as error:  # a NUL in a name
        return f"not there ({error})"
    return ""


def is_file(path: Path) -> bool:
    """Whether *path* is a regular file; unlike `Path.is_file` never an error."""
    return kind_of(path) == "a file"


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """The regular file *path*, open for reading. A pipe or a device, which may never end, is refused unread.

    Raises:
        UnreadableFile: not there, not a regular file, or not readable, now or while it is read.
    """
    kind = kind_of(path)
    if kind not in ("", "a file"):
        raise UnreadableFile(f"{shown(path, 400)}: {kind}. Wanted a file.")
    try:
        # Without waiting: another process may have put a pipe there since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UnreadableFile(f"{shown(path, 400)}: {why}. Correct the path.") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableFile(f"{shown(path, 400)}: it is no longer a file. Wanted a file.")
        try:
            yield file
        except OSError as error:
            raise UnreadableFile(f"{shown(path, 400)}: {error.strerror}. Copy the file again.") from None


def read_text(path: Path, *, most_bytes: int) -> str:
    """The text of *path*: UTF-8, or UTF-16 with the byte order mark of Windows' editors and spreadsheets; without that mark.

    Raises:
        UnreadableFile: as `open_file`; larger than *most_bytes*, or in another encoding.
    """
    with open_file(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UnreadableFile(f"{shown(path, 400)}: more than {most_bytes} bytes. Wanted a small text file.")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"{shown(path, 400)}: byte {error.start} is not {'UTF-16' if wide else 'UTF-8'}. Save the file as UTF-8 text."
        ) from None


def lines_of(text: str) -> list[str]:
    """Lines of a user's text, whatever system's: ended by LF, CR LF or CR. Other separators are part of a line."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines[:-1] if lines[-1] == "" else lines


def load_json(text: str) -> Any:
    """The value of a JSON *text*.

    Stricter than the library: no name twice in one object, no NaN, no halves of characters.

    Raises:
        ValueError: not such JSON; says what is wrong in a bounded text.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("it contains half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(shown(error, 200)) from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"'{shown(name)}' appears twice")
            seen.add(name)
    return table


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without numbers in base 60, whose reading takes time in the square of their length."""


def _number(kind: str) -> Any:
    construct = getattr(yaml.SafeLoader, f"construct_yaml_{kind}")
    return lambda loader, node: node.value if ":" in str(node.value) else construct(loader, node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number(_kind))


def load_yaml(text: str) -> Any:
    """The value of a YAML *text*: texts, numbers, dates, lists and tables, and nothing else.

    Raises:
        ValueError: not YAML, too long, or with aliases that multiply; says what is wrong in a bounded text.
    """
    if len(text) > MOST_YAML_BYTES:
        raise ValueError(f"{len(text)} characters; at most {MOST_YAML_BYTES}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded(node, {}) > MOST_EXPANDED:
                raise ValueError(f"its aliases (*name) expand to more than {MOST_EXPANDED} entries")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except YAML_FAULTS as error:
        raise ValueError(shown(" ".join(str(error).split()), 300)) from None


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Characters and entries of *node* with every alias, and every merge key, replaced by what it stands for.

    Raises:
        ValueError: an alias stands for something that it is in.
    """
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("an alias (*name) refers to something that contains it")
        return known[id(node)]
    known[id(node)] = -1
    if isinstance(node, yaml.ScalarNode):
        size = 1 + len(node.value)
    elif isinstance(node, yaml.MappingNode):
        size = 1 + sum(_expanded(key, known) + _expanded(value, known) for key, value in node.value)
    else:
        size = 1 + sum(_expanded(value, known) for value in node.value)
    known[id(node)] = size
    return size


def read_json(path: Path) -> Any:
    """The value in the JSON file *path*.

    Raises:
        UnreadableFile: as `read_text`, or not JSON (`load_json`).
    """
    text = read_text(path, most_bytes=MOST_JSON_BYTES)
    try:
        return load_json(text)
    except ValueError as error:
        raise UnreadableFile(f"{shown(path, 400)}: {error}.") from None


def read_yaml(path: Path) -> Any:
    """The value in the YAML file *path*.

    Raises:
        UnreadableFile: as `read_text`, or not YAML (`load_yaml`).
    """
    text = read_text(path, most_bytes=MOST_YAML_BYTES)
    try:
        return load_yaml(text)
    except ValueError as error:
        raise UnreadableFile(f"{shown(path, 400)}: {error}.") from None
