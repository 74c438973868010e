"""Starts `pulsar2` as config says: the emulator, the program on the PATH, or the one in a container's image."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from axbake.cache.files import Name, share
from axbake.digest import write_atomically
from axbake.errors import AxbakeError
from axbake.root import PACKAGE
from axbake.toolchain.engines import Engine, container_name
from axbake.toolchain.process import listen

logger = logging.getLogger(__name__)
PROGRAMS = {"emulator": [sys.executable, "-m", "axbake.emulator"], "native": ["pulsar2"]}
LLM_BUILD = "llm_build"  # command that is a program of its own of the emulator
ENGINES = ("docker", "podman")
VERSIONS = Path(".axbake/pulsar2")  # image id -> what `pulsar2 version` says in it; safe to delete
PATIENCE = 300  # seconds that `pulsar2 version` may take
WRITABLE = "out"  # the one directory that Pulsar2 writes to


class WrongToolchain(AxbakeError):
    """The compiler is missing, or has a different version than the config says."""


@dataclass(frozen=True)
class Launch:
    """How `pulsar2` is started. Nothing of it decides what it makes, so it is in no build's key."""

    toolchain: str  # emulator, native, docker, podman
    minutes: float  # that a run of it may take; 0: no limit
    version: str = ""  # that it must be; the emulator has none
    # Of docker and podman alone:
    image: str = ""  # empty: pulsar2:{version}
    network: str = "none"
    user: str = "root"  # as the vendor's documentation has it; or self
    options: Sequence[str] = ()  # of `docker run`

    @property
    def engine(self) -> Engine | None:
        """The container engine, where there is one."""
        if self.toolchain not in ENGINES:
            return None
        return Engine(self.toolchain, self.image or f"pulsar2:{self.version}")

    def call(self, arguments: Sequence[str], place: Path, hear: Callable[[str], None]) -> int:
        """Exit status of `pulsar2` with *arguments*, run in *place*, where it may write to `out` alone.

        Raises:
            EngineError: the container engine cannot run it.
            TimeLimit: it took longer than it may.
        """
        (place / WRITABLE).mkdir(exist_ok=True)
        engine, environment = self.engine, _environment()
        if engine is None:
            command = [*PROGRAMS[self.toolchain], *arguments]
            if self.toolchain == "emulator" and arguments[0] == LLM_BUILD:
                *python, package = PROGRAMS["emulator"]
                command = [*python, f"{package}.{LLM_BUILD}", *arguments[1:]]
            logger.info("running: %s", " ".join(command))
            return listen(command, place, hear, environment=environment, minutes=self.minutes, end=lambda: None)
        engine.remove_orphans()
        container, me = container_name(), (os.getuid(), os.getgid())
        rootless = engine.is_rootless()
        give = self.user == "root" and not rootless and me[0] != 0
        command = engine.run_command(
            ["pulsar2", *arguments],
            container=container,
            network=self.network,
            place=place.resolve(),
            writable=WRITABLE,
            user=f"{me[0]}:{me[1]}" if self.user == "self" and not rootless else "",
            owner=me if give else None,
            memory_mb=_granted_memory(),
            options=self.options,
        )
        logger.info("running: %s", " ".join(command))
        try:
            return listen(
                command,
                place,
                hear,
                environment=environment,
                minutes=self.minutes,
                end=lambda: engine.remove(container),
            )
        finally:
            if give:
                _take_back(engine, place.resolve(), container, me)

    def check(self) -> str:
        """What `pulsar2 version` says.

        Raises:
            WrongToolchain: no such program, or of another version than config says.
            EngineError: no engine, no daemon, no permission or no image.
        """
        said = self._said_version()
        if self.toolchain != "emulator" and not says_version(said, self.version):
            where = f"image {self.engine.image}" if self.engine else "`pulsar2 version`"
            raise WrongToolchain(
                f"toolchain {self.toolchain}: {where} reports version {said!r}, but config/config.yaml says {self.version}."
                " Correct pulsar2_version there; it is part of every model's identity."
            )
        return said

    def _said_version(self) -> str:
        engine = self.engine
        if engine is None:
            return self._answer([*PROGRAMS[self.toolchain], "version"], "Install Pulsar2 and put it on the PATH")
        note = VERSIONS / f"{engine.image_id()}.txt"
        with contextlib.suppress(FileNotFoundError):
            return note.read_text(encoding="utf-8")
        engine.remove_orphans()
        container = container_name()
        command = engine.run_command(
            ["pulsar2", "version"], container=container, network=self.network, options=self.options
        )
        try:
            said = self._answer(command, f"Correct container/image, now {engine.image}, and container/options")
        finally:
            engine.remove(container)
        write_atomically(note, said)
        return said

    def _answer(self, command: list[str], advice: str) -> str:
        how = {"capture_output": True, "text": True, "check": True, "timeout": PATIENCE, "env": _environment()}
        try:
            return subprocess.run(command, **how).stdout.strip()  # type: ignore[call-overload]
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip()
            raise WrongToolchain(
                f"toolchain {self.toolchain}: `{' '.join(command)}` does not run ({said}). {advice}, or set toolchain:"
                " emulator in config/config.yaml."
            ) from error


def own_copy(source: Path, place: Path) -> None:
    """*source*'s bytes at *place*, as a file of its own; where the file system can, of the same blocks.

    No link of either kind: onnx 1.21 and newer refuse both for external tensors (onnx/onnx#7686).
    """
    with source.open("rb") as opened:
        share(opened.fileno(), Name(place), source=None)


def says_version(said: str, version: str) -> bool:
    """Whether `pulsar2 version`'s words *said* name *version*: 4.2 is in `version: 4.2-patch1`, not in `14.2` nor `4.20`."""
    return bool(re.search(rf"(?<![\d.]){re.escape(version)}(?![\d])", said))


def _environment() -> dict[str, str]:
    """The environment in which the emulator finds this package, wherever the work directory is."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    }


def _granted_memory() -> int:
    """Memory in MiB that Slurm granted to this job, 0 without Slurm: a container is the daemon's child, so Slurm's own limit
    does not reach it."""
    granted = os.environ.get("SLURM_MEM_PER_NODE", "")
    return int(granted) if granted.isdigit() else 0


def _take_back(engine: Engine, place: Path, container: str, me: tuple[int, int]) -> None:
    """Give what root wrote in a container that was ended before it did so itself to the user *me*, who could not delete it."""
    if all(path.lstat().st_uid == me[0] for path in (place / WRITABLE).rglob("*")):
        return
    command = engine.run_command(
        ["true"], container=container, network="none", place=place, writable=WRITABLE, owner=me
    )
    subprocess.run(command, check=False, start_new_session=True)
