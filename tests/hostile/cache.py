"""Tampered build caches: whatever lies in one, each job gets the right result, and nothing outside is touched.

    python -m tests.hostile.cache 100

lays out so many caches with builds in them, tampers with each in seeded ways, and lets a process plan, place, build and remove
garbage there. Beside the cache lies somebody's home, where no file may be opened, changed, linked, moved or removed. Run by root,
two of three caches are shared by two users, one of whom tampers; every other of these has the sticky bit.

One thing is left out, because nobody can see it: an entry of the right form that names other content, which is there and whole.
SECURITY.md says so.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from axbake import digest
from axbake.__main__ import main as main_of_axbake
from axbake.cache import Cache, Key
from axbake.cache.garbage import remove_garbage, usage
from axbake.errors import AxbakeError

PATIENCE = 20  # s that all work in one cache may take
MEMORY = 2 << 30  # bytes that it may take
NOBODY = 65534
OTHER = "0123456789abcdef"  # the mark in the name of a directory that looks like a private one
CONTENT = {"axmodel": random.Random(1).randbytes(3 << 20), "record": b'{"emulated": true}'}
PICTURE = {"picture": random.Random(2).randbytes(50_000)}
STRANGE: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../home/secret",
    "\x1b]0;owned\x07\x1b[2J",
    "a\nb",
    "\ud800",
    "\0",
    "a" * 100_000,
    [],
    {},
    [[]],
    {"sha256": "x"},
]


def key_of(**settings: Any) -> Key:
    """A key of a build with two outputs."""
    identity = {
        "settings": {"toolchain": "emulator", **settings},
        "code": {"axbake.x": "c" * 64},
        "tools": {"torch": "2"},
    }
    return Key(
        "compile_model", "unet", identity, {"graph": "1" * 64}, {"axmodel": "unet.axmodel", "record": "unet.json"}
    )


KEYS = {
    "compiled": key_of(height=64),
    "compiled alike": key_of(height=128),
    "drawn": Key("draw", None, {"settings": {"seed": 7}}, {"unet": "2" * 64}, {"picture": "image.png"}),
}


class World:
    """A cache with three builds, a project with their results, and somebody's home, in a new *directory*.

    Args:
        other_disk: where one more result is, as a copy.
        user: whose project it is, if that is not who runs this.
        mode: permissions of the cache.
    """

    def __init__(self, directory: Path, other_disk: Path, user: int | None, mode: int) -> None:
        self.directory = directory
        self.user = user
        self.hostile = NOBODY if user is None else os.geteuid()
        self.cache = Cache(directory / "cache")
        self.project = directory / "project"
        self.home = directory / "home"
        for name in KEYS:
            self.fetch(name, self.project / name)
        self.fetch("compiled", other_disk)
        self._furnish()
        self.cache.directory.chmod(mode)
        if user is not None:
            for path in [directory, *directory.rglob("*")]:
                os.chown(path, user, user)
                if path.is_dir() and path.is_relative_to(self.cache.directory):
                    path.chmod(mode)

    def _furnish(self) -> None:
        """What somebody has at home, with the names that the cache's own files have."""
        axmodel = sha256(CONTENT["axmodel"])
        names = [
            "secret",
            "settings.json",
            f".keep.axbake-{OTHER}/work",
            f".unet.axbake-deadbeef/{OTHER}",
            "empty/.hidden",
        ]
        names += [
            f"{axmodel[:2]}/{axmodel}",
            f"{axmodel[:2]}/.{axmodel}.12345678",
            axmodel,
            f"unet/{'a' * 64}.json",
            "1.json",
        ]
        names += [
            f"compile_model/unet/{KEYS['compiled'].digest}.json",
            ".hidden",
            f"{OTHER}.json",
            "damaged/x",
            "b" * 64,
        ]
        for name in names:
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if name.endswith(".json") else f"precious {name}", encoding="utf-8")
        (self.home / "same").write_bytes(CONTENT["axmodel"])
        for name in ("secret", "same"):
            (self.home / name).chmod(0o600)
        (self.home / f".none.axbake-{OTHER}").mkdir()
        os.mkfifo(self.home / "pipe")

    def fetch(self, name: str, place: Path) -> bool:
        """Have the result of one of KEYS, or of a new build alike, at *place*; whether it was stored."""
        return self.fetch_key(KEYS[name], place)

    def fetch_key(self, key: Key, place: Path) -> bool:
        """The same for any key."""
        content = contents_of(key)
        places = {output: place / file for output, file in key.outputs.items()}

        def build(made: dict[str, Path]) -> None:
            for output, path in made.items():
                path.write_bytes(content[output])

        hit = self.cache.fetch_or_build(key, places, build).hit
        wrong = [output for output, path in places.items() if path.is_symlink() or path.read_bytes() != content[output]]
        if wrong:
            raise WrongResult(f"{key.name}: {', '.join(wrong)}")
        return hit

    def blobs(self) -> list[Path]:
        """The cache's blobs."""
        return sorted(self.cache.directory.glob("blobs/*/*"))


