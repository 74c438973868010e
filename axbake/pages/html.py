"""Fills pages' templates. A page holds all it shows, asks nothing of any network, and runs no script but its own."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from axbake.units import duration, in_words, megabytes

PAGES = Path(__file__).parent
KEY = re.compile(r"\b[a-z_]+(?:/[a-z_0-9]+)+\b")  # of config: `precision/vae_decoder`


def render(template: str, **content: Any) -> str:
    """The page of `pages/`*template*; whatever *content* holds comes out as text, never as markup."""
    script = (PAGES / "page.js").read_text(encoding="utf-8")
    # The browser runs only a script with this digest: https://www.w3.org/TR/CSP3/#script-src
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    return environment().get_template(template).render(script=script, script_digest=digest, style=style, **content)


def environment() -> jinja2.Environment:
    """All templates of `pages/`, and what they may call."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "coded": coded,
        "duration": duration,
        "megabytes": megabytes,
        "sentence": sentence,
        "words": in_words,
    }
    return made


def coded(text: str) -> Markup:
    """*text*, escaped, with config's keys in it as code."""
    return Markup(KEY.sub(r"<code>\g<0></code>", str(escape(text))))


def sentence(text: str) -> str:
    """*text* with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
