"""The documentation holds together: its site builds, its links lead somewhere, what is made from code is up to date."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TRANSLATIONS = [DOCS / "README.ja.md", DOCS / "README.zh.md"]


def shell(text: str) -> list[str]:
    """Commands of a page: the lines of its blocks marked `sh`."""
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def anchors(path: Path) -> set[str]:
    """Names of a page's headings as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert "panda" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "site").rglob("*.py"))


def test_the_site_asks_no_other_host_for_fonts():
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("name", ["settings", "errors"])
def test_pages_made_from_code_are_up_to_date(name):
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / f"make_{name}.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)

    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == maker.page(), "run `make docs`"


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda path: path.name)
def test_translations_have_commands_and_picture_of_the_readme(page):
    readme, text = (ROOT / "README.md").read_text(encoding="utf-8"), page.read_text(encoding="utf-8")

    assert len(shell(text)) >= 4
    assert set(shell(text)) <= set(shell(readme))
    assert "images/demo.png" in text and "images/demo.png" in readme


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert (
        citation["version"] == re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_templates_are_yaml(path):
    assert yaml.safe_load(path.read_text())
