"""Which site an address is of, and what that offers under it."""

from urllib.parse import unquote, urlsplit

from axbake.fetch import answers
from axbake.fetch.civitai import civitai_offer
from axbake.fetch.errors import WrongDigest
from axbake.fetch.offers import Offer
from axbake.fetch.sources import Address, CivitaiAddress, HubAddress, WebAddress
from axbake.fetch.web import Web


def find_offer(web: Web, address: Address, pin: str) -> Offer:
    """What is offered under *address*, of several files the one that *pin* means.

    Args:
        pin: SHA-256, its first ten digits, or empty.

    Raises:
        FetchError: nothing that fits; of a file that changed, with both digests.
    """
    if isinstance(address, CivitaiAddress):
        offer = civitai_offer(web, address, pin)
    elif isinstance(address, HubAddress):
        from axbake.fetch.hugging_face import hub_offer  # here, since its library takes a while to be imported

        offer = hub_offer(web, address)
    else:
        assert isinstance(address, WebAddress)
        offer = web_offer(address)
    if pin and offer.sha256 and not offer.sha256.startswith(pin):
        raise changed(address, pin, offer.sha256)
    return offer


def web_offer(address: WebAddress) -> Offer:
    """A file on any web server, which tells nothing of it."""
    parts = urlsplit(address.url)
    name = answers.file_name(unquote(parts.path)) or str(parts.hostname)
    return Offer(
        address.url, name, None, None, "Open the address in a browser to see why", about={"site": parts.hostname}
    )


def changed(address: Address, pin: str, found: str) -> WrongDigest:
    """The error of an address that has another file than the table means."""
    return WrongDigest(
        f"{address.text}: its SHA-256 is {found}, the table says {pin}. The file on the site has changed, or the table "
        "means another file. To bake the current file, correct the column sha256. To bake the earlier file, give the "
        "path of a copy."
    )
