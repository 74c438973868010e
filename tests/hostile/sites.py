"""Sites that lie: `python -m tests.hostile.sites 100` fetches from a hundred of them, each in a process of its own.

Seeded: lie number N of a seed is the same on every machine. Nothing of a lie may reach a file outside the directory of downloads,
hang, end in a traceback, take 2 GB, or give another file than the pin means. Time limits are shortened, so that a server that
drips is given up in seconds.
"""

import argparse
import contextlib
import hashlib
import ipaddress
import json
import logging
import multiprocessing
import os
import random
import re
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError
from axbake.fetch import download, line, web
from axbake.fetch.sources import parse_source
from axbake.fetch.store import fetch
from axbake.printable import printable
from tests import peaks
from tests.hostile.raw_server import ANSWERS, raw_server
from tests.services.model_sites import HUB_TOKEN, SIGNATURE, TOKEN, Fault, Sites, model_sites, weights

LIMIT = 30  # s for one lie
MOST_MEMORY = 2**28  # bytes above what the process held before
CELLS = (
    "urn:air:sd1:checkpoint:civitai:47274@102222",
    "https://civitai.com/models/47274",
    "https://civitai.com/api/download/models/102222?type=Model&format=SafeTensor&size=pruned&fp=fp16",
    "hf://someone/tiny/tiny.safetensors",
)
VERSION, MODEL = "/api/v1/model-versions/102222", "/api/v1/models/47274"
HUB = "/api/models/someone/tiny"
DOWNLOAD, STORED = "/api/download/models/102222", "/bucket/tiny.safetensors"
DEEP = "[" * 100_000
STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\x1b[2J\x1b]0;owned\x07",
    "\ud800",
]
STRANGE += [
    "x" * 100_000,
    "../../x",
    "/etc/passwd",
    "a\nb",
    "\u202egnp.exe",
    "NaN",
    [],
    {},
    [None],
    [[1]],
    [{}],
    {"": None},
]
STRANGE += [[None, 3, "x"], {"a": {"b": {"c": []}}}, "<script>alert(1)</script>", "{{7*7}}", "%00", "\0"]
BODIES = [
    b"",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b'{"error": null}',
    b'{"error": {"message": ["why", {"a": 1}]}}',
]
BODIES += [
    DEEP.encode(),
    b'{"a":' * 100_000,
    b'{"error": "\\u001b[2J\\ud800"}',
    b"<html><title>\x1b[2JNo</title>",
    b"9" * 6000,
]
BODIES += [b'{"errors": [{"detail": "deep"}, null]}', b'{"message": ' + b'"' + b"m" * 100_000 + b'"}', b'{"id": 1e999}']


@dataclass
class Stage:
    """One lie: where it stands, and the expected outcome."""

    draw: random.Random
    sites: Sites
    outside: Path  # directory whose files nobody may touch
    cell: str
    pin: str
    digest: str  # of the true file
    lie: str = ""
    public: bool = False  # whether the site counts as one of the public internet, and the storage as inside
    server: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def documents(self) -> list[dict]:
        """What the APIs say of the file that is asked for."""
        return (
            [self.sites.api[HUB]] if self.cell.startswith("hf:") else [self.sites.api[VERSION], self.sites.api[MODEL]]
        )


def strange_field(stage: Stage) -> None:
    """One to three fields of an API's answer are of another kind, or gone."""
    for _ in range(stage.draw.choice([1, 1, 2, 3])):
        places: list[tuple[Any, Any]] = []
        waiting: list[Any] = stage.documents()
        while waiting:
            entry = waiting.pop()
            names = list(entry) if isinstance(entry, dict) else range(len(entry))
            places += [(entry, name) for name in names]
            waiting += [entry[name] for name in names if isinstance(entry[name], dict | list)]
        holder, name = stage.draw.choice(places)
        if isinstance(holder, dict) and stage.draw.random() < 0.15:
            del holder[name]
        else:
            holder[name] = stage.draw.choice(STRANGE)
        stage.lie += (
            f"{name!r} is {str(holder[name] if isinstance(holder, list) or name in holder else 'gone')[:40]!r}; "
        )


