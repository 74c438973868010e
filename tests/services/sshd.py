"""An sshd on the loopback, with its own host key, user key and known_hosts; nothing in /etc/ssh or ~/.ssh is read or written."""

import fcntl
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

SSHD = Path("/usr/sbin/sshd")
ALIAS = "played-board"  # what the tests' ssh calls it
NO_SERVICE = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """Debian packages whose programs are not on this machine."""
    programs = {"openssh-server": SSHD.exists(), "openssh-client": shutil.which("ssh"), "rsync": shutil.which("rsync")}
    return [package for package, there in programs.items() if not there]


def install() -> None:
    """Install what is missing, as root on Debian; without starting a server on port 22. Other machines are left alone."""
    if not missing() or os.getuid() or not shutil.which("apt-get"):
        return
    with Path("/tmp/axbake-tests-install.lock").open(
        "w", encoding="utf-8"
    ) as lock:  # several test processes come here at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (packages := missing()):
            return
        made = not NO_SERVICE.exists()
        if made:
            NO_SERVICE.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
            NO_SERVICE.chmod(0o755)
        try:
            command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            if subprocess.run(command, env=environment, capture_output=True).returncode:
                subprocess.run(["apt-get", "update"], capture_output=True)
                subprocess.run(command, env=environment, capture_output=True)
        finally:
            if made:
                NO_SERVICE.unlink()


class Sshd:
    """A running sshd, and programs `ssh` and so `rsync` that reach it as `ALIAS`.

    Attributes:
        bin: directory of a `ssh` that reads the tests' config instead of the user's; to be put on the PATH.
        config: that config; tests may append to it.
        known_hosts: what that ssh knows.
    """

    def __init__(self, directory: Path, *, environment: dict[str, str]) -> None:
        """Start it in *directory*; sessions have *environment*."""
        self.directory, self.bin = directory, directory / "bin"
        self.config, self.known_hosts = directory / "ssh_config", directory / "known_hosts"
        self.port = free_port()
        self.bin.mkdir(parents=True)
        directory.chmod(0o700)
        for name in ("host_key", "other_host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", directory / name], check=True
            )
        shutil.copy(directory / "user_key.pub", directory / "authorized_keys")
        self.show_host_key("host_key")
        self._write_config()
        ssh = self.bin / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {shlex.quote(str(self.config))} "$@"\n')
        ssh.chmod(0o755)
        self._process = self._start(environment)

    def reset(self) -> None:
        """Let the tests' ssh reach it as at first."""
        self.show_host_key("host_key")
        self._write_config()

    def show_host_key(self, name: str) -> None:
        """Let the tests' ssh believe that the server's key is *name*."""
        self.known_hosts.write_text(f"{ALIAS} {' '.join((self.directory / f'{name}.pub').read_text().split()[:2])}\n")

    def _write_config(self) -> None:
        self.config.write_text(
            f"""Host {ALIAS}
    HostName 127.0.0.1
    Port {self.port}
    HostKeyAlias {ALIAS}
    IdentityFile {self.directory}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {self.known_hosts}
    GlobalKnownHostsFile /dev/null
"""
        )

    def _start(self, environment: dict[str, str]) -> subprocess.Popen:
        # Without PAM sshd refuses an account whose password field begins with «!».
        locked = (
            os.getuid() == 0 and "!" in subprocess.getoutput(f"getent shadow {getpass.getuser()}").split(":")[1][:1]
        )
        variables = " ".join(f'"{name}={value}"' for name, value in environment.items())
        config = self.directory / "sshd_config"
        config.write_text(
            f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.directory}/host_key
PidFile none
AuthorizedKeysFile {self.directory}/authorized_keys
AllowUsers {getpass.getuser()}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {"yes" if locked else "no"}
StrictModes no
UseDNS no
MaxStartups 50
SetEnv {variables}
"""
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.directory / "sshd.log").open("w") as log:
            process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", config], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        for _ in range(100):
            done = subprocess.run([self.bin / "ssh", ALIAS, "true"], capture_output=True, text=True)
            if done.returncode == 0:
                return process
            time.sleep(0.1)
        raise RuntimeError(f"no login: {done.stderr}\n{(self.directory / 'sshd.log').read_text()}")

    def stop(self) -> None:
        """End the server; sessions that are open go on."""
        self._process.terminate()
        self._process.wait()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cut_after(limit: int, port: int) -> str:
    """A line for ssh's config: a connection to *port* that breaks once *limit* bytes were sent to it."""
    return f"    ProxyCommand {sys.executable} {Path(__file__).with_name('cutting_proxy.py')} {port} {limit}\n"
