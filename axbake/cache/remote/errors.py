"""What can go wrong with a remote cache."""

from axbake.errors import AxbakeError


class RemoteAddressError(AxbakeError):
    """The address of a remote cache cannot be used."""


class RemoteTrouble(AxbakeError):
    """The remote cannot be reached, refuses, or is too slow."""


class SigningError(AxbakeError):
    """Entries cannot be signed."""


class Distrusted(Exception):
    """An entry is not of those whom the project takes entries of; says why."""
