"""Who may ask, and how much: what stands before every request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from .errors import Refused

MOST_BODY = 32 << 20  # bytes; a picture of 20 million pixels as PNG in base64 is mostly below it
PATIENCE = 60  # seconds for a body to arrive
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/", "/page.css", "/page.js", "/icon.svg", "/health")  # what needs no token: nothing of anyone's is in it
PICTURES = "/pictures/"  # neither do these: their names cannot be guessed

#: The page may load its own script and style, its own and the browser's pictures, and nothing else; nobody may frame it.
POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob: data:"),
        *("connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """An ASGI application that asks *app* what it lets through.

    Without a token it takes only requests that name this machine as their host: a page elsewhere whose name was pointed to
    127.0.0.1 sends its own name (DNS rebinding). A request that a page of another origin sends is refused with a token too.
    """

    app: Any
    token: str  # empty: none is asked for
    emulated: bool

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = {**HEADERS, "x-axbake-emulated": "true"} if self.emulated else HEADERS
                message = {
                    **message,
                    "headers": [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())],
                }
            await send(message)

        try:
            headers = _headers(scope)
            self._check_host(headers)
            self._check_token(scope["path"], headers)
            body = await _body(headers, receive)
        except Refused as refused:
            await _answer(refused, scope, send_with_headers)
            return
        given = False

        async def receive_body() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_body, send_with_headers)

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if not self.token and name.lower() not in LOCAL_NAMES:
            raise Refused(
                421,
                f"the Host header is {host!r}; without a token, this server answers only to {', '.join(LOCAL_NAMES)}.",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise Refused(
                403, f"the request comes from a page of {origin!r}, which may not draw here.", code="wrong_origin"
            )

    def _check_token(self, path: str, headers: dict[str, str]) -> None:
        if not self.token or path in OPEN or path.startswith(PICTURES):
            return
        if not hmac.compare_digest(_given_token(headers).encode(), self.token.encode()):
            raise Refused(
                401,
                "wanted this server's token: `Authorization: Bearer TOKEN`, or Basic with the token as password.",
                code="invalid_api_key",
            )


def _headers(scope: dict[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _given_token(headers: dict[str, str]) -> str:
    """The token of the header Authorization; empty if there is none."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


async def _body(headers: dict[str, str], receive: Any) -> bytes:
    """The whole body; more than `MOST_BYTES`, or one that does not arrive in time, is refused."""
    too_large = Refused(
        413, f"a body of more than {MOST_BODY >> 20} MiB. Send smaller pictures.", code="body_too_large"
    )
    said = headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > MOST_BODY:
        raise too_large
    pieces, size = [], 0

    async def read() -> None:
        nonlocal size
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the connection ended within the body.", code="incomplete_body")
            size += len(message.get("body", b""))
            if size > MOST_BODY:
                raise too_large
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return

    try:
        await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body did not arrive within {PATIENCE} s.", code="slow_body") from None
    return b"".join(pieces)


async def _answer(refused: Refused, scope: dict[str, Any], send: Any) -> None:
    """What is refused before anything is read of it; the connection is closed, since its body may still be coming."""
    content = json.dumps(refused.content(scope["path"])).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(b"connection", b"close")]
    if refused.status == 401:
        headers += [(b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def is_local(host: str) -> bool:
    """Whether nobody else reaches a server that listens on *host*."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
