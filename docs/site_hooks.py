"""What the site does not show: links to other languages, which its header has, and to files outside docs/; 404 pages but one."""

import re

from mkdocs.config.defaults import MkDocsConfig


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page's Markdown without what only GitHub shows."""
    without_languages = re.sub(r"^.*\bEnglish\b.* · .*\b中文\b.*\n", "", markdown, count=1, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", without_languages)


def on_post_template(output: str, *, template_name: str, config: MkDocsConfig) -> str:
    """Nothing for another language's 404.html, which would replace the English one."""
    return "" if template_name == "404.html" and config.theme["language"] != "en" else output
