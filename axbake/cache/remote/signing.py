"""Who made an entry: SSH signatures, as git has them for commits, made and checked by OpenSSH's `ssh-keygen -Y`.

The key is one that the user has anyway, or a hardware key, and may be in ssh-agent. Whose entries a project takes stands in a
file of OpenSSH's format `allowed_signers` (ssh-keygen(1)): a name, and a public key, a line each.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from axbake.cache.remote.errors import Distrusted, SigningError
from axbake.printable import one_line

NAMESPACE = "axbake-cache"  # a signature for something else, such as a commit, is none for an entry
LONGEST = 16 << 10  # bytes of a signature
SECONDS = 60


def sign(content: bytes, key: Path) -> str:
    """The signature of *content*.

    Args:
        key: a private SSH key, or the public one of a key in ssh-agent.

    Raises:
        SigningError
    """
    if not key.expanduser().is_file():
        raise SigningError(f"AXBAKE_SIGNING_KEY: {key}: no such file; wanted an SSH key, as ssh-keygen makes them.")
    made = _run("sign", "-f", str(key.expanduser()), "-n", NAMESPACE, given=content)
    if made.returncode or not made.stdout:
        raise SigningError(
            f"AXBAKE_SIGNING_KEY: {key}: {_words(made)}. If the key has a passphrase, add it to ssh-agent (ssh-add)."
        )
    return made.stdout.decode("ascii", "replace")


def signer(content: bytes, signature: str, signers: Path) -> str:
    """Who of *signers* has signed *content*.

    Args:
        signers: a file of OpenSSH's format `allowed_signers`.

    Raises:
        Distrusted: nobody of them.
        SigningError: there is no such file, or no ssh-keygen.
    """
    if not signers.is_file():
        raise SigningError(
            f"cache_signers: {signers}: no such file; wanted one of OpenSSH's format allowed_signers: a name and a public key, a"
            " line each."
        )
    if not signature:
        raise Distrusted("not signed")
    if len(signature) > LONGEST:
        raise Distrusted("a signature of more than 16 kB")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "signature"
        file.write_text(signature, encoding="utf-8", errors="replace")
        found = _run("find-principals", "-s", str(file), "-f", str(signers), given=b"")
        names = found.stdout.decode("utf-8", "replace").splitlines()
        if found.returncode or not names:
            raise Distrusted(f"signed by nobody in {signers}")
        how = ("-f", str(signers), "-I", names[0], "-n", NAMESPACE, "-s", str(file))
        if _run("verify", *how, given=content).returncode:
            raise Distrusted(f"the signature is not {one_line(names[0], 80)}'s of this text")
    return one_line(names[0], 80)


def _run(action: str, *options: str, given: bytes) -> subprocess.CompletedProcess:
    program = shutil.which("ssh-keygen")
    if not program:
        raise SigningError("ssh-keygen: not found; install OpenSSH's client, 8.2 or newer (Debian: openssh-client).")
    try:
        # A new session has no terminal, so nobody is asked for a passphrase while a job runs.
        return subprocess.run(
            [program, "-Y", action, *options],
            input=given,
            capture_output=True,
            timeout=SECONDS,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SigningError(f"ssh-keygen -Y {action}: no answer in {SECONDS} s") from None


def _words(made: subprocess.CompletedProcess) -> str:
    return one_line(made.stderr.decode("utf-8", "replace").strip() or f"exit code {made.returncode}", 200)
