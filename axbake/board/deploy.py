"""Copying a bundle to a board: only what changed, aside, compared by SHA-256, and put into its place with the manifest last."""

import json
import logging
import re
import secrets
import shlex
import subprocess
import tempfile
from pathlib import Path

from axbake.board.bundle import Bundle, read_bundle, refuse_emulated
from axbake.board.connection import Board, LastWords, run_script, ssh_error
from axbake.board.errors import ConnectionLost, FailedOnBoard, MissingProgram, NoSpace, NotEnoughCmm
from axbake.board.inspection import Inspection, card_of, check, inspect_board
from axbake.printable import printable
from axbake.runtime.progress import progress

logger = logging.getLogger(__name__)
SPARE = 64 * 2**20  # bytes that stay free on the board's disk
FILE_ERROR = 11  # of rsync: «error in file I/O»
LOST = {
    10,
    12,
    30,
    35,
    255,
}  # rsync's codes of a connection that ended: socket, protocol stream, time limits; and ssh's own


def deploy_bundle(
    *,
    manifest: Path,
    host: str,
    user: str,
    port: int,
    directory: str,
    kind: str,
    device: int,
    deployment: Path,
) -> None:
    """Copy the bundle of *manifest* to `{directory}/{model}` on the board.

    Files that came over, whole or in part, stay there when the connection is lost, and the next run goes on from them. Until all
    are there and compared, the bundle's directory is as it was; while it changes it has no manifest. Files in it that no
    bundle brought, such as pictures, are left alone.

    Args:
        manifest: `bundle/axbake/manifest.json`; its files lie beside it.
        host, user, port, directory, kind, device: as in config's entry `board`.
        deployment: JSON to write: what lies where on the board.

    Raises:
        BoardError: of the kind that says what is wrong; nothing is then where a program would take it for a bundle.
    """
    bundle = read_bundle(manifest)
    refuse_emulated(bundle)
    board = Board(host, user, port, directory, kind, device)
    found = inspect_board(board, bundle.model)
    check_cmm(board, bundle, found)
    sent = bytes_to_send(board, bundle, found)
    if sent or not is_whole(board, bundle, found):
        check_space(board, sent, found)
        logger.info("copying %.1f of %.1f MB to %s", sent / 1e6, _all_bytes(bundle) / 1e6, board.name)
        transfer(board, bundle, found)
        place(board, bundle, found)
    else:
        logger.info("%s already has the bundle", board.name)
    content = {
        "directory": f"{directory}/{bundle.model}",
        "bytes": _all_bytes(bundle),
        "files": bundle.files,
    }
    deployment.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _all_bytes(bundle: Bundle) -> int:
    return sum(map(bundle.bytes_of, bundle.files))


def is_whole(board: Board, bundle: Bundle, found: Inspection) -> bool:
    """Whether all files of *bundle* are in its directory on the board."""
    place = f"{board.directory}/{bundle.model}"
    return all(found.files.get(f"{place}/{name}") == sha256 for name, sha256 in bundle.files.items())


def bytes_to_send(board: Board, bundle: Bundle, found: Inspection) -> int:
    """Bytes of the files that the board has neither in the bundle's directory nor from a transfer that was begun."""
    there = [f"{board.directory}/{bundle.model}", f"{board.directory}/.incoming/{bundle.model}"]
    return sum(
        bundle.bytes_of(name)
        for name, sha256 in bundle.files.items()
        if all(found.files.get(f"{place}/{name}") != sha256 for place in there)
    )


def check_space(board: Board, needed: int, found: Inspection) -> None:
    """Raise NoSpace unless *needed* bytes fit on the board's disk."""
    if found.free_bytes < needed + SPARE:
        raise NoSpace(
            f"{board.name}: {found.free_bytes / 1e6:,.0f} MB free where {board.directory} is, wanted "
            f"{needed / 1e6:,.0f} for this bundle and {SPARE / 1e6:,.0f} to spare. Free some space there, or set "
            "another directory (board/directory in config)."
        )


def check_cmm(board: Board, bundle: Bundle, found: Inspection) -> None:
    """Raise NotEnoughCmm if the card, with nothing else on it, has less memory than the models' files alone take."""
    card = card_of(board, found.state)
    needed = bundle.drawing_bytes / 2**20  # MiB
    if card.cmm < needed:
        raise NotEnoughCmm(
            f"{board.name}: card {board.device} ({card.name}) has {card.cmm} MiB of CMM, the files of "
            f"{', '.join(bundle.drawing)} alone are {needed:.0f} MiB. Bake a smaller model, or use a card with more "
            "memory."
        )


