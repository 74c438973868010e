"""What can go wrong with a file from elsewhere. No text of these ever holds a token or a signed address."""

from axbake.errors import AxbakeError
from axbake.printable import printable


class FetchError(AxbakeError):
    """A file cannot be fetched from where the table says."""

    def __init__(self, text: str):
        super().__init__(printable(text))  # it may quote a site


class BadSource(FetchError):
    """A cell looks like an address, but not like one that axbake knows."""


class AccessRefused(FetchError):
    """The site does not give this file to this user."""


class NotThere(FetchError):
    """The site has no such model, version or file."""


class NotAFile(FetchError):
    """What arrives is not a checkpoint: a web page, or a file of another form than the address says."""


class NotBakeable(FetchError):
    """The site says that the file is of a kind that axbake does not bake."""


class Unpinned(FetchError):
    """A source may change, and the table does not say which file is meant."""


class WrongDigest(FetchError):
    """The file is another one than the table means."""


class NoRoom(FetchError):
    """The disk cannot take the file."""


class SiteUnreachable(FetchError):
    """The site does not answer, or not in a way that lets the download end."""


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
