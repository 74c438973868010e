"""Fills pages' templates. A page holds all it shows, asks nothing of any network, and runs no script but its own."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

PAGES = Path(__file__).parent


def render(template: str, **content: Any) -> str:
    """The page of `pages/`*template*; whatever *content* holds comes out as text, never as markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "megabytes": megabytes}
    script = (PAGES / "page.js").read_text(encoding="utf-8")
    # The browser runs a script of this digest and no other: https://www.w3.org/TR/CSP3/#script-src
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(script=script, script_digest=digest, style=style, **content)


def duration(seconds: float) -> str:
    """*seconds* for people: `0.4 s`, `48 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def megabytes(size: int) -> str:
    """*size* in bytes for people."""
    return f"{size / 1e6:,.1f} MB"
