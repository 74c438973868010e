"""Starting a bundle's server on a board, and asking it for one picture through ssh."""

import base64
import binascii
import contextlib
import hashlib
import http.client
import io
import json
import logging
import shlex
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from axbake.board.bundle import Bundle, read_bundle, refuse_emulated
from axbake.board.connection import Board, LastWords, Section, run_script, ssh_error
from axbake.board.errors import BoardSilent, FailedOnBoard, MissingProgram, UnreadableOutput
from axbake.board.inspection import check
from axbake.board.measurement import RUNTIMES
from axbake.printable import one_line

logger = logging.getLogger(__name__)
LOADING = 900  # seconds that the models may take to load, and one picture to warm up
DRAWING = 1800  # seconds that one picture may take
MOST_ANSWER = 64_000_000  # bytes
UNIT = "axbake.service"

PACKAGES = "import starlette, uvicorn, python_multipart"
#: Prints a line while the server loads, and ends well once it draws
READY = """
import pathlib, sys, time, urllib.error, urllib.request
end = time.monotonic() + {patience}
number = pathlib.Path("../.serve-{port}.pid")
while time.monotonic() < end:
    if number.exists() and not pathlib.Path("/proc", number.read_text().strip()).exists():
        sys.exit("it ended")
    try:
        urllib.request.urlopen("http://127.0.0.1:{port}/health", timeout=10)
        sys.exit(0)
    except urllib.error.HTTPError:
        print("loading", flush=True)
    except OSError:
        pass
    time.sleep(1)
sys.exit("no answer on port {port} for {patience} s")
"""
# With systemd for users, the server starts again after a fault, and with the board if the user may linger. Without it, it runs in
# a session of its own. What ran before is ended: by systemd, or by its number if that is still a serve.py.
SCRIPT = """
cd {there} || exit
section packages {python} -c {packages} || exit
section compare sha256sum --quiet --check - <<'SUMS' || exit
{sums}SUMS
by_systemd() {{ systemctl --user show-environment >/dev/null 2>&1; }}
start() {{
  old=$(cat ../.serve-{port}.pid 2>/dev/null)
  if [ -n "$old" ] && grep -q serve.py /proc/"$old"/cmdline 2>/dev/null; then
    kill "$old"
    for try in 1 2 3 4 5 6 7 8 9 10; do [ -d /proc/"$old" ] && sleep 1; done
  fi
  if by_systemd; then
    rm -f ../.serve-{port}.pid
    units=${{XDG_CONFIG_HOME:-$HOME/.config}}/systemd/user
    mkdir -p "$units" && {python} serve.py --unit {options} >"$units/{unit}" || return
    systemctl --user daemon-reload && systemctl --user enable {unit} && systemctl --user restart {unit} || return
    echo systemd
    return
  fi
  setsid nohup {python} serve.py {options} >../.serve-{port}.log 2>&1 </dev/null &
  echo $! >../.serve-{port}.pid
  echo session
}}
section start start || exit
section ready {python} -c {ready} && exit
section log sh -c {log}
"""


def serve_board(
    *,
    manifest: Path,
    host: str,
    user: str,
    port: int,
    directory: str,
    kind: str,
    device: int,
    python: str,
    serve_port: int,
    served: Path,
    image: Path,
) -> None:
    """Start the server of the bundle of *manifest* on the board, where `deploy_bundle` has put it, and ask it for a picture.

    It listens on the board's loopback alone and goes on when this ends. One that this started before is ended first.

    Args:
        host, user, port, directory, kind, device: as in config's entry `board`.
        python: the board's interpreter that has the packages of the bundle's requirements.txt.
        serve_port: that the server listens on.
        served: JSON to write.
        image: PNG to write: the row's own picture, as the server sent it.

    Raises:
        BoardError: of the kind that says what is wrong.
    """
    bundle = read_bundle(manifest)
    refuse_emulated(bundle)
    board = Board(host, user, port, directory, kind, device)
    place = f"{directory}/{bundle.model}"
    sections = run_script(board, script(board, bundle, python=python, port=serve_port), tell=_teller(board))
    _check(board, sections, bundle, python=python, place=place)
    asked = time.perf_counter()
    status, answer = through_tunnel(board, serve_port, "POST", "/v1/images/generations", order(bundle))
    seconds = time.perf_counter() - asked
    if status != 200:
        raise FailedOnBoard(f"{board.name}: the server answered with status {status}: {one_line(str(answer), 500)}")
    picture, timings = read_answer(board, answer, bundle.manifest["settings"])
    image.write_bytes(picture)
    content = {
        "model": bundle.model,
        "manifest_sha256": bundle.files["manifest.json"],
        "address": f"http://127.0.0.1:{serve_port}, on the board alone; ssh -L {serve_port}:127.0.0.1:{serve_port} reaches it",
        "kept_by": "systemd" if "systemd" in sections["start"].text.split() else "nothing: it ends with the board",
        "picture_sha256": hashlib.sha256(picture).hexdigest(),
        "seconds_to_answer": round(seconds, 3),
        "drawing": timings,
    }
    served.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def script(board: Board, bundle: Bundle, *, python: str, port: int) -> str:
    """Commands that start the server of *bundle* on *board*; the first that fails is the last."""
    options = ["--port", str(port), "--runtime", RUNTIMES[board.kind], "--devices", str(board.device)]
    quoted = shlex.quote(python)
    log = f"[ -e ../.serve-{port}.pid ] && tail -n 20 ../.serve-{port}.log || journalctl --user -u {UNIT} -n 20 --no-pager"
    return SCRIPT.format(
        there=shlex.quote(f"{board.directory}/{bundle.model}"),
        python=quoted,
        packages=shlex.quote(PACKAGES),
        sums="".join(f"{sha256}  {name}\n" for name, sha256 in bundle.files.items()),
        options=shlex.join(options),
        unit=UNIT,
        port=port,
        ready=shlex.quote(READY.format(port=port, patience=LOADING)),
        log=shlex.quote(log),
    )


