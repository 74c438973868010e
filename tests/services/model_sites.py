"""A server that plays Civitai and Hugging Face as their public APIs are documented, and a second host that plays their storage.

Civitai: https://developer.civitai.com/site/reference/model-versions, …/models, …/guide/errors; downloads redirect to a signed
address, as https://education.civitai.com/civitais-guide-to-downloading-via-api/ says. Hugging Face: what huggingface_hub
reads (`HfApi.model_info`, `hf_raise_for_status`); `resolve` redirects to storage. The storage refuses a request that has both a
signature and an Authorization header, as S3 and R2 do, and speaks ranges, ETags and If-Range.
"""

import hashlib
import json
import random
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "civitai-secret-5e0f"
HUB_TOKEN = "hf_secret_9a1c"
SIGNATURE = "signed-secret-77d2"
SIZE = 200_000  # bytes of a file, where it does not matter
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights(seed: int = 0, size: int = SIZE) -> bytes:
    """A safetensors file of *size* bytes; another one for each *seed*."""
    header = (
        json.dumps({"x": {"dtype": "U8", "shape": [size - 100], "data_offsets": [0, size - 100]}}).encode().ljust(92)
    )
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size - 100)


@dataclass
class Seen:
    """A request, as a host's log has it."""

    host: str  # site or storage
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in small letters
    status: int = 0


@dataclass
class Fault:
    """What goes wrong with one answer of the storage, or of whatever path it is put to."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of the body after which the connection ends
    body: bytes = b""
    ignore_range: bool = False
    hold: threading.Event | None = None  # the body goes on when it is set; `cut` bytes have come before


@dataclass
class Stored:
    """A file of the storage."""

    content: bytes
    etag: str | None
    modified: str | None = None


@dataclass
class Sites:
    """Both hosts: what they have, what goes wrong next, and what they were asked."""

    site: str = ""  # http://127.0.0.1:port
    storage: str = ""  # http://127.0.0.2:port
    files: dict[str, Stored] = field(default_factory=dict)  # name -> what the storage has
    api: dict[str, Any] = field(default_factory=dict)  # path at the site -> JSON, or (status, headers, JSON)
    downloads: dict[str, str] = field(default_factory=dict)  # path at the site -> name in the storage
    private: set[str] = field(default_factory=set)  # paths at the site that want a token
    faults: dict[str, deque[Fault]] = field(default_factory=dict)  # path -> for its next requests
    log: list[Seen] = field(default_factory=list)

    def put(self, name: str, content: bytes, *, etag: str | None = "", modified: str | None = None) -> str:
        """Give the storage a file; its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        self.files[name] = Stored(content, f'"{digest[:16]}"' if etag == "" else etag, modified)
        return digest

    def fail(self, path: str, *faults: Fault) -> None:
        """Let the next requests of *path* go wrong."""
        self.faults.setdefault(path, deque()).extend(faults)

    def url(self, name: str = "tiny.safetensors") -> str:
        """Where the storage has a file."""
        return f"{self.storage}/bucket/{name}"

    def asked(self, host: str = "", path: str = "") -> list[Seen]:
        """Requests of *host* whose path begins so."""
        return [seen for seen in self.log if seen.host.startswith(host) and seen.path.startswith(path)]

    def publish(self, content: bytes, *, name: str = "tiny.safetensors", primary: bool = True, **version: Any) -> str:
        """Put a file on Civitai: model 47274, version 102222; further calls add files to it. Its SHA-256."""
        digest = self.put(name, content)
        about = self.api.setdefault("/api/v1/model-versions/102222", civitai_version())
        about |= {key: value for key, value in version.items() if key not in ("metadata", "id", "type")}
        number = len(about["files"])
        path = f"/api/download/models/102222?file={number}" if number else "/api/download/models/102222"
        self.downloads[path] = name
        about["files"].append(
            {
                "id": 7000 + number,
                "name": name,
                "type": version.get("type", "Model"),
                "sizeKB": len(content) / 1024,
                "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"} | version.get("metadata", {}),
                "pickleScanResult": "Success",
                "virusScanResult": "Success",
                "hashes": {"AutoV2": digest[:10].upper(), "SHA256": digest.upper()},
                "primary": primary,
                "downloadUrl": f"https://civitai.com{path}",
            }
        )
        for known in (digest, digest[:10]):
            self.api[f"/api/v1/model-versions/by-hash/{known.upper()}"] = about
        self.api["/api/v1/models/47274"] = civitai_model(about)
        return digest

    def publish_on_hub(self, content: bytes, *, file: str = "tiny.safetensors", revision: str = "main") -> str:
        """Put a file into the repository someone/tiny of Hugging Face. Its SHA-256."""
        digest = self.put(file, content)
        lfs = {"sha256": digest, "size": len(content), "pointerSize": 134}
        sibling = {"rfilename": file, "size": len(content), "blobId": "0" * 40, "lfs": lfs}
        info = {"id": "someone/tiny", "author": "someone", "sha": COMMIT, "tags": [], "downloads": 0, "private": False}
        info |= {"siblings": [sibling], "cardData": {"license": "creativeml-openrail-m", "base_model": "a/base"}}
        self.api[f"/api/models/someone/tiny/revision/{revision}"] = info
        self.api["/api/models/someone/tiny"] = info
        self.downloads[f"/someone/tiny/resolve/{COMMIT}/{file}"] = file
        return digest

    def publish_folder_on_hub(self, contents: dict[str, bytes], *, small: tuple[str, ...] = (".json", ".txt")) -> None:
        """Put files into the repository someone/tiny, of which those with endings in *small* have no digest there."""
        for name, content in contents.items():
            self.publish_on_hub(content, file=name)
        siblings = []
        for name, content in contents.items():
            key = hashlib.sha256(name.encode()).hexdigest()
            digest = self.put(key, content)
            lfs = {} if name.endswith(small) else {"lfs": {"sha256": digest, "size": len(content)}}
            siblings.append({"rfilename": name, "size": len(content), **lfs})
            self.downloads[f"/someone/tiny/resolve/{COMMIT}/{name}"] = key
        self.api["/api/models/someone/tiny"]["siblings"] = siblings