class WrongResult(Exception):
    """A result of other content."""


def contents_of(key: Key) -> dict[str, bytes]:
    """What a build of *key* makes."""
    return {name: (CONTENT | PICTURE)[name] for name in key.outputs}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# What is done to a cache. Each takes the seeded generator and the world.

Tamper = Callable[[random.Random, World], object]


def entry_values(draw: random.Random, world: World) -> None:
    """Strange values, or none, or more, in an entry."""
    path = world.cache.entry_path(draw.choice(list(KEYS.values())))
    edit(path, lambda record: spoil(draw, record))


def entry_digests(draw: random.Random, world: World) -> None:
    """Paths and the like in place of the digest of an output."""
    key = draw.choice(list(KEYS.values()))

    def spoil_digest(record: dict) -> None:
        output = record["outputs"][draw.choice(list(key.outputs))]
        right, home = output["sha256"], world.home
        size = (home / "secret").stat().st_size
        strange = ["../../../home/secret", str(home / "secret"), f"../{right[:2]}/{right}", f"{right}\n", right.upper()]
        strange += [
            right[:63],
            right + "0",
            f"{right[:60]}/../",
            "..",
            "",
            "\0" * 64,
            "x" * 64,
            "x" * 300,
            f"{home}/pipe",
        ]
        output["sha256"] = draw.choice([*strange, *STRANGE])
        output["size"] = draw.choice([output["size"], size, *STRANGE])

    edit(world.cache.entry_path(key), spoil_digest)


def entry_file(draw: random.Random, world: World) -> None:
    """Another kind of file, or other text, in the place of an entry; or such a thing beside it."""
    path = world.cache.entry_path(draw.choice(list(KEYS.values())))
    put(draw, world, draw.choice([path, path.with_name(f"{'e' * 64}.json"), path.with_name("x.json")]))


def blob_file(draw: random.Random, world: World) -> None:
    """Another kind of file in the place of a blob."""
    path = draw.choice(world.blobs())
    if draw.random() < 0.2 and path.stat().st_size == len(CONTENT["axmodel"]):
        path.unlink()
        path.hardlink_to(world.home / "same")
    else:
        put(draw, world, path)


def blob_rot(draw: random.Random, world: World) -> None:
    """A byte of a blob changed, its time kept; perhaps with a note of another user's that it was found right."""
    for path in draw.sample(world.blobs(), draw.randrange(1, 3)):
        state = path.stat()
        with path.open("r+b") as file:
            file.seek(draw.randrange(state.st_size))
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        if os.geteuid() == 0 and draw.random() < 0.5:
            after = path.stat()
            said = {"sha256": path.name, "size": after.st_size, "mtime_ns": after.st_mtime_ns}
            if draw.random() < 0.7:
                said |= {"ctime_ns": after.st_ctime_ns, "links": after.st_nlink}
            note = world.cache.directory / "verified" / f"{after.st_ino}.json"
            note.write_text(json.dumps(said), encoding="utf-8")
            os.chown(note, world.hostile, world.hostile)
        if draw.random() < 0.3:
            shutil.rmtree(world.project)


