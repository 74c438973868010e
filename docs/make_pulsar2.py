"""Write the table of config fields in docs/pulsar2.md, and the tables of its translations: `make docs`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pulsar2.md"
TRANSLATIONS = [PAGE.with_suffix(".ja.md"), PAGE.with_suffix(".zh.md")]
BEGIN, END = "<!-- fields -->\n", "<!-- end of fields -->\n"
FAILURES = "<!-- failures -->\n"


def table() -> str:
    """A row for every documented field."""
    from axbake.toolchain.build_config import documented_fields

    rows = ["| field | kind | values | default |", "|---|---|---|---|"]
    rows += [f"| `{path}` | {kind} | {values} | {default} |" for path, kind, values, default in documented_fields()]
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """*text* with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def translation(text: str, english: str) -> str:
    """*text* with its table made anew, and with the tables of failures of the page in *english*."""
    rows = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
    before, _, failures = page(text).partition(FAILURES)
    tables = iter(rows.findall(english.partition(FAILURES)[2]))
    return before + FAILURES + rows.sub(lambda _: next(tables), failures)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for path in TRANSLATIONS:
        said = translation(path.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8"))
        path.write_text(said, encoding="utf-8")
