"""The documentation holds together: its site builds, its links lead somewhere, what is made from code is up to date."""

import fnmatch
import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from axbake.families import FAMILIES
from axbake.jobs.code import code_of
from axbake.networks.component import ROLES

ROOT = Path(__file__).parents[2]
HERE = Path(__file__)
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
BY_NAME = {path.name: path for path in PAGES}
COMPONENTS = {name for family in FAMILIES.values() for name in family.names}
# What a measurement wrote, with the names of then; and messages of the code, which another test holds to it
MADE = re.compile(r"(?s)\n(## Edited|<!-- failures -->)\n.*")
PROGRAMS = ("snakemake", "python", "python3", "pytest", "pip", "mkdocs")  # of this checkout's environment
#: What a toolchain starts, and what the reader's own Python does
NOT_OURS = ("python -m axbake.emulator", "pip install .")
ON_THE_BOARD = ("python3 -m venv .venv", "python3 txt2img.py", "python3 img2img.py", "python3 serve.py")
# Names in code spans that are of other programs and of users' files
OTHERS = {
    *(
        "use_deterministic_compute",
        "CONTAINER_ENGINE",
        "dreamshaper_8",
        "realistic_vision_v51",
        "ax_pulsar2",
        "ax_pulsar2_4",
    ),
    *("lora_unet", "lora_te", "lora_te1", "my_unet", "text_encoder_2"),
}
OTHER_PLACES = {"config/my_unet.json", "config/axbake/civitai_token", "axbake/pulsar2", "config/unet.json"}
# Taken out of the pages, for what idiomatic English has in their place
ODD = [
    *("parted by", "is had", "are had", "for want of", "no telling", "in silence", "without a word", "not to be used"),
    *(
        "has not the form",
        "is no integer",
        "is none of",
        "is told",
        "are told",
        "is said",
        "in the first second",
        "passed over",
    ),
    *("lie in", "what to believe", "be had alone", "slip of the pen", "told at once", "goes before it"),
    *(
        "over all models",
        "one a line",
        "a line a",
        "a row a",
        "a prompt a",
        "laid over",
        "had at",
        "as it lies",
        "by turns",
    ),
    *(
        "thrown away",
        "takes for granted",
        "for granted",
        "is another one",
        "of another form",
        "so many rows",
        "no word of",
    ),
    *("is no file", "is no number", "are no two", "is no whole", "no use for", "have no need", "has come", "made anew"),
]


def shell(text: str) -> list[str]:
    """Commands of a page: the lines of its blocks marked `sh`."""
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def anchors(path: Path) -> set[str]:
    """Names of a page's headings as GitHub and MkDocs make them, and those that it gives itself."""
    text = path.read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}
    return named | set(re.findall(r'<a id="([^"]+)"', text))


def prose(path: Path) -> str:
    """A page's text as people wrote it."""
    return MADE.sub("", path.read_text(encoding="utf-8"))


def spans(path: Path) -> list[str]:
    """What stands in backticks in a page, outside blocks."""
    text = re.sub(r"^```.*?^```", "", prose(path), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def blocks(path: Path) -> list[str]:
    """Lines of a page's blocks of commands: those that are marked `sh`, or not at all."""
    found = re.findall(r"^ *```(?:sh)?\n(.*?)^ *```", prose(path), re.MULTILINE | re.DOTALL)
    return [line.strip() for block in found for line in block.splitlines()]


@functools.cache
def schema(name: str) -> dict:
    return yaml.safe_load((ROOT / "workflow" / "schemas" / f"{name}.schema.yaml").read_text())


@functools.cache
def words_of_the_code() -> set[str]:
    """Every name in code, rules, schemas, profiles and commands, and of their files; with the rules of each family."""
    folders = ("axbake", "workflow", "profiles", "config", "bench", "tests/tiny.py", "resources/ax650", "tests/double")
    files = [file for name in folders for file in [ROOT / name, *(ROOT / name).rglob("*")] if file.is_file()]
    texts = [
        file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".smk", ".yaml", ".j2", ".json")
    ]
    rules = {
        f"{name}_{family}"
        for text in texts
        for name in re.findall(r'f"(\w+)_\{family\.name}"', text)
        for family in FAMILIES
    }
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    return {word for text in texts for word in re.findall(r"\w+", text)} | {file.stem for file in files} | rules | tests


def find_odd(text: str) -> list[str]:
    """Phrases of `ODD` in *text*, which is in lower case."""
    return [phrase for phrase in ODD if re.search(rf"\b{phrase}\b", text)]