def blob_owner(draw: random.Random, world: World) -> None:
    """Another user's blob of other content."""
    path = draw.choice(world.blobs())
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(draw.randbytes(len(content)) if draw.random() < 0.7 else content)
    if os.geteuid() == 0:
        os.chown(path, world.hostile, world.hostile)


def verified(draw: random.Random, world: World) -> None:
    """Notes of verified blobs: strange values, other kinds of files."""
    number = draw.choice(world.blobs()).stat().st_ino
    path = world.cache.directory / "verified" / f"{number}.json"
    if path.exists() and draw.random() < 0.5:
        edit(path, lambda record: spoil(draw, record))
    else:
        put(draw, world, path)


def announcement(draw: random.Random, world: World) -> None:
    """Announcements of killed jobs that name other directories, or nothing."""
    mark = draw.choice([OTHER, draw.randbytes(8).hex()])
    home = world.home
    copied = home / f".copy.axbake-{mark}"
    shutil.copytree(home / "empty", copied)
    (copied / f"axbake-{mark}-{(home / 'empty').stat().st_ino}").touch()
    link = home / f".link.axbake-{mark}"
    link.symlink_to(home / "damaged")
    directories = [home, copied, link, home / f".keep.axbake-{OTHER}", home / ".unet.axbake-deadbeef", home / "pipe"]
    directories += [
        f"../home/.keep.axbake-{OTHER}",
        f"{home}/../home/.keep.axbake-{OTHER}",
        "x\0y",
        "",
        "/",
        "~",
        *STRANGE,
    ]
    said: Any = {"owner": "x", "host": draw.choice([socket.gethostname(), "elsewhere"]), "about": "x", "since": "x"}
    said["directory"] = draw.choice(directories)
    said["directory"] = str(said["directory"]) if isinstance(said["directory"], Path) else said["directory"]
    if draw.random() < 0.3:
        spoil(draw, said)
    path = world.cache.directory / "running" / f"{mark}.json"
    path.write_text(json.dumps(said), encoding="utf-8")
    if draw.random() < 0.2:
        put(draw, world, path)


