"""What is refused, in the form that each interface's clients read."""

from __future__ import annotations

from typing import Any

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "server_error",
    500: "server_error",
}


class Refused(Exception):
    """A request that is not done.

    Its text says the value that was found, what was expected, and what to do.
    """

    def __init__(self, status: int, text: str, *, code: str, parameter: str | None = None) -> None:
        """
        Args:
            status: of HTTP.
            code: a word for programs.
            parameter: of the request, that it is about.
        """
        super().__init__(text)
        self.status, self.code, self.parameter = status, code, parameter

    def content(self, path: str) -> dict[str, Any]:
        """The answer's JSON, as the interface that *path* belongs to has it."""
        text = str(self)
        if path.startswith("/v1/"):
            kind = TYPES.get(self.status, "invalid_request_error")
            return {"error": {"message": text, "type": kind, "param": self.parameter, "code": self.code}}
        # AUTOMATIC1111's web UI (`modules/api/api.py`, `handle_exception`); clients read detail or errors.
        return {"error": self.code, "detail": text, "body": "", "errors": text}