def strange_answer(stage: Stage) -> None:
    """An API's whole answer is something else."""
    document = stage.draw.choice([HUB] if stage.cell.startswith("hf:") else [VERSION, MODEL])
    body = stage.draw.choice(BODIES)
    status = stage.draw.choice([200, 200, 404, 401, 403, 400, 500, 429, 451, 299, 206, 304])
    kind = stage.draw.choice(["application/json", "text/html", ""])
    retry = stage.draw.choice(["", "0", "9" * 5000, "soon", "-5", "Fri, 31 Dec 99999 23:59:59 GMT"])
    stage.lie = f"{document}: {status}, {body[:30]!r}, retry {retry[:20]!r}"
    stage.sites.fail(document, *[Fault(status, {"Content-Type": kind, "Retry-After": retry}, body=body)] * 20)


def strange_digest(stage: Stage) -> None:
    """What the site calls the file's SHA-256 is a path, another file's, or no digest."""
    victim, digest = f"{stage.outside}/victim", stage.digest
    lies = [
        victim,
        f"/..{victim}",
        "../../outside/victim",
        "/../../outside/victim",
        "../outside/victim",
        f"{digest}/../x",
    ]
    lies += [
        f"{digest}\n",
        f" {digest}",
        digest[:63],
        f"{digest}0",
        "0" * 64,
        "",
        None,
        7,
        [digest],
        {"a": digest},
        "none",
        ".",
    ]
    lies += ["..", "\0", "x" * 300, f"{victim}.safetensors", digest[:-1] + "é"]
    said = stage.draw.choice(lies)
    stage.lie = f"SHA-256 {str(said)[:60]!r}"
    if stage.cell.startswith("hf:"):
        stage.sites.api[HUB]["siblings"][0]["lfs"]["sha256"] = said
    else:
        stage.sites.api[VERSION]["files"][0]["hashes"]["SHA256"] = said


def strange_name(stage: Stage) -> None:
    """Names that a file, a model, an author or a version has are paths, commands, or without end."""
    names = [
        "../../outside/victim",
        f"{stage.outside}/victim",
        "..",
        "/",
        "C:\\x\\victim",
        "a\tb\nc",
        "\x1b[2Jx",
        "\ud800",
        "é" * 9999,
    ]
    names += ["x" * 10**6, "con", "-rf", "$(touch owned)", "`touch owned`", "\u202ecod.exe", "tiny.safetensors\0.exe"]
    name = stage.draw.choice(names)
    stage.lie = f"name {name[:40]!r}"
    for document in stage.documents():
        document |= {
            "name": name,
            "author": name,
            "air": name,
            "baseModel": stage.draw.choice(["SD 1.5", f"SD 1.5{name}"]),
        }
        document["trainedWords"] = [name, None, {"a": name}]
        document["creator"] = {"username": name}
        document["cardData"] = {"license": name, "license_link": [name], "base_model": {"a": name}}
        for file in document.get("files", []):
            file["name"] = name if not name.endswith(".exe") else f"{name}.safetensors"


def strange_header(stage: Stage) -> None:
    """The storage's headers lie about length, place, validator, encoding or kind; its answers break off as well."""
    lies = {
        "Content-Length": [str(10**15), "9" * 6000, "-5", "1e9", "0", "5", "200001", "5, 6", " 7 ", "\xb2"],
        "Content-Range": [
            "bytes 5-6/7",
            "bytes */5",
            f"bytes 0-1/{'9' * 6000}",
            "x",
            "bytes 1000-/5",
            "bytes 1000-5/1000",
        ],
        "ETag": ['"\x1b[2J"', '"' + "e" * 60_000 + '"', "W/x", '"', "\xe9"],
        "Content-Encoding": ["gzip", "br", "x\x1b[2J", "identity, gzip"],
        "Content-Type": ["TEXT/HTML", "text/html\x1b[2J", "application/json", "x" * 9999],
        "Transfer-Encoding": ["chunked", "gzip, chunked"],
        "Retry-After": ["9" * 5000, "-1", "never"],
        "Set-Cookie": ["a=b; Domain=127.0.0.1; Max-Age=" + "9" * 5000, "=" * 9999],
    }
    name = stage.draw.choice(list(lies))
    value = stage.draw.choice(lies[name])
    stage.lie = f"{name}: {value[:40]!r}"
    headers = {name: value}
    faults = [Fault(headers=headers, cut=stage.draw.choice([None, 0, 1000, 100_000])) for _ in range(3)]
    faults += [Fault(stage.draw.choice([416, 206, 503]), headers)] if stage.draw.random() < 0.5 else []
    stage.sites.fail(STORED, *faults * 4)