def placed(draw: random.Random, world: World) -> None:
    """Notes of places: in somebody's home, of strange values, other kinds of files."""
    directory = world.cache.directory / "placed"
    paths = [*directory.glob("*.json"), directory / f"{'d' * 64}.json"]
    path = draw.choice(paths)
    how = draw.randrange(3)
    if how == 0 and path.exists():
        edit(path, lambda record: spoil(draw, record))
    elif how == 1:
        place = draw.choice(
            [world.home / "secret", world.home / "pipe", Path("/dev/zero"), Path("x"), world.home / ("n" * 300)]
        )
        said = {"place": str(place), "host": socket.gethostname(), "sha256": "../../../home/secret", "size": 15}
        name = sha256(os.fsencode(place))
        (directory / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")
    else:
        put(draw, world, path)


def locks(draw: random.Random, world: World) -> None:
    """Other kinds of files in the places of locks, and strange notes in them."""
    top = world.cache.directory
    keys = [*KEYS.values(), key_of(height=1)]
    put(draw, world, draw.choice([top / "lock", *(top / "locks" / key.digest for key in keys), top / "locks" / "x"]))


def directories(draw: random.Random, world: World) -> None:
    """Links to somebody's home, and other things, in the places of directories."""
    top = world.cache.directory
    inner = [path for path in [*top.glob("*"), *top.glob("*/*"), *top.glob("entries/*/*")] if path.is_dir()]
    path = draw.choice(inner)
    shutil.rmtree(path)
    if draw.random() < 0.7:
        path.symlink_to(draw.choice([world.home, world.home, world.home / "none", path, "..", "/"]))
    else:
        put(draw, world, path)


def litter(draw: random.Random, world: World) -> None:
    """What does not belong there."""
    top = world.cache.directory
    below = draw.choice([path for path in [top, *top.glob("*"), *top.glob("*/*")] if path.is_dir()])
    name = draw.choice(
        ["x", ".x", "-rf", "a\nb", "\x1b[2J", "n" * 250, f".{'f' * 64}.json.x", os.fsdecode(b"\xff\xfe")]
    )
    put(draw, world, below / name)


TAMPERS: list[Tamper] = [
    entry_values,
    entry_digests,
    entry_file,
    blob_file,
    blob_rot,
    blob_owner,
    verified,
    announcement,
    placed,
    locks,
    directories,
    litter,
]


def edit(path: Path, how: Callable[[dict], object]) -> None:
    """Change the JSON of a record, unless it is none by now."""
    if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 16:
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            record = json.loads(path.read_text(encoding="utf-8"))
            how(record)
            path.write_text(json.dumps(record), encoding="utf-8")


def spoil(draw: random.Random, record: dict) -> None:
    """Replace, remove or add a value somewhere in *record*."""
    at: Any = record
    while isinstance(at, dict) and at:
        name = draw.choice(list(at))
        if isinstance(at[name], dict) and at[name] and draw.random() < 0.8:
            at = at[name]
            continue
        how = draw.randrange(4)
        if how == 0:
            del at[name]
        elif how == 1:
            at[draw.choice(["more", "format", "\x1b[2J"])] = draw.choice(STRANGE)
        else:
            at[name] = draw.choice(STRANGE)
        return


def put(draw: random.Random, world: World, path: Path) -> None:
    """Put something else in the place of *path*."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    home = world.home
    if not path.parent.is_dir() or path.parent.resolve().is_relative_to(home.resolve()):
        return  # an earlier one put a link there
    what = draw.randrange(14)
    texts = [
        "",
        "{",
        "null",
        "3",
        '"x"',
        "[]",
        "[" * 100_000,
        '{"a":' * 50_000,
        "[" * 900 + "]" * 900,
        '{"a": NaN}',
        "9" * 5000,
    ]
    if what < 4:
        targets = [home / "secret", home, home / "pipe", "/dev/zero", home / "new", path, home / "settings.json"]
        path.symlink_to(draw.choice(targets))
    elif what == 4:
        path.mkdir()
    elif what == 5:
        deep(path, draw.choice([3, 1500]))
    elif what == 6:
        os.mkfifo(path)
    elif what == 7 and len(os.fsencode(path)) < 100:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif what == 8:
        path.hardlink_to(draw.choice([home / "secret", home / "settings.json"]))
    elif what == 9:
        with path.open("wb") as file:
            file.truncate(draw.choice([5 << 20, 3 << 30, 1 << 40]))
    elif what == 10:
        path.write_bytes(draw.randbytes(1000))
    elif what == 11:
        path.write_text("{" + ",".join(f'"{number}": [[]]' for number in range(600_000)) + "}", encoding="utf-8")
    else:
        path.write_text(draw.choice(texts), encoding="utf-8")
    if what == 8:
        return
    if os.geteuid() == 0:
        user = draw.choice([world.hostile, world.hostile, world.user or 0])
        os.chown(path, user, user, follow_symlinks=False)
    if draw.random() < 0.2 and what >= 4:
        path.chmod(0)


def deep(path: Path, levels: int) -> None:
    """Directories within directories, deeper than any path can say."""
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


# What is done in it, and what is wrong then


@dataclasses.dataclass
class Trial:
    """What was done to one cache, and what came of it."""

    number: int
    tampers: list[str]
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)  # stored, built, sentence
    faults: list[str] = dataclasses.field(default_factory=list)  # of FAULTS, with more words behind
    warnings: int = 0
    seconds: float = 0.0


FAULTS = ("outside", "hang", "traceback", "wrong", "words")


def state_of(home: Path) -> dict[str, tuple]:
    """All that can be seen of somebody's files."""
    found: dict[str, tuple] = {}
    for path in [home, *sorted(home.rglob("*"))]:
        state = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(state.st_mode) else path.readlink() if path.is_symlink() else b""
        same = (state.st_mode, state.st_uid, state.st_ino, state.st_size, state.st_mtime_ns, content)
        found[str(path)] = (*same, state.st_ctime_ns, state.st_nlink)
    return found


def changed(before: dict[str, tuple], after: dict[str, tuple]) -> list[str]:
    """Files that are not what they were."""
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, ()), after.get(path, ())
        if old and not stat.S_ISDIR(old[0]) and old[-1] > 1:
            old, new = old[:-2], new[:-2]  # its other name, which was put into the cache, may be moved or removed there
        if old != new:
            found.append(path)
    return found


