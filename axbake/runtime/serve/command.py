"""The program `serve.py` of a bundle."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bundle import read_bundle
from ..errors import BundleError
from ..reading import shown
from ..session import RUNTIMES
from .guards import is_local

logger = logging.getLogger(__name__)
PORT = 7860  # AUTOMATIC1111's, which its clients ask at first
TOKEN = "AXBAKE_TOKEN"  # environment
LEAST_TOKEN = 16  # characters
MOST_CONNECTIONS = 128
IDLE = 15  # seconds that a connection may be open without a whole request's head
UNIT = """\
# Made by `serve.py --unit`. Save it as ~/.config/systemd/user/axbake.service, then:
#   systemctl --user daemon-reload && systemctl --user enable --now axbake
#   loginctl enable-linger   # so that it runs without a login
[Unit]
Description=axbake: pictures of {name}
StartLimitIntervalSec=0

[Service]
ExecStart={command}
EnvironmentFile=-%h/.config/axbake.env
Restart=always
RestartSec=2
TimeoutStopSec=30
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def run(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Serve the bundle in *folder*, and others that the options name; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = _parse(arguments)
    try:
        bundles = [read_bundle(one) for one in [folder, *given.bundle]]
        if given.unit:
            print(_unit(bundles[0].manifest["model"], folder, arguments), end="")
            return 0
        token = _token(given)
        _serve(bundles, given, token)
    except ImportError as error:
        logger.error("%s: %s. Install the packages of requirements.txt beside serve.py.", type(error).__name__, error)
        return 1
    except (BundleError, OSError) as error:
        logger.error("%s: %s", type(error).__name__, shown(error, 4000))
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "serve.py",
        description="Serve the models of this bundle: a page, OpenAI's and AUTOMATIC1111's interfaces.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", type=Path, action="append", default=[], help="folder of a further bundle; may be repeated")
    add("--host", default="127.0.0.1", help=f"address to listen on; another needs a token in {TOKEN} or --token-file")
    add("--port", type=int, default=PORT, help="port to listen on; 0 means a free one")
    add("--token-file", type=Path, help="file that has the token, which only its owner may read")
    add("--runtime", choices=RUNTIMES, default="auto", help="program that runs the models")
    add("--devices", default="0", help="numbers of the cards, separated by commas")
    add("--threads", type=int, default=0, help="threads of onnxruntime; 0 means one per core")
    add("--memory", type=int, help="MiB of each card that models may take; by default what it has")
    add("--queue", type=int, default=16, help="number of drawings that may wait")
    add("--preview-every", type=int, default=1, help="steps from one preview to the next; 0 means none")
    add("--unit", action="store_true", help="print a systemd unit that starts this server with these options, and end")
    given = parser.parse_args(arguments)
    devices = given.devices.split(",")
    if not all(one.isdecimal() for one in devices) or len(set(devices)) < len(devices):
        parser.error("wanted --devices as different numbers, such as 0 or 0,1")
    given.devices = [int(one) for one in devices]
    if not 0 <= given.port < 1 << 16 or given.queue < 1 or given.preview_every < 0 or (given.memory or 1) < 1:
        parser.error("wanted a --port below 65536, --queue and --memory of 1 or more, and no negative --preview-every")
    return given


def _token(given: argparse.Namespace) -> str:
    """The token; empty if there is none, and then only this machine may ask.

    Raises:
        BundleError: there is none though others may ask, it is too short, or others can read its file.
    """
    token, where = os.environ.pop(TOKEN, ""), TOKEN
    if given.token_file:
        mode, where = given.token_file.stat().st_mode, str(given.token_file)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BundleError(
                f"{where}: others can read it ({stat.filemode(mode)}). Run: chmod 600 {shlex.quote(where)}"
            )
        token = given.token_file.read_text(encoding="utf-8").strip()
    if not token:
        if not is_local(given.host):
            raise BundleError(
                f"--host {given.host}: everyone who reaches this machine could draw. Set {TOKEN} in the environment, or "
                "--token-file, to a token such as `python3 -c 'import secrets; print(secrets.token_urlsafe())'` makes."
            )
        return ""
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise BundleError(
            f"{where}: wanted a token of at least {LEAST_TOKEN} printable ASCII characters without spaces."
        )
    return token


def _unit(name: str, folder: Path, arguments: Sequence[str] | None) -> str:
    """A systemd unit that runs this server as it was called."""
    options = [one for one in (sys.argv[1:] if arguments is None else arguments) if one != "--unit"]
    paths = {"--bundle", "--token-file"}
    whole = [
        str(Path(one).resolve()) if number and options[number - 1] in paths else one
        for number, one in enumerate(options)
    ]
    command = [sys.executable, str(folder / "serve.py"), *whole]
    return UNIT.format(name=_escaped(name), command=" ".join(f'"{_escaped(one)}"' for one in command))


def _escaped(text: str) -> str:
    """*text* as systemd reads it back between quotes: no specifier, no variable, no end of a line."""
    return "".join(
        {"%": "%%", "$": "$$", "\\": "\\\\", '"': '\\"'}.get(letter, letter) for letter in text if letter.isprintable()
    )


def _serve(bundles: list[Any], given: argparse.Namespace, token: str) -> None:
    import uvicorn  # here, so that a bundle without the server's packages can say so
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from .app import application
    from .engine import Engine

    class Patient(H11Protocol):
        """Closes a connection that does not send a request's head in time."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._impatience = self.loop.call_later(IDLE, self._close_idle)

        def _close_idle(self) -> None:
            if self.cycle is None:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._impatience.cancel()
            super().connection_lost(exc)

    engine = Engine(
        bundles,
        devices=given.devices,
        runtime=given.runtime,
        threads=given.threads,
        most_waiting=given.queue,
        memory=None if given.memory is None else given.memory << 20,
        preview_every=given.preview_every,
    )
    config = uvicorn.Config(
        application(engine, token=token),
        host=given.host,
        port=given.port,
        http=Patient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=5,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(config)

    async def serve() -> None:
        socket = config.bind_socket()
        host = f"[{given.host}]" if ":" in given.host else given.host
        logger.info("Listening on http://%s:%d", host, socket.getsockname()[1])
        engine.start()
        await server.serve(sockets=[socket])

    if engine.names.emulated:
        logger.info("Models are EMULATED: they run on this host, and the times say nothing about a board.")
    asyncio.run(serve())
    engine.close()