def strange_redirect(stage: Stage) -> None:
    """A redirect leads to another protocol, in a circle, to nowhere, or from the public internet inside."""
    port = stage.sites.storage.rpartition(":")[2]
    inside = [
        "127.0.0.2",
        "2130706434",
        "0x7f000002",
        "127.2",
        "[::ffff:127.0.0.2]",
        "localhost",
        "[::1]",
        "169.254.169.254",
    ]
    inside += ["rebound.example"] * 4
    ways = [f"http://{host}:{port}/bucket/tiny.safetensors" for host in inside]
    ways += [
        "file:///etc/passwd",
        "ftp://127.0.0.2/x",
        "",
        "//",
        "http://",
        "http:///x",
        "\x1b[2J",
        "http://[::1/x",
        "?x=1",
    ]
    ways += [
        "http://x:99999/",
        "http://\xe9.invalid/",
        "javascript:alert(1)",
        "data:,x",
        DOWNLOAD,
        "/login",
        "x" * 60_000,
    ]
    ways += ["http://user:secret@127.0.0.2:1/", f"http://{'a' * 70}.invalid/", "http://nowhere.invalid/\x1b[2J"]
    way = stage.draw.choice(ways)
    stage.lie = f"redirects to {way[:60]!r}"
    stage.public = True
    path = (
        f"/someone/tiny/resolve/{'0123456789abcdef' * 2}01234567/tiny.safetensors"
        if stage.cell.startswith("hf:")
        else DOWNLOAD
    )
    stage.sites.fail(path, *[Fault(stage.draw.choice([301, 302, 307, 308]), {"Location": way})] * 30)