def work(world: World) -> dict[str, Any]:
    """All that a user does with a cache, in this process; what came of it."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s\0"))
    logging.getLogger("axbake").handlers = [handler]
    logging.getLogger("axbake").setLevel(logging.DEBUG)
    digest.MEMORY = world.directory / "digests"
    outcomes, faults = Counter[str](), []

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            for argument in arguments:
                if isinstance(argument, (str, bytes)) and os.fsdecode(argument).startswith(str(world.home)):
                    faults.append(f"outside: {event} {os.fsdecode(argument)}")

    def attempt(what: str, do: Callable[[], object]) -> None:
        try:
            hit = do()
        except AxbakeError as error:
            outcomes["sentence"] += 1
            if not is_sentence(str(error)):
                faults.append(f"words: {error!r}")
        except WrongResult as error:
            faults.append(f"wrong: {what}: {error}")
        except BaseException:
            faults.append(f"traceback: {what}: {traceback.format_exc()}")
        else:
            if isinstance(hit, bool):
                outcomes["stored" if hit else "built"] += 1

    def plan() -> None:
        for key in KEYS.values():
            found = world.cache.find(key)
            if found and {name: blob.sha256 for name, blob in found.outputs.items()} != {
                name: sha256(content) for name, content in contents_of(key).items()
            }:
                raise WrongResult("found")
        list(world.cache.entries())
        if not is_sentence(world.cache.why(key_of(height=65))):
            faults.append("words: why")

    def read_input() -> None:
        path = world.project / "compiled" / "unet.axmodel"
        if path.is_file() and world.cache.sha256(path) != sha256(path.read_bytes()):
            raise WrongResult("sha256 of an input")

    sys.addaudithook(hook)
    new = key_of(height=1)
    for round in ("before", "after"):
        attempt("plan", plan)
        attempt("usage", lambda: usage(world.cache) and None)
        attempt("input", read_input)
        attempt(
            "new", lambda round=round: world.fetch_key(dataclasses.replace(new, component=round), world.project / round)
        )
        for name in KEYS:
            attempt(name, lambda name=name, round=round: world.fetch(name, world.project / round / name))
        attempt("garbage", lambda: remove_garbage(world.cache, days=0) and None)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        attempt("command", lambda: main_of_axbake(["cache", "--directory", str(world.cache.directory)]) and None)
    faults += [f"words: {line!r}" for line in shown.getvalue().split("\n") if not is_sentence(line)]
    lines = [line.strip("\n") for line in said.getvalue().split("\0")]
    warnings = [line for line in lines if line.startswith("WARNING")]
    faults += [f"words: {line!r}" for line in lines if not is_sentence(line)]
    return {"outcomes": outcomes, "faults": faults, "warnings": len(warnings)}


def is_sentence(text: str) -> bool:
    """Whether *text* is one line of words that a screen can show."""
    return len(text) < 2000 and all(letter.isprintable() for letter in text)


def trial(number: int, directory: Path, other_disk: Path) -> Trial:
    """Tamper with one cache, and work in it."""
    draw = random.Random(number)
    shared = draw.randrange(3) if os.geteuid() == 0 else 0
    mode = {0: 0o755, 1: 0o777, 2: 0o1777}[shared]
    world = World(directory / str(number), other_disk / str(number), NOBODY if shared else None, mode)
    tampers = [TAMPERS[number % len(TAMPERS)], *draw.choices(TAMPERS, k=draw.choice([0, 0, 1, 2]))]
    tried = Trial(number, [tamper.__name__ for tamper in tampers])
    try:
        for tamper in tampers:
            with contextlib.suppress(
                OSError, IndexError, RecursionError
            ):  # an earlier one took it, or made it too deep
                tamper(draw, world)
        before = state_of(world.home)
        started = time.monotonic()
        report, status = in_a_process(lambda: work(world), world.user)
        tried.seconds = time.monotonic() - started
        tried.outcomes, tried.faults, tried.warnings = Counter(report["outcomes"]), report["faults"], report["warnings"]
        if status == -signal.SIGALRM:
            tried.faults.append(f"hang: more than {PATIENCE} s")
        elif status:
            tried.faults.append(f"traceback: ended with {status}")
        tried.faults += [f"outside: {path}" for path in changed(before, state_of(world.home))]
    finally:
        subprocess.run(["rm", "-rf", world.directory], check=True)  # shutil.rmtree does not get so deep
    return tried


def in_a_process(do: Callable[[], dict[str, Any]], user: int | None) -> tuple[dict[str, Any], int]:
    """What *do* gives in a process of its own, of that *user*, that is bounded in time and memory; and its exit status."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(PATIENCE)
                used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
                if user is not None:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                answer.write(json.dumps(do()).encode())
                answer.flush()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer.seek(0)
        return json.loads(answer.read() or b'{"outcomes": {}, "faults": [], "warnings": 0}'), status


