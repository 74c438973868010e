"""Write docs/settings.md from the JSON schemas: `make docs`."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """# Settings

Made from `workflow/schemas/` by `make docs`. An entry that is not there takes its default; an unknown one stops the run.
"""


def allowed(entry: dict) -> str:
    """Type and allowed values of an entry, in words."""
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    words = [entry["type"]]
    if "minimum" in entry:
        words.append(
            f"{entry['minimum']} to {entry['maximum']}" if "maximum" in entry else f"{entry['minimum']} or more"
        )
    if "multipleOf" in entry:
        words.append(f"a multiple of {entry['multipleOf']}")
    if "pattern" in entry:
        pattern = entry["pattern"].replace("(?!\\n)", "")  # for a machine: no line break at the end
        words.append(f"`{pattern.replace('|', chr(92) + '|')}`")
    return ", ".join(words)


def rows(schema: dict, prefix: str = "") -> list[str]:
    """A table row for every entry of *schema*, at every depth."""
    lines = []
    for name, entry in schema["properties"].items():
        meaning = " ".join(entry.get("description", "").split())
        if "properties" in entry:
            lines += [f"| `{prefix}{name}` | {meaning} | | |", *rows(entry, f"{prefix}{name}/")]
            continue
        default = (
            f"`{entry['default']}`" if entry.get("default", "") != "" else "empty" if "default" in entry else "none"
        )
        lines.append(f"| `{prefix}{name}` | {meaning} | {allowed(entry)} | {default} |")
    return lines


def page() -> str:
    """The page's text."""
    head = ["", "| entry | meaning | values | default |", "|---|---|---|---|"]
    parts = [INTRODUCTION]
    for title, name in (("config/config.yaml", "config"), ("config/models.tsv", "models")):
        schema = yaml.safe_load((ROOT / "workflow" / "schemas" / f"{name}.schema.yaml").read_text())
        parts += [f"## {title}", "", " ".join(schema["description"].split()), *head, *rows(schema), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