def strange_content(stage: Stage) -> None:
    """What arrives is another file, or none."""
    good = stage.sites.files["tiny.safetensors"].content
    contents = [
        weights(9),
        good[:1000],
        good + b"x",
        good[::-1],
        b"",
        *BODIES,
        b"\x80\x02}q\x00.",
        b"PK\x03\x04" + b"x" * 99,
    ]
    contents += [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4265146304\n",
        b"GGUF\x03\0\0\0",
    ]
    contents += [b"\xff" * 8 + b"{" + b"x" * 99, b"\0" * 200_000, b"cos\nsystem\n(S'touch owned'\ntR."]
    content = stage.draw.choice(contents)
    stage.lie = f"content {content[:30]!r}"
    stored = stage.sites.files["tiny.safetensors"]
    stored.content = content
    if stage.draw.random() < 0.5:
        stored.etag = None
    stage.sites.fail(STORED, Fault(cut=stage.draw.choice([None, 5, len(content) // 2])))


def strange_server(stage: Stage) -> None:
    """The API, or the storage, breaks HTTP itself."""
    name = stage.draw.choice(list(ANSWERS))
    where = stage.draw.choice(["api", "storage"])
    stage.lie = f"the {where} {name}"
    address = stage.server.enter_context(raw_server(ANSWERS[name]))
    if where == "api":
        os.environ["CIVITAI_ENDPOINT"] = os.environ["HF_ENDPOINT"] = address
    else:
        stage.cell = f"{address}/tiny.safetensors"


KINDS: dict[str, Callable[[Stage], None]] = {
    "a field of an answer": strange_field,
    "a whole answer": strange_answer,
    "a digest": strange_digest,
    "names": strange_name,
    "headers of a file": strange_header,
    "redirects": strange_redirect,
    "content of a file": strange_content,
    "HTTP itself": strange_server,
}


def tell(seed: int, number: int, directory: Path) -> dict[str, Any]:
    """Tell lie *number* of *seed* in the empty *directory*, fetch, and say what came of it."""
    draw = random.Random(f"{seed}/{number}")
    kind = list(KINDS)[number % len(KINDS)]
    outside = directory / "outside"
    outside.mkdir()
    for name in ("victim", "victim.safetensors", "victim.part", "victim.safetensors.json", "victim.lock"):
        (outside / name).write_text("theirs")
    work = directory / "project"
    work.mkdir()
    os.chdir(work)
    line.SPELL, web.TIMEOUT = 0.5, (2, 1)
    download.MOST_BYTES, download.LOOK = 30_000_000, 1_000_000
    with model_sites() as sites, contextlib.ExitStack() as server:
        for name in ("HF_TOKEN_PATH", "XDG_CONFIG_HOME"):
            os.environ[name] = str(directory / "nowhere")
        os.environ |= {"CIVITAI_ENDPOINT": sites.site, "HF_ENDPOINT": sites.site}
        os.environ |= {"CIVITAI_API_TOKEN": TOKEN, "HF_TOKEN": HUB_TOKEN}
        digest = sites.publish(weights())
        sites.publish_on_hub(weights())
        cell = draw.choice([*CELLS, sites.url()] if kind in ("headers of a file", "content of a file") else CELLS)
        stage = Stage(draw, sites, outside, cell, digest[: draw.choice([0, 10, 64])], digest, server=server)
        KINDS[kind](stage)
        if stage.public:
            line.is_inside = lambda address: ipaddress.ip_address(address) != ipaddress.ip_address("127.0.0.1")
            look_up = socket.getaddrinfo
            socket.getaddrinfo = lambda host, *more, **how: look_up(
                "127.0.0.2" if str(host).endswith(".example") else host, *more, **how
            )
        before = _tree(directory, work)
        said = {"number": number, "kind": kind, "lie": printable(stage.lie), "cell": stage.cell, "pin": len(stage.pin)}
        said |= _outcome(stage)
        if _tree(directory, work) != before:
            said |= {"outcome": "outside", "why": str(_tree(directory, work))}
        return said


class Heard(logging.Handler):
    """What would reach a screen or a log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def faults(self) -> list[str]:
        text = "\n".join(self.lines)
        found = ["commands to the terminal in a log"] if text != printable(text) else []
        found += ["a traceback in a log"] if "Traceback" in text else []
        return found + (
            ["a secret in a log"] if any(secret in text for secret in (TOKEN, HUB_TOKEN, SIGNATURE)) else []
        )


def _outcome(stage: Stage) -> dict[str, str]:
    started = time.monotonic()
    heard = Heard()
    logging.getLogger().addHandler(heard)
    logging.getLogger("axbake").setLevel(logging.DEBUG)
    downloads = Path("checkpoints/downloads")
    try:
        found = fetch(parse_source(stage.cell), stage.pin, downloads, web=web.Web(sleep=lambda seconds: None))
        content = found.path.read_bytes()
        faults = [
            hashlib.sha256(content).hexdigest() != found.sha256 and "the file is not of its digest",
            not found.sha256.startswith(stage.pin) and "another file than the pin means",
            found.path.parent != downloads and "the file is elsewhere",
            re.fullmatch(r"[0-9a-f]{64}\.(safetensors|ckpt)", found.path.name) is None
            and "a name that is not a digest",
            stage.public and stage.sites.asked("storage") and "went inside",
            (record := json.dumps(found.record, ensure_ascii=False)) != printable(record) and "a record with commands",
            len(record) > 100_000 and "a record without end",
            bool(found.record.get("air")) and found.record["air"] != CELLS[0] and "a lying AIR",
            *heard.faults(),
        ]
        wrong = [fault for fault in faults if fault]
        said = {"outcome": "wrong" if wrong else "right", "why": "; ".join(map(str, wrong))}
    except AxbakeError as error:
        text = str(error)
        faults = [
            text != printable(text) and "commands to the terminal",
            len(text) > 5000 and f"{len(text)} characters",
            not text and "no words",
            any(secret in text for secret in (TOKEN, HUB_TOKEN, SIGNATURE)) and "a secret",
            *heard.faults(),
        ]
        wrong = [fault for fault in faults if fault]
        said = {
            "outcome": "wrong" if wrong else "refused",
            "why": f"{'; '.join(map(str, wrong))} {type(error).__name__}: {text}",
        }
    except BaseException:
        said = {"outcome": "traceback", "why": traceback.format_exc()}
    strange = [
        path.name
        for path in downloads.glob("*")
        if not re.fullmatch(r"\.?(unpinned-)?[0-9a-f]{16,64}\.[a-z.]+", path.name)
    ]
    if strange:
        said = {"outcome": "wrong", "why": f"files among the downloads: {strange}"}
    return said | {"seconds": f"{time.monotonic() - started:.1f}"}


def _tree(directory: Path, work: Path) -> dict[str, str]:
    """Every file that is not among the downloads, with its content."""
    files = (path for path in directory.rglob("*") if path.is_file() and work / "checkpoints" not in path.parents)
    return {str(path.relative_to(directory)): path.read_text(errors="replace") for path in files}


def _in_child(seed: int, number: int, answer: Any) -> None:
    sys.stderr.flush()
    held = peaks.count_anew()
    with tempfile.TemporaryDirectory() as directory:
        said = tell(seed, number, Path(directory).resolve())
        os.chdir("/")
    memory = peaks.peak() - held
    if memory > MOST_MEMORY:
        said |= {"outcome": "memory", "why": f"{memory / 2**30:.1f} GiB"}
    answer.send(said | {"memory": memory})
    answer.close()
    os._exit(0)  # servers that never end have threads that do not


def run(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """What came of *count* lies, each told in a process of its own."""
    context = multiprocessing.get_context("fork")
    outcomes = []
    for number in range(count):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_in_child, args=(seed, number, sender))
        child.start()
        sender.close()
        try:
            said = receiver.recv() if receiver.poll(LIMIT) else {"outcome": "hang", "why": f"{LIMIT} s"}
        except EOFError:
            said = {"outcome": "traceback", "why": "the process ended and printed nothing"}
        child.kill()
        child.join()
        outcomes.append({"number": number, "kind": list(KINDS)[number % len(KINDS)], "lie": "", "memory": 0} | said)
    return outcomes


GOOD, BAD = ("right", "refused"), ("wrong", "outside", "traceback", "hang", "memory")


def table(outcomes: list[dict[str, Any]]) -> str:
    """Counts by kind of lie."""
    counts = Counter((said["kind"], said["outcome"]) for said in outcomes)
    lines = [f"| lies about | told | {' | '.join([*GOOD, *BAD])} |", f"|---|{'---:|' * (1 + len(GOOD) + len(BAD))}"]
    for kind in [*KINDS, "all"]:
        row = [
            sum(n for (k, o), n in counts.items() if kind in (k, "all") and o == outcome) for outcome in [*GOOD, *BAD]
        ]
        lines.append(f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> int:
    """1 if a lie did harm."""
    parser = argparse.ArgumentParser("python -m tests.hostile.sites", description=__doc__)
    parser.add_argument("count", type=int, help="lies to tell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="what came of each")
    given = parser.parse_args()
    outcomes = run(given.count, given.seed)
    for said in outcomes:
        if given.show or said["outcome"] in BAD:
            print(json.dumps(said, ensure_ascii=True))
    print(table(outcomes))
    print(f"most memory: {max(said['memory'] for said in outcomes) / 2**20:.0f} MiB, servers included")
    return int(any(said["outcome"] in BAD for said in outcomes))


if __name__ == "__main__":
    sys.exit(main())