def run(count: int, first: int = 0) -> list[Trial]:
    """Trials of the numbers from *first* on."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # not a disk, which is slow to write to
    with tempfile.TemporaryDirectory(dir=memory) as place, tempfile.TemporaryDirectory() as other_disk:
        for directory in (place, other_disk):
            Path(directory).chmod(0o755)
        with mock.patch.object(digest, "MEMORY", Path(place) / "digests"):
            return [trial(number, Path(place), Path(other_disk)) for number in range(first, first + count)]


def table(trials: list[Trial]) -> str:
    """What came of *trials*, by what was done first."""
    titles = ["tampered with", "caches", "stored", "built", "sentences", "warnings", *FAULTS, "slowest"]
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    groups = {tamper.__name__: [one for one in trials if one.tampers[0] == tamper.__name__] for tamper in TAMPERS}
    for name, group in [*groups.items(), ("all", trials)]:
        if group:
            counts = sum((one.outcomes for one in group), Counter[str]())
            faults = Counter(fault.partition(":")[0] for one in group for fault in one.faults)
            cells = [name.replace("_", " "), len(group), *(counts[what] for what in ("stored", "built", "sentence"))]
            cells += [sum(one.warnings for one in group), *(faults[what] for what in FAULTS)]
            lines.append(f"| {' | '.join(map(str, cells))} | {max(one.seconds for one in group):.1f} s |")
    return "\n".join(lines)


def main() -> int:
    trials = run(int(sys.argv[1]), int([*sys.argv, 0][2]))
    for one in trials:
        for fault in one.faults:
            print(f"{one.number} ({', '.join(one.tampers)}): {fault}")
    print(table(trials))
    return any(one.faults for one in trials)


if __name__ == "__main__":
    sys.exit(main())
