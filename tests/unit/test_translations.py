"""The pages in Japanese and Chinese have all that the English ones have, and their own punctuation."""

import re
from pathlib import Path

import pytest

from docs.make_pulsar2 import PAGE, translation

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENGLISH = {"index": ROOT / "README.md", **{name: DOCS / f"{name}.md" for name in ("tutorial", "board", "pulsar2")}}
LANGUAGES = ("ja", "zh")
BLOCK = re.compile(r"^ *```.*?^ *```\n", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]+`")
SWITCH = re.compile(r"^.*\bEnglish\b.* · .*中文.*$", re.MULTILINE)  # from a language to the others
CJK = r"[\u3040-\u30ff\u4e00-\u9fff]"

each_page = pytest.mark.parametrize(
    ("english", "translated"),
    [
        pytest.param(page, DOCS / f"{name}.{lang}.md", id=f"{name}.{lang}")
        for name, page in ENGLISH.items()
        for lang in LANGUAGES
    ],
)


def outline(text: str) -> list[str]:
    """The parts of a page in order: levels of headings, items of lists, code spans of the first cell of rows, paragraphs."""
    parts, before = [], ""
    for line in BLOCK.sub("```\n", text).splitlines():
        if mark := re.match(r"#+ | *(?:-|\d+\.) |```|<!--", line):
            parts.append(mark[0].strip())
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            parts.append(f"| {len(cells)} {' '.join(SPAN.findall(cells[1]))}".strip())
        elif line.strip() and not before.strip():
            parts.append("paragraph")
        before = line
    return parts


def code(text: str) -> list[str]:
    """Lines of the page's blocks of code, without comments."""
    return [re.sub(r"(^| +)#.*", "", line).rstrip() for block in BLOCK.findall(text) for line in block.splitlines()]


def links(text: str, page: Path) -> list[str]:
    """Where the page leads, from the project's directory, with each translation by its English page's name."""
    found = re.findall(r"\]\(([^)\s]+)\)", SWITCH.sub("", BLOCK.sub("", text)))
    return sorted(
        target
        if target.startswith("https:")
        else re.sub(rf"\.(?:{'|'.join(LANGUAGES)})\.md", ".md", str((page.parent / target).resolve().relative_to(ROOT)))
        for target in found
    )


def half_width(text: str) -> list[str]:
    """Punctuation of ASCII next to Chinese or Japanese characters, in what is not code."""
    prose = re.sub(r"^#* *(?:-|\d+\.) ", "", BLOCK.sub("", text), flags=re.MULTILINE)
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose).replace("*", "")
    return re.findall(rf".?.?{CJK} ?[,.:;!?()]|[,.:;!?()] ?{CJK}.?.?", SPAN.sub("x", prose))


@each_page
def test_a_translation_has_every_section_list_table_and_paragraph_in_order(english, translated):
    assert outline(translated.read_text(encoding="utf-8")) == outline(english.read_text(encoding="utf-8"))


@each_page
def test_a_translation_has_the_same_commands_and_settings(english, translated):
    assert code(translated.read_text(encoding="utf-8")) == code(english.read_text(encoding="utf-8"))


@each_page
def test_a_translation_leads_to_the_same_pages(english, translated):
    wanted = links(english.read_text(encoding="utf-8"), english)

    assert wanted and links(translated.read_text(encoding="utf-8"), translated) == wanted


@each_page
def test_a_translation_has_full_width_punctuation(english, translated):
    assert half_width(translated.read_text(encoding="utf-8")) == []


@each_page
def test_each_page_links_to_its_other_languages(english, translated):
    def languages(page: Path) -> list[Path]:
        (line,) = SWITCH.findall(page.read_text(encoding="utf-8"))
        return [(page.parent / target).resolve() for target in re.findall(r"\(([^)]+)\)", line)]

    assert translated in languages(english)
    assert english in languages(translated) and len(languages(translated)) == 2


@pytest.mark.parametrize("lang", LANGUAGES)
def test_tables_made_from_code_are_up_to_date(lang):
    text = PAGE.with_suffix(f".{lang}.md").read_text(encoding="utf-8")

    assert translation(text, PAGE.read_text(encoding="utf-8")) == text, "run `make docs`"


def test_what_a_translation_lacks_is_seen():
    text = (DOCS / "tutorial.ja.md").read_text(encoding="utf-8")
    without_section = re.sub(r"(?s)\n## 4\..*?(?=\n## 5\.)", "", text)
    without_row = re.sub(r"(?m)^\| `sha256` .*\n", "", text)

    assert outline(without_section) != outline(text) != outline(without_row)
    assert (
        code(text.replace("--cores 4", "--cores 8"))
        != code(text)
        == code(text.replace("docker\n", "docker # コンテナ\n"))
    )
    assert links(text.replace("(settings.md)", "(files.md)"), DOCS / "x") != links(text, DOCS / "x")


@pytest.mark.parametrize("text", ["画像,設定", "画像(設定)", "図片: 设置", "`unet`は UNet です.", "設定（`unet`):次"])
def test_half_width_punctuation_is_seen(text):
    assert half_width(text)


def test_punctuation_of_code_and_of_latin_words_is_left_alone():
    assert half_width("1. `画像,設定`、Raspberry Pi 5 (4.2)、2.5 倍。[設定](x.md)（`a`）") == []
