"""A server that breaks HTTP itself: it drips, never ends, or sends what is not HTTP. Each kind is a generator of bytes."""

import contextlib
import functools
import gzip
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = b"x" * 65536
DRIP = 0.05  # s between two bytes
Answer = Callable[[], Iterator[bytes]]


def _dripped(text: bytes, then: Iterator[bytes]) -> Iterator[bytes]:
    for number in range(len(text)):
        time.sleep(DRIP)
        yield text[number : number + 1]
    for piece in then:
        time.sleep(DRIP)
        yield piece


@functools.cache
def _packed() -> bytes:
    return gzip.compress(b" " * 200_000_000, 1)


def _bomb() -> Iterator[bytes]:
    """200 MB of spaces in 900 KB, as an encoding that nobody asked for."""
    packed = _packed()
    yield OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    yield packed


#: Name -> what is sent; the connection is closed after it.
ANSWERS: dict[str, Answer] = {
    "drips its body": lambda: itertools.chain(
        [OK + b"Content-Length: 4000000\r\n\r\n"], _dripped(b"", itertools.repeat(b"x"))
    ),
    "drips a body of unknown length": lambda: itertools.chain([OK + b"\r\n"], _dripped(b"", itertools.repeat(b"x"))),
    "drips its header": lambda: _dripped(OK, itertools.repeat(b"X-A: b\r\n")),
    "drips its status": lambda: _dripped(b"HTTP/1.1 2", itertools.repeat(b"0")),
    "drips chunks": lambda: itertools.chain([CHUNKED], _dripped(b"", itertools.repeat(b"1\r\nx\r\n"))),
    "drips an error": lambda: itertools.chain(
        [b"HTTP/1.1 404 Not Found\r\n\r\n"], _dripped(b"", itertools.repeat(b" "))
    ),
    "drips a redirect's body": lambda: itertools.chain(
        [b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"], _dripped(b"", itertools.repeat(b" "))
    ),
    "never ends its body": lambda: itertools.chain([OK + b"\r\n"], itertools.repeat(PIECE)),
    "never ends a redirect's body": lambda: itertools.chain(
        [b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"], itertools.repeat(PIECE)
    ),
    "never ends its chunks": lambda: itertools.chain([CHUNKED], itertools.repeat(b"10000\r\n" + PIECE + b"\r\n")),
    "never ends a chunk's length": lambda: itertools.chain([CHUNKED + b"1;"], itertools.repeat(PIECE)),
    "never ends its trailers": lambda: itertools.chain([CHUNKED + b"0\r\n"], itertools.repeat(b"X-A: b\r\n" * 999)),
    "never ends its status": lambda: itertools.chain([b"HTTP/1.1 200 "], itertools.repeat(PIECE)),
    "never ends its header": lambda: itertools.chain([OK], itertools.repeat(b"X-A: b\r\n" * 999)),
    "never ends one header": lambda: itertools.chain([OK + b"X-A: "], itertools.repeat(PIECE)),
    "never ends interim answers": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "never ends JSON": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n["], itertools.repeat(b"[]," * 20000)
    ),
    "packs a bomb": _bomb,
    "says nothing": lambda: _dripped(b"", iter([b""] * 200)),
    "closes at once": lambda: iter([]),
    "speaks another protocol": lambda: iter([b"SSH-2.0-OpenSSH_9.2\r\n"]),
    "sends noise": lambda: iter([bytes(range(256)) * 64]),
    "has an absurd length": lambda: iter([OK + b"Content-Length: " + b"9" * 6000 + b"\r\n\r\n", PIECE]),
    "has a length that is not a number": lambda: iter([OK + b"Content-Length: \xb2\r\n\r\n", PIECE]),
    "has two lengths": lambda: iter([OK + b"Content-Length: 5\r\nContent-Length: 70000\r\n\r\n", PIECE]),
    "ends in the middle": lambda: iter([OK + b"Content-Length: 70000\r\n\r\n", PIECE]),
    "has a header with commands to the terminal": lambda: iter(
        [b"HTTP/1.1 404 \x1b]0;owned\x07\r\nX-A\x1b[2J: \x1b[31m\r\n\r\n\x1b[31m"]
    ),
}


@contextlib.contextmanager
def raw_server(answer: Answer, address: str = "127.0.0.1") -> Iterator[str]:
    """Address of a server that gives *answer* to whatever it is asked, while this lasts."""
    listener = socket.create_server((address, 0))
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for piece in answer():
                if over.is_set():
                    return
                connection.sendall(piece)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://{address}:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.close()
