"""Text from elsewhere, as a terminal and a log can show it."""

import re
import textwrap
import unicodedata
from typing import Any

# What terminals obey (ECMA-48): commands to the screen, and texts to the terminal itself, such as a title or the clipboard.
COMMANDS = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\\\)?")
# Marks that turn the direction of what follows, so that a line reads as something else (Unicode's UAX 9, section 2).
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
KEPT = "\n\t"


def printable(text: str) -> str:
    """*text* without what a terminal obeys: control characters other than line feed and tab, marks of direction.

    Halves of surrogate pairs, which no file takes, become «�».
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, COMMANDS.sub("", text).replace("\r\n", "\n")))


def _shown(character: str) -> str:
    if character in KEPT:
        return character
    if character in DIRECTIONS:
        return ""
    kind = unicodedata.category(character)
    return (
        " " if character == "\r" or kind in ("Zl", "Zp") else "" if kind == "Cc" else "�" if kind == "Cs" else character
    )


def error_line(error: BaseException) -> str:
    """*error* as a screen shows it: its class, and its text without what a terminal obeys."""
    return f"{type(error).__name__}: {printable(str(error))}"


def shown(value: Any, most: int = 120) -> str:
    """*value* as it stands in a message: its first *most* characters, those that Python's `repr` would escape as `\\x1b`."""
    text = str(value)
    cut = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:most])
    return f"{cut}…" if len(text) > most else cut


def one_line(text: str, most: int = 200) -> str:
    """The beginning of *text*, printable and on one line.

    Args:
        most: characters.
    """
    line = " ".join(printable(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1]}…"


def wrapped(text: str, width: int) -> str:
    """*text* in lines of *width* characters, broken between words; what goes on is indented, and a longer word stays whole."""
    return "\n".join(line if len(line) <= width else _broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    words = line.lstrip(" ")
    indent = " " * (len(line) - len(words))
    return textwrap.fill(
        words,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
