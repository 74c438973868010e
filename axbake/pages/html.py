"""Fills pages' templates. A page holds all it shows, asks nothing of any network, and runs no script but its own."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from axbake.units import duration, megabytes

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
