"""Containers of the docker or podman engine: one a program's run, with what it needs and nothing else, and none left behind."""

import logging
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from axbake.errors import AxbakeError

logger = logging.getLogger(__name__)
INSIDE = "/work"  # where a job's directory is in its container
LABEL = "axbake"
TRIES, SECONDS = 10, 60  # to remove a container; for a short answer of the engine


class EngineError(AxbakeError):
    """The container engine cannot do what is needed."""


# What engines say, and what it means to the user. Docker's and podman's own words; their exit codes do not tell.
REFUSALS = (
    (
        r"permission denied.*(socket|sock|dial)",
        "{engine}: no permission for the daemon's socket. Add your user to the group `docker` and log in again, or "
        "set toolchain: podman, which needs no daemon.",
    ),
    (
        r"Cannot connect to the Docker daemon|docker daemon is not running|connection refused|no such host",
        "{engine}: the daemon does not answer. Start it (`sudo systemctl start docker`), or correct DOCKER_HOST if it "
        "is set.",
    ),
    (
        r"No such image|image not known|unable to find image|no such object",
        "{engine}: no image {image} on this machine. Load AXERA's archive (`{engine} load -i "
        "ax_pulsar2_VERSION.tar.gz`) and check its name with `{engine} image ls`. If the name differs, set "
        "container/image in config/config.yaml.",
    ),
)


class Engine:
    """The command `docker` or `podman`, and one image."""

    def __init__(self, name: str, image: str) -> None:
        self.name = name
        self.image = image

    def ask(self, *arguments: str) -> str:
        """What the engine answers.

        Raises:
            EngineError: it is not there, or refuses; what to do.
        """
        done = self._call(*arguments)
        if done.returncode:
            raise EngineError(self._refusal(done.stderr))
        return done.stdout.strip()

    def _call(self, *arguments: str) -> subprocess.CompletedProcess:
        try:
            return subprocess.run(
                [self.name, *arguments],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=SECONDS,
                start_new_session=True,  # a Ctrl-C must not end what clears up
            )
        except FileNotFoundError as error:
            raise EngineError(
                f"toolchain {self.name}: no program `{self.name}` on the PATH. Install it, or set toolchain: native where"
                " pulsar2 itself is on the PATH, or toolchain: emulator."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{self.name}: no answer to `{self.name} {arguments[0]}` in {SECONDS} s. Check its daemon."
            ) from error

    def _refusal(self, said: str) -> str:
        for pattern, meaning in REFUSALS:
            if re.search(pattern, said, re.IGNORECASE | re.DOTALL):
                return meaning.format(engine=self.name, image=self.image)
        return f"{self.name}: {said.strip() or 'failed without a message'}"

    def image_id(self) -> str:
        """Digest of the image; errors as of `ask`."""
        return self.ask("image", "inspect", "--format", "{{.Id}}", self.image).removeprefix("sha256:")

    def is_rootless(self) -> bool:
        """Whether the user is root inside a container, and what root writes there is the user's outside."""
        what = "{{.Host.Security.Rootless}}" if self.name == "podman" else "{{.SecurityOptions}}"
        return bool(re.search("rootless|true", self.ask("info", "--format", what)))

    def run_command(
        self,
        program: Sequence[str],
        *,
        container: str,
        network: str,
        place: Path | None = None,
        writable: str = "",
        user: str = "",
        owner: tuple[int, int] | None = None,
        memory_mb: int = 0,
        options: Sequence[str] = (),
    ) -> list[str]:
        """Command line that runs *program* in a new container, which is removed when it ends.

        Args:
            container: its name.
            place: directory that the program runs in and may read.
            writable: directory in *place* that it may write to.
            user: user and group inside, `1000:1000`; empty: the image's own, which is root.
            owner: to whom root's files in *writable* are given at the end.
            memory_mb: limit of its memory in MiB; 0: none.
            options: more options of `docker run`, before the image.
        """
        command = [self.name, "run", "--rm", "--init", "--pull", "never", "--name", container, "--label", LABEL]
        command += ["--network", network]
        if place:
            command += ["--workdir", INSIDE, "--mount", f"type=bind,source={place},target={INSIDE},readonly"]
        if writable:
            command += ["--mount", f"type=bind,source={place}/{writable},target={INSIDE}/{writable}"]
        if user:
            command += ["--user", user, "--env", "HOME=/tmp"]  # one who is not in the image's passwd has no home there
        if memory_mb:
            command += ["--memory", f"{memory_mb}m"]
        if owner and writable:
            give = f'"$@"; status=$?; chown -R {owner[0]}:{owner[1]} {writable}; exit $status'
            program = ["sh", "-c", give, "sh", *program]
        return [*command, *options, self.image, *program]

    def remove(self, container: str) -> None:
        """End and remove *container*, if there is one.

        One that is just being made is not there at the first look, though its client was ended: so it is looked for until
        the engine says twice that there is none.
        """
        missing = 0
        for _ in range(TRIES):
            found = self._call("ps", "--all", "--quiet", "--filter", f"name=^/?{container}$").stdout.split()
            missing = 0 if found else missing + 1
            if missing == 2:
                return
            if found:
                self._call("rm", "--force", container)
        logger.warning("%s: container %s is still there; see `%s ps --all`", self.name, container, self.name)

    def remove_orphans(self) -> None:
        """Remove the containers of this machine's processes that are no more: those that were killed with their clients."""
        names = self.ask("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()
        for name in names:
            if is_orphan(name):
                logger.info("removing container %s, whose job was killed", name)
                self.remove(name)


def container_name() -> str:
    """A name for this process' container, from which others see whether the process is still there."""
    return f"axbake-{_host()}-{_boot()}-{os.getpid()}-{_started(os.getpid())}"


def is_orphan(name: str) -> bool:
    """Whether *name* is that of a container whose process, on this machine, is no more."""
    known = re.fullmatch(rf"axbake-{re.escape(_host())}-(\w+)-(\d+)-(\d+)", name)
    if not known or not _boot():  # another machine's, or one without /proc, where nothing is known
        return False
    boot, process, started = known.groups()
    return boot != _boot() or _started(int(process)) != int(started)


def _host() -> str:
    return re.sub(r"[^a-zA-Z0-9]", "_", socket.gethostname())


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").split("-")[0]
    except OSError:
        return ""


def _started(process: int) -> int:
    """When *process* started, in clock ticks since boot; 0 if there is none."""
    try:
        # After the name in brackets, which may hold blanks; field 22 of proc(5).
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:
        return 0
