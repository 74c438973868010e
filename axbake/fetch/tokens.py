"""The user's own tokens: from the environment or files of theirs, and each for one site alone."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from axbake.fetch.errors import AccessRefused

CIVITAI_VARIABLES = ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN")
CIVITAI_HOWTO = (
    "Make a token at https://civitai.com/user/account (API Keys), and put it into the environment's CIVITAI_API_TOKEN or the"
    " file ~/.config/axbake/civitai_token"
)
HUB_HOWTO = "Log in by `hf auth login`, or put a token of https://huggingface.co/settings/tokens into the environment's HF_TOKEN"


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of *url*: what a token is for."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)


@dataclass(frozen=True)
class Token:
    """A secret, and the only origin that it is sent to."""

    secret: str = field(repr=False)
    origin: tuple[str, str, int]


def civitai_endpoint() -> str:
    """Where Civitai is; the environment's CIVITAI_ENDPOINT names a mirror, as HF_ENDPOINT does for Hugging Face."""
    return os.environ.get("CIVITAI_ENDPOINT", "https://civitai.com").rstrip("/")


def civitai_token() -> Token | None:
    """The user's token for Civitai, if there is one."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    file = config / "axbake" / "civitai_token"
    found = next(((name, os.environ[name]) for name in CIVITAI_VARIABLES if os.environ.get(name)), None)
    if not found and file.is_file():
        found = (str(file), file.read_text(encoding="utf-8", errors="replace"))
    return checked(found[1], found[0], civitai_endpoint()) if found and found[1].strip() else None


def checked(secret: str, place: str, endpoint: str) -> Token:
    """*secret* as a token for *endpoint*, if it can be one.

    Raises:
        AccessRefused: names *place*, and never the secret.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", secret.strip()):
        raise AccessRefused(f"{place}: no token; wanted one word of letters, digits and signs")
    return Token(secret.strip(), origin(endpoint))
