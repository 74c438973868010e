"""What can go wrong with a file from elsewhere. No text of these ever holds a token or a signed address."""

from axbake.errors import AxbakeError
from axbake.printable import printable


class FetchError(AxbakeError):
    """A file cannot be downloaded from the address in the table."""

    def __init__(self, text: str):
        super().__init__(printable(text))  # it may quote a site


class BadSource(FetchError):
    """A cell looks like an address, but axbake does not know this kind of address."""


class AccessRefused(FetchError):
    """The site does not let this user download the file."""


class NotThere(FetchError):
    """The site has no such model, version or file."""


class NotAFile(FetchError):
    """The downloaded file is not a checkpoint: it is a web page, or does not have the format that the address says."""


class NotBakeable(FetchError):
    """According to the site, axbake cannot bake this kind of file."""


class Unpinned(FetchError):
    """The file at an address may change, and the table does not say which file it means."""


class WrongDigest(FetchError):
    """The file is not the one that the table means."""


class NoRoom(FetchError):
    """The disk has no room for the file."""


class SiteUnreachable(FetchError):
    """The site does not answer, or its answers do not let the download finish."""


class Interrupted(Exception):
    """One attempt failed in a way that another may cure. Never leaves this package.

    Args:
        why: for people.
        wait: seconds that the site asks for; None if it does not say.
        slow: whether the site took so long that few more attempts are worth it.
    """

    def __init__(self, why: str, wait: float | None = None, *, slow: bool = False):
        super().__init__(why)
        self.wait, self.slow = wait, slow