def outputs_of_rules() -> set[str]:
    """Patterns of all files that rules make below `results/`, with `*` for whatever is filled in."""
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    found = re.findall(r'f?"(results/[^"]+)"', text)
    return {re.sub(r"\*+", "*", re.sub(r"\{+[^}]*\}+", "*", path)) for path in found}


def unknown_settings(span: str) -> Iterator[str]:
    """*span* if it is written as a place in the config, but is none."""
    first, *rest = span.split("/")
    entry = schema("config")["properties"].get(first)
    if entry is None or not rest or not re.fullmatch(r"[\w{}]+(/[\w{}]+)*", span):
        return
    for name in rest:
        below = entry.get("properties", {})
        if not below:
            if isinstance(entry.get("additionalProperties"), dict) or entry.get("type") == "object":
                return  # fields of Pulsar2's own config
            yield span
            return
        by_role = isinstance(entry.get("additionalProperties"), dict)
        known = {*below, *(COMPONENTS | {"{part}"} if by_role else ())}
        if name not in known:
            yield span
            return
        entry = below.get(name, entry["additionalProperties"] if by_role else {})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_names_in_a_page_are_names_of_the_code(page):
    found = {name for span in spans(page) for name in re.findall(r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+", span)}

    assert found - words_of_the_code() - OTHERS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_settings_in_a_page_are_entries_of_the_config(page):
    # A directory of results has the name of an entry, too; what is in it has an ending.
    assert [fault for span in spans(page) for fault in unknown_settings(span)] == []


def test_a_setting_that_there_is_not_is_seen():
    assert (
        list(unknown_settings("parity/min_psnr/unet")) == list(unknown_settings("pulsar2/denoiser/quant/check")) == []
    )
    assert list(unknown_settings("calibration/size")) and list(unknown_settings("parity/min_psnr/vae"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_columns_in_a_page_are_columns_of_the_table(page):
    text = re.sub(r"\s+", " ", prose(page))
    named = re.findall(r"\bcolumns? `(\w+)`", text)

    assert set(named) <= set(schema("models")["properties"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_and_modules_in_a_page_are_there(page):
    place = r"(?<![\w./-])(?:axbake|tests|bench|workflow|resources|profiles|docs|config|envs)/[\w./-]*\w"
    named = {path for span in spans(page) for path in re.findall(place, span)}
    modules = {name for span in spans(page) for name in re.findall(r"(?<![\w/])axbake(?:\.[a-z]\w*)+", span)}

    # A directory in a bundle, or on the board, has the package's name.
    missing = [path for path in named - OTHER_PLACES if not (ROOT / path).exists() and "NAME" not in path]
    assert missing == []
    for name in modules - {"axbake.tar"}:
        assert code_of(name if not (ROOT / name.replace(".", "/")).is_dir() else f"{name}.__main__"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_results_in_a_page_are_made_by_a_rule(page):
    known = outputs_of_rules() | {"results/report.html", "results/summary.tsv"}
    text = prose(page)
    named = set(re.findall(r"results/(?:NAME|\{model\}|demo|xxmix9)/[\w{}./-]*\w", text))
    named = {path for path in named if re.search(r"\.\w+$", path)}
    named = {re.sub(r"\{[^}]*\}", "x", path) for path in named}

    assert [path for path in named if not any(fnmatch.fnmatchcase(path, pattern) for pattern in known)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_a_page_run_what_make_installed(page):
    inline = [span for span in spans(page) if re.match(rf"({'|'.join(PROGRAMS)}) -?-?[\w./-]", span)]
    bare = [line for line in blocks(page) if re.match(rf"({'|'.join(PROGRAMS)}) ", line)]

    assert [line for line in bare if not line.startswith(ON_THE_BOARD)] == []
    assert [span for span in inline if span not in NOT_OURS] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda path: path.name)
def test_pages_are_in_plain_english(page):
    text = re.sub(r"\s+", " ", prose(page)).lower()

    assert find_odd(text) == []


@pytest.mark.parametrize("folder", ["axbake", "workflow", "bench", "config", "tests"])
def test_messages_docstrings_and_comments_are_in_plain_english(folder):
    written = (path for ending in ("py", "smk", "yaml", "j2") for path in (ROOT / folder).rglob(f"*.{ending}"))
    texts = {path: re.sub(r"[\s#]+", " ", path.read_text(encoding="utf-8")).lower() for path in written if path != HERE}

    assert texts
    assert [f"{path}: {phrase}" for path, text in texts.items() for phrase in find_odd(text)] == []


def test_every_family_has_a_section_and_every_role_a_name_in_the_settings():
    text = BY_NAME["families.md"].read_text(encoding="utf-8")

    for family in FAMILIES.values():
        assert f"\n## {family.name}: {family.title}" in text
    assert all(f"`{role}`" in BY_NAME["settings.md"].read_text(encoding="utf-8") for role in ROLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_site_has_the_pages_and_nothing_else_of_docs(site):
    assert "panda" in read(site / "index.html")
    assert not [path for path in site.rglob("*") if path.suffix == ".py" or path.name == "main.html"]


@pytest.mark.parametrize("home", ["index.html", "ja/index.html", "zh/index.html"])
def test_the_first_page_of_each_language_has_the_command_to_begin_with(site, home):
    assert re.search(r"<code[^>]*>make demo\n", read(site / home))


@pytest.mark.parametrize("name", ["index", "tutorial", "board", "pulsar2"])
@pytest.mark.parametrize(("lang", "up"), [("en", ""), ("ja", "../"), ("zh", "../")])
def test_a_page_names_its_language_and_leads_to_the_others(site, lang, up, name):
    page = read(site / ("" if lang == "en" else lang) / f"{name}.html")

    assert re.findall(r'\blang="(\w+)"', page.replace("hreflang=", "")) == [lang]
    others = {code: f"{up}{code}/{name}.html" for code in ("ja", "zh")} | {
        "en": f"{up}{name}.html",
        lang: f"{name}.html",
    }
    for code, link in others.items():
        assert f'<a href="{link}" hreflang="{code}"' in page
    assert "English · " not in page and " · English" not in page  # these are for GitHub


def test_a_page_that_is_not_translated_says_that_its_text_is_english(site):
    for lang in ("ja", "zh"):
        assert re.findall(r' lang="(\w+)"', read(site / lang / "numbers.html")) == [lang, "en"]
    assert '<html lang="en"' in read(site / "404.html")


def test_the_site_is_light_or_dark_as_the_system_or_the_reader_has_it(site):
    inputs = re.findall(r'<input[^>]+name="__palette"[^>]*>', read(site / "index.html"))

    assert [re.search(r'data-md-color-media="([^"]*)"', tag)[1] for tag in inputs] == [
        "(prefers-color-scheme)",
        "(prefers-color-scheme: light)",
        "(prefers-color-scheme: dark)",
    ]
    assert [re.search(r'data-md-color-scheme="([^"]*)"', tag)[1] for tag in inputs] == ["default", "default", "slate"]


def test_every_setting_has_an_anchor(site):
    page = read(site / "settings.html")

    def anchors_of(entry: dict, anchor: str) -> Iterator[str]:
        by_role = isinstance(entry.get("additionalProperties"), dict)
        below = {"part": {}} if by_role else entry.get("properties", {})
        for name, one in below.items():
            yield f"{anchor}-{name}"
            yield from anchors_of(one, f"{anchor}-{name}")

    wanted = [anchor for name in ("config", "models") for anchor in anchors_of(schema(name), name)]
    assert {"config-board-host", "config-compiled-min_sqnr-part", "models-height"} <= set(wanted)
    assert sorted(re.findall(r'<a id="([^"]+)" href="#\1">', page)) == sorted(wanted)


def test_the_search_finds_words_of_three_languages_in_their_pages(site):
    found = json.loads(read(site / "search" / "search_index.json"))
    separator = re.compile(found["config"]["separator"])

    assert {"en", "ja"} <= set(found["config"]["lang"])  # `ja` has its own segmenter
    assert separator.split("用校准样本") == list("用校准样本")
    assert separator.split("calibration samples, two") == ["calibration", "samples", "two"]
    for place, word in {"board.html": "heartbeat", "ja/board.html": "生存信号", "zh/board.html": "心跳"}.items():
        assert [entry for entry in found["docs"] if entry["location"].startswith(place) and word in entry["text"]]
    assert not [entry for entry in found["docs"] if entry["location"].startswith(("ja/numbers", "zh/numbers"))]


def test_the_site_asks_no_other_host_for_fonts():
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("name", ["settings", "errors"])
def test_pages_made_from_code_are_up_to_date(name):
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / f"make_{name}.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)

    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == maker.page(), "run `make docs`"


def test_citation_and_changelog_have_the_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## (\S+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert citation["version"] == released[0] == version


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_templates_are_yaml(path):
    assert yaml.safe_load(path.read_text())
