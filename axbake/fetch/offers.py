"""What a site offers under a source: one file, its digest if the site tells it, and what is said of it."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from axbake.fetch.errors import WrongDigest
from axbake.fetch.sources import CivitaiSource, HubSource, Source, UrlSource
from axbake.fetch.tokens import Token
from axbake.fetch.web import Web


@dataclass(frozen=True)
class Offer:
    """A file that can be downloaded."""

    url: str
    name: str  # of the file, as its author calls it
    sha256: str | None  # that the site tells, 64 digits
    token: Token | None
    howto: str  # what to do if the site refuses
    headers: dict[str, str] = field(default_factory=dict)  # for the site itself, not for where it redirects to
    about: dict[str, Any] = field(default_factory=dict)  # where it is from, base model, licence


def find_offer(web: Web, source: Source, pin: str) -> Offer:
    """What is offered under *source*, of several files the one that *pin* means.

    Args:
        pin: SHA-256, its first ten digits, or empty.

    Raises:
        FetchError: nothing that fits; of a file that changed, with both digests.
    """
    # Here, since reading a table needs neither.
    from axbake.fetch.civitai import civitai_offer
    from axbake.fetch.hugging_face import hub_offer

    if isinstance(source, CivitaiSource):
        offer = civitai_offer(web, source, pin)
    elif isinstance(source, HubSource):
        offer = hub_offer(web, source)
    else:
        assert isinstance(source, UrlSource)
        offer = url_offer(source)
    if pin and offer.sha256 and not offer.sha256.startswith(pin):
        raise changed(source, pin, offer.sha256)
    return offer


def url_offer(source: UrlSource) -> Offer:
    """A file on any web server, which tells nothing of it."""
    parts = urlsplit(source.url)
    name = unquote(parts.path).rpartition("/")[2] or str(parts.hostname)
    return Offer(
        source.url, name, None, None, "Open the address in a browser to see why", about={"site": parts.hostname}
    )


def changed(source: Source, pin: str, found: str) -> WrongDigest:
    """The error of a source that has another file than the table means."""
    return WrongDigest(
        f"{source.text}: its SHA-256 is {found}, the table says {pin}. The file was changed there, or another one is"
        " meant. To bake what is there now, correct the column sha256; to bake what was there before, give the path of a copy."
    )
