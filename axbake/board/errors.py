"""What can go wrong on the way to a board, and on it."""

from axbake.errors import AxbakeError
from axbake.printable import printable


class BoardError(AxbakeError):
    """Base of all errors of boards."""

    def __init__(self, text: str):
        super().__init__(printable(text))  # it may quote a board


class WrongHostKey(BoardError):
    """The board has a different host key than the one that ssh knows, or ssh does not know its host key."""


class LoginRefused(BoardError):
    """The board refuses this user's login."""


class Unreachable(BoardError):
    """axbake cannot connect to the board."""


class ConnectionLost(BoardError):
    """The connection ended before the work on the board did."""


class BoardSilent(BoardError):
    """A program on the board printed nothing for too long."""


class MissingProgram(BoardError):
    """The board lacks a program or a Python package."""


class MissingDriver(BoardError):
    """The card's driver is not loaded."""


class NoSuchCard(BoardError):
    """The board has no card with this number."""


class NoSpace(BoardError):
    """The board's disk does not have enough room."""


class NotEnoughCmm(BoardError):
    """The card's memory for models does not have enough room."""


class BusyCard(BoardError):
    """Another program is using the card."""


class UnreadableOutput(BoardError):
    """A program on the board printed unexpected output."""


class FailedOnBoard(BoardError):
    """A program on the board ended with an error."""


class FailedOnHost(BoardError):
    """A bundle's program ended with an error on this host."""


class EmulatedModel(BoardError):
    """A model was made by the emulator, so no board can run it."""


class DamagedBundle(BoardError):
    """A bundle's files do not match its manifest."""