def _teller(board: Board):
    def tell(section: str, line: str | None) -> None:
        if section == "ready" and line is None:
            logger.info("%s: loading the models", board.name)

    return tell


def _check(board: Board, sections: dict[str, Section], bundle: Bundle, *, python: str, place: str) -> None:
    """Raise what a section of the script says against going on."""
    packages = sections.get("packages")
    if packages and packages.status:
        raise MissingProgram(
            f"{board.name}: {python} lacks packages of the server: {one_line(packages.text, 300)}. Install there: "
            f"`{python} -m pip install -r {place}/requirements.txt`."
        )
    check(board, sections, "packages", f"no directory {place} there; run again after deleting deployment.json")
    check(
        board,
        sections,
        "compare",
        f"{place} does not match what was copied there; delete deployment.json and run again",
    )
    check(board, sections, "start", "the server could not be started")
    ready = sections.get("ready")
    if ready and ready.status:
        log = one_line(sections["log"].text[-1500:], 1500) if "log" in sections else ""
        raise FailedOnBoard(f"{board.name}: the server does not draw: {one_line(ready.text, 200)}; its log: {log}")
    check(board, sections, "ready", "the server could not be asked")


def order(bundle: Bundle) -> bytes:
    """What the server is asked for: the row's own picture."""
    settings = bundle.manifest["settings"]
    asked = {name: settings[name] for name in ("prompt", "negative_prompt", "steps", "guidance_scale", "seed")}
    return json.dumps({"model": bundle.model, **asked}).encode()


def through_tunnel(board: Board, port: int, method: str, address: str, body: bytes) -> tuple[int, Any]:
    """Ask a server that listens on the board's loopback: ssh's standard input and output are the connection (`ssh -W`).

    Returns:
        HTTP's status, and the answer's JSON.

    Raises:
        BoardSilent: no answer for `DRAWING` seconds.
        UnreadableOutput: what came back is not one.
        FailedOnBoard, Unreachable, …: as ssh says.
    """
    head = (
        f"{method} {address} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    )
    errors = LastWords()
    process = subprocess.Popen(
        [*board.ssh, "-W", f"127.0.0.1:{port}", "--", board.host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.descriptor,
    )
    errors.handed_over()
    impatience = threading.Timer(DRAWING, process.kill)
    impatience.start()
    try:
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # ssh has ended, and says why
            process.stdin.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            process.stdin.flush()
        text = process.stdout.read(MOST_ANSWER + 1)  # stdin stays open: its end would be the client's going away
    finally:
        patient = impatience.is_alive()
        impatience.cancel()
        process.kill()
        process.communicate()
    said = errors.text()
    if not patient:
        raise BoardSilent(
            f"{board.name}: the server sent no picture for {DRAWING / 60:.0f} minutes. See its log there."
        )
    if not text:
        if "administratively prohibited" in said or "open failed" in said:
            raise FailedOnBoard(
                f"{board.name}: ssh does not reach port {port} there ({one_line(said, 300)}). Check that the server runs, "
                "and that sshd allows AllowTcpForwarding."
            )
        raise ssh_error(board, said, begun=False)
    return _read_http(board, text)


class _Received:
    """What http.client takes for a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._content)


def _read_http(board: Board, text: bytes) -> tuple[int, Any]:
    try:
        answer = http.client.HTTPResponse(_Received(text))  # type: ignore[arg-type]
        answer.begin()
        return answer.status, json.loads(answer.read())
    except (http.client.HTTPException, ValueError, RecursionError, OSError) as error:
        raise UnreadableOutput(
            f"{board.name}: what answers is not serve.py ({one_line(repr(error), 100)}): {one_line(repr(text[:200]), 300)}"
        ) from error


def read_answer(board: Board, answer: Any, settings: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The PNG in a server's answer, of the size in *settings*, and how long its parts took.

    Raises:
        UnreadableOutput: it is not such an answer.
        FailedOnBoard: the models that it has are emulated.
    """
    wanted = settings["width"], settings["height"]
    try:
        (entry,), said = answer["data"], answer["axbake"]
        picture = base64.b64decode(entry["b64_json"], validate=True)
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            if image.size != wanted:
                raise ValueError(f"a picture of {image.size} pixels, wanted {wanted}")
            image.verify()
        (found,) = said["timings"]
        names = ("text_embedding_seconds", "decode_seconds", "total_seconds")
        timings = {
            **{name: float(found[name]) for name in names},
            "step_seconds": [float(one) for one in found["step_seconds"]],
        }
        emulated = bool(said["emulated"])
    except (
        KeyError,
        TypeError,
        ValueError,
        binascii.Error,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise UnreadableOutput(f"{board.name}: the server's answer: {one_line(repr(error), 300)}") from error
    if emulated:
        raise FailedOnBoard(f"{board.name}: the server on that port has emulated models. End it there, and run again.")
    return picture, timings
