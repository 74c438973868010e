"""The connection to a site, and what sockets' time limits do not see: where it leads, how slow it is, whether it ever ends.

A socket's time limit begins anew with each byte, so a server that sends one now and then holds a client for ever; and
`http.client` reads as many interim answers and trailers as come. Here every byte that comes is counted before it is looked at.
"""

import contextlib
import http.client
import io
import ipaddress
import re
import socket
import time
from typing import Any

import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from axbake.fetch.errors import Interrupted

SPELL = 20.0  # s, in each of which a site must send something worth it
SLOWEST = 1000  # bytes a second; at that a small checkpoint takes weeks
OVERHEAD = 1_000_000  # bytes of headers, interim answers and trailers around what is asked for
FRAMING = 8  # bytes for each byte of content at most: a chunk of one byte takes six
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


class LeadsInside(Exception):
    """A redirect ends at a machine that the site itself could not reach. Never leaves this package."""


def is_inside(address: str) -> bool:
    """Whether *address* is not one of the public internet: this machine, its network, a private network, link-local."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_inside(str(inner))
    return not found.is_global or found.is_multicast


def names_inside(host: str) -> bool:
    """Whether *host* says by itself, without being looked up, that it is inside: an address in any notation, or localhost."""
    if host.rstrip(".").rpartition(".")[2] == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return is_inside(host)
    if re.fullmatch(r"[0-9a-fx.]+", host):  # 127.1, 2130706433 and 0x7f.1 are addresses for connect()
        with contextlib.suppress(OSError):
            return is_inside(socket.inet_ntoa(socket.inet_aton(host)))
    return False


class Way:
    """Where a request and its redirects lead: once it began in public, it may not end inside.

    Looked at where the connection is made, so what a name was looked up as before does not matter.
    """

    def __init__(self) -> None:
        self.inside: bool | None = None  # whether the address that the user gave is; None until that is known

    def look(self, peer: str) -> None:
        """Raise LeadsInside if *peer*, which a connection was made to, is inside and the first one was not."""
        found = is_inside(peer)
        if self.inside is None:
            self.inside = found
        elif found and not self.inside:
            raise LeadsInside(peer)


class _Counted(io.RawIOBase):
    """Bytes of a connection as they come, no slower than `SLOWEST` and no more than was allowed."""

    def __init__(self, raw: io.RawIOBase):
        self._raw, self._left = raw, OVERHEAD
        self._began, self._bytes = 0.0, 0  # of the spell; it begins with the first byte, since a site may have to think

    def allow(self, count: int) -> None:
        """Let *count* bytes of content come, with what is around them."""
        self._left = OVERHEAD + FRAMING * max(count, 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        now = time.monotonic()
        if self._began and now - self._began > SPELL:
            if self._bytes < SLOWEST * SPELL:
                raise Interrupted(f"fewer than {SLOWEST * SPELL / 1000:.0f} kB came in {SPELL:.0f} s", slow=True)
            self._began, self._bytes = now, 0
        count = self._raw.readinto(buffer)
        self._began = self._began or time.monotonic()
        self._bytes += count or 0
        self._left -= count or 0
        if self._left < 0:
            raise Interrupted("it sends endless headers or trailers", slow=True)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose bytes are counted."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any):
        super().__init__(sock, *arguments, **named)
        self._counted = _Counted(self.fp.detach())
        self.fp = io.BufferedReader(self._counted)

    def read(self, amt: int | None = None) -> bytes:
        self._counted.allow(amt or 0)
        return super().read(amt)

    def read1(self, n: int = -1) -> bytes:
        self._counted.allow(n)
        return super().read1(n)


class Line(requests.adapters.HTTPAdapter):
    """Connections of `requests` that lead *way*."""

    def __init__(self, way: Way):
        class Looked:
            """What both kinds of connection have in common."""

            def connect(self) -> None:
                super().connect()  # type: ignore[misc]
                self.look()

            def request(self, *arguments: Any, **named: Any) -> None:
                self.look()  # it may be from an earlier request
                super().request(*arguments, **named)  # type: ignore[misc]

            def look(self: Any) -> None:
                if self.sock is not None and self.proxy is None:  # of a proxy's peers nothing is known here
                    way.look(self.sock.getpeername()[0])

        class Plain(Looked, HTTPConnection):
            response_class = _Answer

        class Encrypted(Looked, HTTPSConnection):
            response_class = _Answer

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class EncryptedPool(HTTPSConnectionPool):
            ConnectionCls = Encrypted

        self._pools = {"http": PlainPool, "https": EncryptedPool}
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **named)
        if not proxy.lower().startswith("socks"):  # those have pools of their own
            manager.pool_classes_by_scheme = self._pools
        return manager
