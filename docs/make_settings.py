"""Write docs/settings.md from the JSON schemas: `make docs`."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """# Settings

`make docs` makes this page from `workflow/schemas/`. A missing entry takes its default; an unknown entry stops the run.
"""
BY_ROLE = """`{part}` stands for a role or a component. A role is what a component does in its model. In Stable Diffusion,
`text` is the component `text_encoder`, `denoiser` is `unet`, `encoder` is `vae_encoder`, and `decoder` is `vae_decoder`.
An entry for a component replaces the entry of its role, for that component only.

Entries marked (row) can also be set for one row of the table, in the YAML file that the row's column `config` names.
"""
PART = "{part}"


def allowed(entry: dict) -> str:
    """Type and allowed values of an entry, in words."""
    if "enum" in entry:
        return ", ".join(f"`{value}`" if value != "" else "empty" for value in entry["enum"])
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


def default_of(entry: dict) -> str:
    """What an entry is that is not there."""
    if "default" not in entry:
        return "none"
    return f"`{entry['default']}`" if entry["default"] != "" else "empty"


def is_by_role(entry: dict) -> bool:
    """Whether an entry has one value for each role, and for components by their names."""
    return isinstance(entry.get("additionalProperties"), dict) and "properties" in entry


def of_all_roles(schema: dict) -> dict:
    """What the entries of a schema by role have in common, which is all of them."""
    first, *others = schema["properties"].values()
    assert all(other == first for other in others), "roles differ; the table has one line for all"
    return first


def linked(path: str, table: str) -> str:
    """An entry that links to itself, so that its address can be copied: settings.md#config-board-host, #models-height."""
    anchor = f"{table}/{path}".translate(str.maketrans("/", "-", "{}"))
    return f'<a id="{anchor}" href="#{anchor}">`{path}`</a>'


def rows(schema: dict, table: str, prefix: str = "", of_row: bool = False) -> list[str]:
    """A row for every entry of *schema*, at every depth.

    Args:
        table: name of the schema.
        of_row: whether a row of the table of models can have its own.
    """
    lines = []
    entries = {PART: of_all_roles(schema)} if is_by_role(schema) else schema["properties"]
    for name, entry in entries.items():
        meaning = " ".join(entry.get("description", "").split())
        own = of_row or entry.get("ofRow", False)
        mark = " (row)" if own and not of_row else ""
        link = linked(prefix + name, table)
        if "properties" in entry:
            lines += [f"| {link}{mark} | {meaning} | | |", *rows(entry, table, f"{prefix}{name}/", own)]
            continue
        lines.append(f"| {link} | {meaning} | {allowed(entry)} | {default_of(entry)} |")
    return lines


def page() -> str:
    """The page's text."""
    head = ["", "| entry | meaning | values | default |", "|---|---|---|---|"]
    parts = [INTRODUCTION]
    for title, name in (("config/config.yaml", "config"), ("config/models.tsv", "models")):
        schema = yaml.safe_load((ROOT / "workflow" / "schemas" / f"{name}.schema.yaml").read_text(encoding="utf-8"))
        about = [" ".join(schema["description"].split())] + ["", BY_ROLE.rstrip()] * (name == "config")
        parts += [f"## {title}", "", *about, *head, *rows(schema, name), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
