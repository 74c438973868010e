"""Write docs/errors.md from the error classes of the package: `make docs`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
BASES = {"AxbakeError", "BundleError"}  # of the package, and of what travels to the board
INTRODUCTION = """# Errors

`make docs` makes this page from the error classes of `axbake/`. Every error's text gives the value, what was expected, and what
to do. The job's log has the traceback. An error that is not in this table is a bug in axbake: please report it with its log.

| error | means | from |
|---|---|---|
"""


def error_classes() -> dict[str, tuple[str, str]]:
    """Name of each error class -> what it means, and its module."""
    found: dict[str, tuple[str, str]] = {}
    classes = {
        node.name: (node, path)
        for path in sorted((ROOT / "axbake").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }

    def is_error(name: str) -> bool:
        if name in BASES:
            return True
        node, _ = classes.get(name, (None, None))
        return node is not None and any(is_error(base.id) for base in node.bases if isinstance(base, ast.Name))

    for name, (node, path) in classes.items():
        if is_error(name):
            meaning = (ast.get_docstring(node) or "").split("\n\n")[0]
            found[name] = (" ".join(meaning.split()), str(path.relative_to(ROOT)))
    return found


def page() -> str:
    """The page's text."""
    return INTRODUCTION + "".join(
        f"| `{name}` | {meaning.replace('|', chr(92) + '|')} | `{module}` |\n"
        for name, (meaning, module) in sorted(error_classes().items())
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
