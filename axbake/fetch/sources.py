"""What the column `checkpoint` may name besides a path, read without asking anybody.

https://host/file.safetensors                        any web server
https://civitai.com/models/47274?modelVersionId=102222   Civitai's page of a model or version, or its download link
urn:air:sd1:checkpoint:civitai:47274@102222          the same as an AIR (https://developer.civitai.com/site/guide/air)
hf://owner/repository/file[@revision]                a file of a Hugging Face repository, or its page there
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from axbake.fetch.errors import BadSource, Unpinned

CIVITAI_HOSTS = ("civitai.com", "www.civitai.com", "civitai.red", "civitai.green")
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Parameters of addresses that carry a secret, or a signature that ends in hours. A table is shared and kept.
SECRETS = re.compile(r"(?i)^(token|api[-_]?key|access[-_]?token|auth|authorization|password|sig|signature|x-amz-.*)$")
AIR = re.compile(
    r"(?:urn:)?air:(?P<ecosystem>[\w.-]+):(?P<kind>\w+):(?P<site>[\w-]+):(?P<model>[^@+]+?)"
    r"(?:@(?P<version>\d+))?(?:\+(?P<file>\d+))?(?:\.(?P<form>\w+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Source:
    """Where a file is to be had."""

    text: str  # the cell
    pickled: bool  # whether a pickle is meant; else a safetensors file


@dataclass(frozen=True)
class UrlSource(Source):
    """A file on any web server."""

    url: str


@dataclass(frozen=True)
class CivitaiSource(Source):
    """A model of Civitai's, a version of it, or one file of that version."""

    model: int | None
    version: int | None
    file: int | None
    wanted: tuple[tuple[str, str], ...] = ()  # of a download link: size (full, pruned), fp (fp16, fp32)


@dataclass(frozen=True)
class HubSource(Source):
    """A file in a model repository of Hugging Face."""

    repository: str
    file: str
    revision: str | None


def parse_source(cell: str) -> Source | None:
    """What *cell* names; None for a path on this machine.

    Raises:
        BadSource: an address of no form that is known, or one that holds a secret.
    """
    if re.match(r"(?i)(urn:)?air:", cell):
        return _air(cell)
    if cell.startswith("hf://"):
        return _hub_uri(cell)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", cell)
    if not scheme:
        return None
    if scheme[1].lower() not in ("https", "http"):
        raise BadSource(f"{cell!r}: {scheme[1]}:// is unknown; known: https://, hf://owner/repository/file, urn:air:…")
    return _address(cell)


def check_pin(row: dict, *, allow_unpinned: bool) -> str:
    """The SHA-256, or its first ten digits, that the table's *row* wants of what its source has; empty takes what is there.

    Raises:
        Unpinned: there is none, and config does not allow that.
    """
    if row["sha256"] or (allow_unpinned and not row["checkpoint"].startswith("http:")):
        return row["sha256"]
    model, source = row["model"], row["checkpoint"]
    raise Unpinned(
        f"{model}: the column sha256 is empty, and {source} may be another file tomorrow. `python -m axbake.add --pin {model}`"
        " asks for the SHA-256 of what is there now, and writes it into the row. Config entry fetch/allow_unpinned takes"
        " sources as they come, over https."
    )


def _address(cell: str) -> Source:
    try:
        parts = urlsplit(cell)
        host, query = (parts.hostname or "").lower(), dict(parse_qsl(parts.query, keep_blank_values=True))
        _ = parts.port
    except ValueError:
        raise BadSource("an address that cannot be read; wanted https://host/path") from None
    if not host:
        raise BadSource(f"{cell!r}: an address without a host")
    secrets = sorted(name for name in query if SECRETS.match(name))
    if parts.username or parts.password or secrets:
        what = f"the parameter {', '.join(secrets)}" if secrets else "a name or password"
        raise BadSource(
            f"https://{host}{parts.path}: {what} is a secret, and tables are shared. Take it out of the address; tokens come"
            " from CIVITAI_API_TOKEN, HF_TOKEN or your own files, as docs/getting-checkpoints.md says."
        )
    if host in CIVITAI_HOSTS:
        return _civitai(cell, parts.path, query)
    if host in HUB_HOSTS:
        return _hub_page(cell, parts.path)
    if parts.path in ("", "/"):
        raise BadSource(f"{cell!r}: no file, only a host")
    return UrlSource(cell, _is_pickle(parts.path), parts._replace(fragment="").geturl())


def _is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def _civitai(cell: str, path: str, query: dict[str, str]) -> Source:
    pickled = query.get("format", "").lower() == "pickletensor"
    wanted = tuple((name, query[name].lower()) for name in ("size", "fp") if query.get(name))
    if found := re.fullmatch(r"/models/(\d+)(?:/[^/]*)?/?", path):
        version = query.get("modelVersionId", "")
        if version and not version.isdigit():
            raise BadSource(f"{cell!r}: modelVersionId is no number")
        return CivitaiSource(cell, pickled, int(found[1]), int(version) if version else None, None, wanted)
    if found := re.fullmatch(r"/(?:api/download/models|model-versions)/(\d+)/?", path):
        file = query.get("fileId", "")
        return CivitaiSource(cell, pickled, None, int(found[1]), int(file) if file.isdigit() else None, wanted)
    raise BadSource(
        f"{cell!r}: no page of a model. Wanted https://civitai.com/models/NUMBER, with ?modelVersionId=NUMBER or without,"
        " https://civitai.com/api/download/models/NUMBER, or urn:air:sd1:checkpoint:civitai:MODEL@VERSION."
    )


def _air(cell: str) -> Source:
    found = AIR.fullmatch(cell)
    if not found:
        raise BadSource(f"{cell!r}: no AIR; wanted urn:air:sd1:checkpoint:civitai:MODEL@VERSION")
    if found["kind"].lower() not in ("checkpoint", "model"):
        raise BadSource(f"{cell!r}: a {found['kind']}; the column checkpoint takes a checkpoint")
    if found["site"].lower() != "civitai" or not found["model"].isdigit():
        raise BadSource(
            f"{cell!r}: of {found['site']}; known is civitai, with numbers. Of Hugging Face write hf://owner/repository/file."
        )
    version, file = (int(found[name]) if found[name] else None for name in ("version", "file"))
    return CivitaiSource(cell, _is_pickle(f".{found['form']}"), int(found["model"]), version, file)


def _hub_uri(cell: str) -> Source:
    # Revisions have slashes (refs/pr/1); so what stands after the last @ is one, and both places of it are taken.
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/([^@]+)(?:@(.+))?", cell)
    if not found or (found[2] and found[4]):
        raise BadSource(f"{cell!r}: wanted hf://owner/repository/file, or hf://owner/repository/file@revision")
    return HubSource(cell, _is_pickle(found[3]), found[1], found[3], found[2] or found[4])


def _hub_page(cell: str, path: str) -> Source:
    found = re.fullmatch(r"/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)", unquote(path))
    if not found:
        raise BadSource(
            f"{cell!r}: no file of a model repository. Wanted hf://owner/repository/file, or the address of the file's page."
        )
    return HubSource(cell, _is_pickle(found[3]), found[1], found[3], found[2])