def transfer(board: Board, bundle: Bundle, found: Inspection) -> None:
    """Bring the bundle's files into `.incoming/{model}` on the board.

    rsync compares contents, links what the bundle's directory has already, and keeps what came of a file over which the
    connection broke, to go on from there.
    """
    aside = f"{board.directory}/.incoming/{bundle.model}"
    # Only what the manifest lists: beside it may lie what a killed job left.
    command = ["rsync", "--files-from=-", "--copy-links", "--checksum", "--chmod=u+w", "--partial-dir=.partial"]
    command.append("--protect-args")  # the board's shell does not see the paths
    if any(path.startswith(f"{board.directory}/{bundle.model}/") for path in found.files):
        command.append(f"--link-dest=../../{bundle.model}")
    command += ["--timeout=300", "--no-inc-recursive", "--info=progress2", f"--rsh={shlex.join(board.ssh)}"]
    command += [f"--rsync-path=mkdir -p -- {shlex.quote(aside)} && rsync", "--"]
    command += [f"{bundle.directory}/", f"{board.host}:{aside}/"]
    tell = progress("copied, in %:")
    errors = LastWords()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as names:
        names.writelines(f"{name}\n" for name in bundle.files)
        names.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=names,
                stdout=subprocess.PIPE,
                stderr=errors.descriptor,
                encoding="utf-8",
                errors="replace",
            )
        except FileNotFoundError as error:
            raise MissingProgram("rsync is not on this host's PATH; install it (apt install rsync).") from error
        finally:
            errors.handed_over()
        with process:
            assert process.stdout
            try:
                # Separated by carriage returns, which end lines too; of a longer line pieces will do.
                while line := process.stdout.readline(4096):
                    if counted := re.search(r"\s(\d{1,3})%\s", line):
                        tell(int(counted[1]), 100)
            except BaseException:
                process.terminate()
                raise
    said = errors.text()
    if said:
        logger.debug("rsync: %s", printable(said))
    if process.returncode:
        raise _transfer_error(board, process.returncode, said)


def _transfer_error(board: Board, status: int, said: str) -> Exception:
    words = " / ".join(said.splitlines()[-4:]) or "no further message"
    resumes = "Nothing on the board has changed. The copied files are kept aside, and the next run continues with them."
    full = "No space left on device" in said or "Disk quota exceeded" in said
    if full or (status == FILE_ERROR and not said):  # the end of a full disk's connection may overtake its words
        return NoSpace(
            f"{board.name}: its disk became full while files were copied: {words}. {resumes} Free some space first."
        )
    if status in LOST:
        error = ssh_error(board, said, begun=True, where=" while files were copied")
        return ConnectionLost(f"{error} {resumes}") if isinstance(error, ConnectionLost) else error
    return FailedOnBoard(f"{board.name}: rsync ended with status {status}: {words}. {resumes}")


def place(board: Board, bundle: Bundle, found: Inspection) -> None:
    """Compare what came over with its SHA-256, on the board, and move it into the bundle's directory."""
    sums = "".join(f"{sha256}  {name}\n" for name, sha256 in bundle.files.items())
    aside, there = shlex.quote(f".incoming/{bundle.model}"), shlex.quote(bundle.model)
    gone = shlex.join(obsolete(bundle, found))
    names = "".join(f"{name}\n" for name in bundle.files)  # the manifest is the last
    end = f"END-{secrets.token_hex(8)}"  # which no file is called
    body = f"""
cd {shlex.quote(board.directory)} || exit
compare() {{ cd {aside} && sha256sum --quiet --check - && find . -type f -exec sync {{}} + && cd ../..; }}
section compare compare <<'{end}' || exit
{sums}{end}
place() {{
  mkdir -p {there} && (cd {there} && rm -f -- manifest.json {gone}) || return
  while IFS= read -r name; do
    mkdir -p "$(dirname {there}/"$name")" || return
    [ {aside}/"$name" -ef {there}/"$name" ] || mv -f {aside}/"$name" {there}/"$name" || return  # rsync links what is the same
  done
  rm -rf {aside}
}}
section place place <<'{end}'
{names}{end}
"""
    sections = run_script(board, body)
    check(board, sections, "compare", "the files that arrived differ from those that were sent; run again")
    check(board, sections, "place", f"the bundle could not be moved to {board.directory}/{bundle.model}; run again")


def obsolete(bundle: Bundle, found: Inspection) -> list[str]:
    """Files that the bundle there lists and this one no longer has."""
    try:
        listed = json.loads(found.manifest)["files"]
    except (ValueError, KeyError, TypeError, RecursionError):  # no manifest there, or half of one
        return []
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, dict) else []
    good = [name for name in names if name.isprintable() and not name.startswith("/") and ".." not in name]
    return sorted(name for name in good if name and name not in bundle.files)
