"""Write the table of Pulsar2's config fields in docs/pulsar2.md: `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pulsar2.md"
BEGIN, END = "<!-- fields -->\n", "<!-- end of fields -->\n"


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


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(PAGE.read_text()))
