"""What a site offers under an address: one file, its digest if the site states it, and its description."""

from dataclasses import dataclass, field
from typing import Any

from axbake.fetch.tokens import Token


@dataclass(frozen=True)
class Offer:
    """A file that can be downloaded."""

    url: str
    name: str  # of the file, as its author calls it; on one line, and no path
    sha256: str | None  # that the site tells, 64 digits
    token: Token | None
    howto: str  # what to do if the site refuses
    headers: dict[str, str] = field(default_factory=dict)  # for the site itself, not for where it redirects to
    about: dict[str, Any] = field(default_factory=dict)  # where it is from, base model, licence
