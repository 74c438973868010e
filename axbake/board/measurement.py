"""The script that measures a bundle on a board, with the card to itself."""

import re
import shlex

from axbake.board.bundle import Bundle
from axbake.board.connection import Board
from axbake.board.inspection import RUN_MODEL, STATE, programs_section
from axbake.printable import one_line

WARMUP = 3  # runs of a model before it is measured
LOCK_PATIENCE = 3000  # seconds to wait for another benchmark on the same card
BUSY = 75  # status for a lock that was not had: EX_TEMPFAIL of sysexits.h
RUNTIMES = {"card": "axcl", "soc": "axengine"}  # of txt2img.py
STEPS = (20, 10)  # that published tables tell

# The packages that the bundle's program needs, with their versions; axengine is a wheel of github AXERA-TECH/pyaxengine.
PACKAGES = """
import importlib, importlib.metadata, json, sys
versions, missing = {}, []
for package, module in {"numpy": "numpy", "pillow": "PIL", "tokenizers": "tokenizers", "axengine": "axengine"}.items():
    try:
        importlib.import_module(module)
        versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        versions[package] = "unknown"
    except Exception as error:
        missing.append(f"{package} ({type(error).__name__}: {error})")
print("packages: " + json.dumps({"versions": versions, "missing": missing}))
sys.exit(bool(missing))
"""

# The lock is a file that is opened for reading only: another user may have made it, and /tmp lets nobody else write it. It is
# held by the script's shell, and so let go when that ends, however it ends.
FRAME = """
take_card() {{
  lock=/tmp/axbake-{kind}-{device}.lock
  [ -e $lock ] || (umask 0; : >>$lock)
  exec 9<$lock || return
  flock --nonblock 9 && return
  echo waiting
  flock --timeout {patience} 9 || return {busy}
}}
{programs}
cd {there} || exit
section card take_card || exit
section board cat /proc/device-tree/model /etc/os-release
{first} || exit
section compare sha256sum --quiet --check - <<'SUMS' || exit
{sums}SUMS
out=../.measured-{kind}-{device}
rm -rf $out && mkdir $out || exit
trap 'rm -rf $out' EXIT
trap 'exit 143' TERM
{commands}
"""


def steps_of(bundle: Bundle) -> list[int]:
    """Numbers of steps to draw with: the row's own, then the published tables' as far as the bundle has schedules for them."""
    own, scheduler = bundle.manifest["settings"]["steps"], bundle.manifest["settings"]["scheduler"]
    others = [number for number in STEPS if number != own and f"schedules/{scheduler}-{number}.npz" in bundle.files]
    return [own, *others]


def script(board: Board, bundle: Bundle, *, python: str, repeats: int, pictures: int) -> str:
    """Commands that measure *bundle* on *board*; the first that fails is the last.

    Args:
        python: the board's interpreter.
        repeats: runs of each model by AXERA's benchmark program.
        pictures: of each number of steps, drawn by one run of txt2img.py.
    """
    state = STATE[board.kind].split()
    # Before the files are compared, which takes seconds: so a card that is in use is left alone before anything runs on it.
    first = [["state:start", *state], ["packages", python, "-c", PACKAGES]]
    commands: list[list[str]] = []
    for component, file in bundle.models.items():
        commands += [[f"model:{component}", *_run_model(board, file, repeats)], [f"state:{component}", *state]]
    out = f"../.measured-{board.kind}-{board.device}"
    drawing = ["--runtime", RUNTIMES[board.kind], "--device", str(board.device), "--count", str(pictures)]
    for number in steps_of(bundle):
        files = ["--output", f"{out}/{number}.png", "--timings", f"{out}/{number}.json"]
        commands.append([f"draw:{number}", python, "txt2img.py", "--steps", str(number), *drawing, *files])
        commands += [[f"timings:{number}", "cat", f"{out}/{number}.json"], [f"state:{number}", *state]]
    own, seed = bundle.manifest["settings"]["steps"], bundle.manifest["settings"]["seed"]
    commands.append(["picture", "base64", f"{out}/{own}-{seed}.png" if pictures > 1 else f"{out}/{own}.png"])
    return FRAME.format(
        kind=board.kind,
        device=board.device,
        patience=LOCK_PATIENCE,
        busy=BUSY,
        programs=programs_section(board),
        there=shlex.quote(f"{board.directory}/{bundle.model}"),
        sums="".join(f"{sha256}  {name}\n" for name, sha256 in bundle.files.items()),
        first=_joined(first),
        commands=_joined(commands),
    )


def _joined(commands: list[list[str]]) -> str:
    return " &&\n".join(f"section {shlex.join(command)}" for command in commands)


def _run_model(board: Board, file: str, repeats: int) -> list[str]:
    """Command line of AXERA's benchmark program for one model; those of the card and of the chip differ."""
    device = ["-d", str(board.device)] if board.kind == "card" else []
    return [RUN_MODEL[board.kind], "-m", file, "-w", str(WARMUP), "-r", str(repeats), *device]


def pretty_name(text: str) -> str:
    """The board's own name, as its device tree has it, and its system's, of what the section `board` printed."""
    system = re.search(r'^PRETTY_NAME="?(.*?)"?$', text, re.MULTILINE)
    model = text.partition("\0")[0] if "\0" in text else ""
    return ", ".join(filter(None, [one_line(model), one_line(system[1]) if system else ""])) or "unknown"