def civitai_version() -> dict[str, Any]:
    """What the API says of a version; its files are added."""
    return {
        "id": 102222,
        "modelId": 47274,
        "name": "v4.0",
        "baseModel": "SD 1.5",
        "baseModelType": "Standard",
        "air": "urn:air:sd1:checkpoint:civitai:47274@102222",
        "status": "Published",
        "availability": "Public",
        "usageControl": "Download",
        "trainedWords": ["tinystyle"],
        "earlyAccessEndsAt": None,
        "model": {"name": "Tiny Mix!", "type": "Checkpoint", "nsfw": False, "poi": False},
        "files": [],
        "downloadUrl": "https://civitai.com/api/download/models/102222",
    }


def civitai_model(version: dict[str, Any]) -> dict[str, Any]:
    """What the API says of a model of that one version."""
    return {
        "id": 47274,
        "name": "Tiny Mix!",
        "type": "Checkpoint",
        "creator": {"username": "tinymaker"},
        "allowNoCredit": False,
        "allowCommercialUse": ["Image", "RentCivit"],
        "allowDerivatives": True,
        "allowDifferentLicense": False,
        "modelVersions": [version],
    }


def _handler(sites: Sites, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # header and body are written apart, and the second would wait 40 ms

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:  # http.server's name
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.seen = Seen(host, parts.path, parse_qs(parts.query), headers)
            sites.log.append(self.seen)
            faults = sites.faults.get(parts.path)
            fault = faults.popleft() if faults else Fault()
            if fault.status:
                self.answer(fault.status, fault.body, fault.headers)
            elif host == "storage":
                self.give(parts.path.removeprefix("/bucket/"), fault)
            else:
                self.ask(parts.path, fault)

        def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
            self.seen.status = status
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if fault and fault.cut is not None and fault.cut < len(body):
                self.wfile.write(body[: fault.cut])
                self.wfile.flush()
                if fault.hold:
                    fault.hold.wait(60)
                    self.wfile.write(body[fault.cut :])
                else:
                    self.close_connection = True
            else:
                self.wfile.write(body)

        def json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

        def ask(self, path: str, fault: Fault) -> None:
            whole = self.path if self.path in sites.downloads else path
            allowed = {f"Bearer {TOKEN}", f"Bearer {HUB_TOKEN}"}
            if path in sites.private and self.seen.headers.get("authorization") not in allowed:
                if self.seen.headers.get("content-type") == "application/json" or "/resolve/" in path:
                    said = {
                        "error": "Unauthorized",
                        "message": "The creator of this asset requires you to be logged in",
                    }
                    self.json(401, said)
                else:
                    self.answer(307, b"", {"Location": "/login?returnUrl=/models/47274&reason=download-auth"})
            elif whole in sites.downloads:
                signed = f"{sites.storage}/bucket/{sites.downloads[whole]}?X-Amz-Signature={SIGNATURE}"
                self.answer(307 if "/api/" in path else 302, b"", {"Location": signed})
            elif path in sites.api:
                said = sites.api[path]
                status, headers, content = said if isinstance(said, tuple) else (200, {}, said)
                self.json(status, content, headers)
            else:
                missing = {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/models/") else {}
                self.json(404, {"error": "Model not found"}, missing)

        def give(self, name: str, fault: Fault) -> None:
            if "authorization" in self.seen.headers and "X-Amz-Signature" in self.seen.query:
                self.answer(400, b"<Error><Code>InvalidArgument</Code></Error>", {"Content-Type": "application/xml"})
                return
            if name not in sites.files:
                self.answer(404, b"", {})
                return
            stored = sites.files[name]
            content, size = stored.content, len(stored.content)
            headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
            headers |= {"ETag": stored.etag or "", "Last-Modified": stored.modified or ""}
            wanted = re.fullmatch(r"bytes=(\d+)-", self.seen.headers.get("range", ""))
            condition = self.seen.headers.get("if-range")
            same = condition is None or condition in (stored.etag, stored.modified)
            if wanted is None or fault.ignore_range or not same:
                self.answer(200, content, headers | fault.headers, fault)
            elif int(wanted[1]) >= size:
                self.answer(416, b"", headers | {"Content-Range": f"bytes */{size}"} | fault.headers)
            else:
                start = int(wanted[1])
                place = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
                self.answer(206, content[start:], headers | place | fault.headers, fault)

    return Handler


@contextmanager
def model_sites() -> Iterator[Sites]:
    """Both hosts, while this lasts."""
    sites = Sites()
    servers = []
    for host, address in (("site", "127.0.0.1"), ("storage", "127.0.0.2")):
        server = ThreadingHTTPServer((address, 0), _handler(sites, host))
        server.daemon_threads = True
        server.block_on_close = False
        server.handle_error = lambda *whose: None  # type: ignore[method-assign]  # a client that hangs up is no fault of a test
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        setattr(sites, host, f"http://{address}:{server.server_port}")
    try:
        yield sites
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
