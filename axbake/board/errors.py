"""What can go wrong on the way to a board, and on it."""

from axbake.errors import AxbakeError
from axbake.printable import printable


class BoardError(AxbakeError):
    """What all errors of boards have in common."""

    def __init__(self, text: str):
        super().__init__(printable(text))  # it may quote a board


class WrongHostKey(BoardError):
    """The board shows another host key than the one that ssh knows, or one that it does not know."""


class LoginRefused(BoardError):
    """The board does not let this user in."""


class Unreachable(BoardError):
    """No connection to the board comes about."""


class ConnectionLost(BoardError):
    """The connection ended before the work on the board did."""


class BoardSilent(BoardError):
    """A program on the board said nothing for too long."""


class MissingProgram(BoardError):
    """A program or a Python package that the board needs is not there."""


class MissingDriver(BoardError):
    """The card's driver is not loaded."""


class NoSuchCard(BoardError):
    """The board has no card of that number."""


class NoSpace(BoardError):
    """The board's disk has not enough room."""


class NotEnoughCmm(BoardError):
    """The card's memory for models has not enough room."""


class BusyCard(BoardError):
    """Somebody else is using the card."""


class UnreadableOutput(BoardError):
    """A program on the board printed something else than it is known to print."""


class FailedOnBoard(BoardError):
    """A program on the board ended with an error."""


class FailedOnHost(BoardError):
    """A bundle's program ended with an error on this host."""


class EmulatedModel(BoardError):
    """A model was made by the emulator, and no board runs it."""


class DamagedBundle(BoardError):
    """A bundle's files are not those that its manifest lists."""
