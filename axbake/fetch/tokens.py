"""The user's own tokens: from the environment or files of theirs, and each for one site alone."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from axbake.fetch.errors import AccessRefused, FetchError
from axbake.printable import one_line

CIVITAI_VARIABLES = ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN")
CIVITAI_HOWTO = (
    "Create a token at https://civitai.com/user/account (API Keys) and put it into the environment variable "
    "CIVITAI_API_TOKEN or the file ~/.config/axbake/civitai_token"
)
MOST_SECRET = 10_000  # bytes of a token's file
HUB_HOWTO = (
    "Log in with `hf auth login`, or put a token from https://huggingface.co/settings/tokens into the "
    "environment variable HF_TOKEN"
)


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
    """Where Civitai is; the environment's CIVITAI_ENDPOINT names a mirror."""
    return _endpoint("CIVITAI_ENDPOINT", "https://civitai.com")


def hub_endpoint() -> str:
    """Where Hugging Face is; the environment's HF_ENDPOINT names a mirror."""
    return _endpoint("HF_ENDPOINT", "https://huggingface.co")


def _endpoint(variable: str, usual: str) -> str:
    """Address of a site, without a slash at its end.

    Raises:
        FetchError: the environment's *variable* is not one.
    """
    text = os.environ.get(variable, "").strip().strip("\"'") or usual
    address = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("https", "http") and parts.hostname and (parts.port or True) and not parts.query
    except ValueError:
        good = False
    if not good:
        raise FetchError(f"{variable} in the environment is {one_line(text)!r}; wanted https://host")
    return address.rstrip("/")


def civitai_token() -> Token | None:
    """The user's token for Civitai, if there is one.

    Raises:
        AccessRefused: the file of it cannot be read, or holds something else.
    """
    found = next(((name, os.environ[name]) for name in CIVITAI_VARIABLES if os.environ.get(name)), None)
    config = os.environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if (home := os.environ.get("HOME")) else None)
    file = Path(config or "/nonexistent") / "axbake" / "civitai_token"
    if not found and file.is_file():
        try:
            with file.open("rb") as opened:
                found = (str(file), opened.read(MOST_SECRET).decode("utf-8", "replace"))
        except OSError as error:
            raise AccessRefused(f"{file}: {os.strerror(error.errno or 0)}; wanted your token for Civitai") from None
    return checked(found[1], found[0], civitai_endpoint()) if found and found[1].strip() else None


def checked(secret: str, place: str, endpoint: str) -> Token:
    """*secret* as a token for *endpoint*, if it can be one.

    Raises:
        AccessRefused: names *place*, and never the secret.
    """
    if not re.fullmatch(r"[\x21-\x7e]{1,1000}", secret.strip()):
        raise AccessRefused(f"{place}: no token; wanted one word of letters, digits and signs")
    return Token(secret.strip(), origin(endpoint))
