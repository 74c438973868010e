"""What the column `checkpoint` may name besides a path, read without asking anybody.

https://host/file.safetensors                        any web server
https://civitai.com/models/47274?modelVersionId=102222   Civitai's page of a model or version, or its download link
urn:air:sd1:checkpoint:civitai:47274@102222          the same as an AIR (https://developer.civitai.com/site/guide/air)
hf://owner/repository/file[@revision]                a file of a Hugging Face repository, or its page there
hf://owner/repository[@revision]                     the whole repository, for `axbake add` alone

Quotes around an address are taken off, and `https://` may be left out of Civitai's and Hugging Face's.
"""

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from axbake.fetch.errors import BadSource, Unpinned
from axbake.printable import one_line, printable
from axbake.users_files import absence

CIVITAI_HOSTS = ("civitai.com", "www.civitai.com", "civitai.red", "civitai.green")
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS = (".safetensors", ".safetensor", ".sft")
# Parameters of addresses that carry a secret, or a signature that ends in hours. A table is shared and kept.
SECRETS = re.compile(
    r"(?i)(.*[-_])?(token|api[-_]?key|access[-_]?key([-_]?id)?|secret|auth|authorization|password|passwd|sig|signature"
    r"|credential)|(aws|oss)accesskeyid|key-pair-id|x-(amz|goog|oss|cos|ms)-.*"
)
AIR = re.compile(
    r"(?:urn:)?air:(?P<ecosystem>[\w.-]+):(?P<kind>\w+):(?P<site>[\w-]+):(?P<model>[^@+]+?)"
    r"(?:@(?P<version>\d+))?(?:\+(?P<file>\d+))?(?:\.(?P<form>\w+))?",
    re.ASCII | re.IGNORECASE,
)
# A revision with slashes stands encoded in addresses; of pull requests and conversions Hugging Face also knows the plain form.
REVISION = r"refs/(?:pr/[0-9]+|convert/[^/@]+)|[^/@]+"
WANTED = "https://…, urn:air:…, hf://owner/repository/file"
QUOTES = "\"'`“”„‘’‚«»‹›<>"
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
NO_SCHEME = re.compile(rf"(?i)(?://)?(?:{'|'.join(map(re.escape, CIVITAI_HOSTS + HUB_HOSTS))})(?::[0-9]+)?(?:[/?#]|$)")
# The first folder of a path is seldom called like this.
HOST = re.compile(
    r"(?i)(?://)?[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:com|org|net|io|ai|co|cn|dev|app|cloud|eu|de|jp)(?::[0-9]+)?/"
)


@dataclass(frozen=True)
class Address:
    """Where a file is to be fetched from."""

    text: str  # the cell, without quotes around it
    pickled: bool  # whether a pickle may come; else a safetensors file
    unused: tuple[str, ...] = field(default=(), kw_only=True)  # parameters that change nothing


@dataclass(frozen=True)
class WebAddress(Address):
    """A file on any web server."""

    url: str


@dataclass(frozen=True)
class CivitaiAddress(Address):
    """A model of Civitai's, a version of it, or one file of that version."""

    model: int | None
    version: int | None
    file: int | None
    wanted: tuple[tuple[str, str], ...] = ()  # of a download link: type, size (full, pruned), fp (fp16, fp32)


@dataclass(frozen=True)
class HubAddress(Address):
    """A file in a model repository of Hugging Face."""

    repository: str
    file: str
    revision: str | None


@dataclass(frozen=True)
class HubFolder(Address):
    """A whole model repository of Hugging Face, which is a diffusers folder."""

    repository: str
    revision: str | None


def parse_source(cell: str) -> Address | None:
    """What *cell* names; None for a path on this machine.

    Raises:
        BadSource: an address of no form that is known, or one that holds a secret; a path as only a shell understands it.
    """
    whole = re.sub(r"[\n\t]", "", printable(cell)).strip().strip(INVISIBLE).strip()
    text = whole.strip(QUOTES).strip()
    if re.match(r"(?i)(urn:)?air:", text):
        return _air(text)
    if re.match(r"(?i)hf://", text):
        return _hub_uri(text)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        if scheme[1].lower() not in ("https", "http"):
            raise _other_scheme(text, scheme[1].lower())
        return _address(text, text)
    if NO_SCHEME.match(text) and absence(Path(whole)):
        return _address(text, f"https://{text.removeprefix('//')}")
    if (mistake := _mistake(whole, text)) and absence(Path(whole)):
        raise BadSource(mistake)
    return None


def path_mistake(cell: str) -> str:
    """What is wrong with *cell* as the path of a file that is not fetched; empty if nothing is."""
    try:
        address = parse_source(cell)
    except BadSource as error:
        return str(error)
    if address is None:
        return ""
    return (
        f"{_quoted(cell)!r}: an address. axbake downloads only the column checkpoint. Download this file yourself and "
        "write its path."
    )


def check_pin(row: dict, *, allow_unpinned: bool) -> str:
    """The SHA-256, or its first ten digits, that the table's *row* wants of what its address has; empty takes what is there.

    Raises:
        Unpinned: there is none, and config does not allow that.
    """
    model, source = row["model"], row["checkpoint"]
    address = parse_source(source)
    if isinstance(address, HubFolder):
        raise BadSource(
            f"{model}: {_quoted(source)} is a whole repository, and a row names one file. `axbake add {_quoted(source)}`"
            " downloads the repository, and writes a row with its folder."
        )
    if row["sha256"]:
        return row["sha256"]
    plain = isinstance(address, WebAddress) and urlsplit(address.url).scheme == "http"
    if allow_unpinned and not plain:
        return ""
    raise Unpinned(
        f"{model}: the column sha256 is empty, and the file at {_quoted(source)} may change. `axbake add --pin "
        f"{model}` finds out the SHA-256 of the current file and writes it into the row. The config entry "
        "fetch/allow_unpinned allows addresses without it, over https."
    )


def _quoted(text: str) -> str:
    """*text* for an error: bounded, and without what may be a secret."""
    shown = re.sub(r"//[^/@]*@", "//…@", text)
    return one_line(re.sub(r"[?#].*=.*", "?…", shown, flags=re.DOTALL) if _secrets(shown) else shown)


def _secrets(text: str) -> list[str]:
    """Names of parameters behind *text*'s ? or # that hold secrets."""
    pairs = re.split(r"[?&;#]", text)[1:]
    return sorted({name for name in (pair.partition("=")[0] for pair in pairs) if SECRETS.fullmatch(unquote(name))})


def _other_scheme(text: str, scheme: str) -> BadSource:
    if scheme == "file":
        return BadSource(f"{_quoted(text)!r}: a file:// address. Write the path: {unquote(urlsplit(text).path)}.")
    return BadSource(f"{_quoted(text)!r}: {scheme}:// is unknown; known: {WANTED}")


@functools.lru_cache(4096)  # the paths of a table are asked about for every job
def _mistake(whole: str, text: str) -> str:
    """What is wrong with *whole* if it is a mistyped address, or a path with something around it; else empty.

    Args:
        text: the same without quotes.
    """
    if re.match(r"(?i)(https?|hf)(:[\\/]*|//)[\w.[-]|https?:", text):
        return f"{_quoted(text)!r}: an address must begin with https:// or hf://."
    if found := re.fullmatch(r"(?i)civitai:([0-9]+)(@[0-9]+)?", text):
        return f"{text!r}: wanted urn:air:sd1:checkpoint:civitai:{found[1]}{found[2] or '@VERSION'}"
    if HOST.match(text) and absence(Path(text.partition("/")[0] or text)):
        plain = _quoted(text.removeprefix("//"))
        return (
            f"{_quoted(text)!r}: this looks like an address without https://. Write https://{plain}, or ./{plain} "
            "if it is a path."
        )
    if text != whole:
        return f"{one_line(whole)!r}: quotes around a path. Write it without: {one_line(text)}"
    if home := re.match(r"~[^/]*/|\$\{?\w+\}?/|%\w+%[\\/]", text):
        try:
            meant = str(Path(text).expanduser()) if text.startswith("~") else ""
        except RuntimeError:  # no such user
            meant = ""
        hint = f"Write {one_line(meant)}" if meant and meant != text else "Write the whole path"
        return f"{one_line(text)!r}: {home[0]} works in a shell, but not in a table. {hint}."
    if drive := re.match(r"([A-Za-z]):[\\/]", text):
        wsl = one_line(f"/mnt/{drive[1].lower()}/" + text[3:].replace("\\", "/"))
        return f"{one_line(text)!r}: a Windows path. Write the file's path on Linux; in WSL: {wsl}."
    return ""


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _address(cell: str, url: str) -> Address:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().rstrip(".")
        query = parse_qsl(parts.query, keep_blank_values=True)
        _ = parts.port
    except ValueError:
        raise BadSource("an address that cannot be read; wanted https://host/path") from None
    if not host:
        raise BadSource(f"{_quoted(cell)!r}: an address without a host")
    secrets = _secrets(url)
    if parts.username or parts.password or secrets:
        what = f"the parameter {', '.join(secrets)}" if secrets else "a name or password"
        raise BadSource(
            f"https://{host}{one_line(parts.path)}: {what} is a secret, and people share tables. Remove it from the "
            "address. axbake takes tokens from CIVITAI_API_TOKEN, HF_TOKEN or your own files; see "
            "docs/getting-checkpoints.md."
        )
    if host in CIVITAI_HOSTS:
        return _civitai(cell, parts.path, query)
    if host in HUB_HOSTS:
        return _hub_page(cell, parts.path, query)
    if parts.path in ("", "/") and not parts.query:
        raise BadSource(f"{_quoted(cell)!r}: only a host, without a file")
    pickled = any(map(_is_pickle, [parts.path, parts.fragment, *(value for _, value in query)]))
    return WebAddress(cell, pickled, parts._replace(fragment="").geturl())


def _is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def _civitai(cell: str, path: str, query: list[tuple[str, str]]) -> Address:
    given: dict[str, str] = {}
    for name, value in query:
        if (first := given.setdefault(name.lower(), value)) != value:
            twice = f"{one_line(name, 40)} appears twice, as {one_line(first)!r} and {one_line(value)!r}"
            raise BadSource(f"{_quoted(cell)!r}: {twice}. Leave out one.")
    model = re.fullmatch(r"(?:/api/v1)?/models/([0-9]{1,18})(?:/.*)?", path)
    version = re.fullmatch(r"(?:/api/download/models|(?:/api/v1)?/model-versions)/([0-9]{1,18})/?", path)
    if not (model or version):
        raise BadSource(
            f"{_quoted(cell)!r}: not the page of a model. Wanted https://civitai.com/models/NUMBER, with ?modelVersionId=NUMBER"
            " or without, https://civitai.com/api/download/models/NUMBER, or urn:air:sd1:checkpoint:civitai:MODEL@VERSION."
        )
    numbers = {}
    for name in ("modelVersionId", "fileId") if model else ("fileId",):
        if value := given.get(name.lower(), ""):
            numbers[name] = _number(value)
            if numbers[name] is None:
                raise BadSource(f"{_quoted(cell)!r}: {name} is not a number")
    form, kind = given.get("format", "").lower(), given.get("type", "").lower()
    if form not in ("", "safetensor", "pickletensor"):
        raise BadSource(f"{_quoted(cell)!r}: format={one_line(given['format'])}; wanted SafeTensor or PickleTensor")
    if kind not in ("", "model", "pruned model"):
        raise BadSource(
            f"{_quoted(cell)!r}: type={one_line(given['type'])}; the column checkpoint takes a checkpoint, type=Model. "
            "For a VAE, download the file and give its path in the column vae."
        )
    wanted = tuple((name, given[name].lower()) for name in ("type", "size", "fp") if given.get(name))
    used = {*dict(wanted), "format", *(name.lower() for name in numbers)}
    unused = tuple(dict.fromkeys(one_line(name, 40) for name, _ in query if name.lower() not in used))
    found = numbers.get("modelVersionId") if model else _number(version[1] if version else None)
    return CivitaiAddress(
        cell,
        form == "pickletensor",
        _number(model[1]) if model else None,
        found,
        numbers.get("fileId"),
        wanted,
        unused=unused,
    )


def _air(cell: str) -> Address:
    found = AIR.fullmatch(cell)
    if not found:
        raise BadSource(f"{one_line(cell)!r}: not an AIR; wanted urn:air:sd1:checkpoint:civitai:MODEL@VERSION")
    if found["kind"].lower() not in ("checkpoint", "model"):
        raise BadSource(f"{one_line(cell)!r}: a {found['kind']}; the column checkpoint takes a checkpoint")
    model = _number(found["model"])
    if found["site"].lower() != "civitai" or model is None:
        raise BadSource(
            f"{one_line(cell)!r}: an AIR of {found['site']}; axbake knows only civitai, with numbers. For Hugging "
            "Face, write hf://owner/repository/file."
        )
    form = f".{found['form']}".lower() if found["form"] else SAFETENSORS[0]
    if form not in (*SAFETENSORS, *PICKLES):
        raise BadSource(f"{one_line(cell)!r}: ends in {form}; wanted .safetensors, or .ckpt for a pickle")
    version, file = (_number(found[name]) for name in ("version", "file"))
    if any(found[name] and _number(found[name]) is None for name in ("version", "file")):
        raise BadSource(f"{one_line(cell)!r}: a number of more than 18 digits")
    return CivitaiAddress(cell, form in PICKLES, model, version, file)


def _hub_uri(cell: str) -> Address:
    text, _, tail = cell.partition("?")
    if secrets := _secrets(cell):
        raise BadSource(f"{one_line(text)}: the parameter {', '.join(secrets)} is a secret, and people share tables.")
    if whole := re.fullmatch(rf"(?i:hf)://([^/@]+/[^/@]+?)(?:@({REVISION}))?/?", text):
        return _hub_folder(cell, whole[1], whole[2])
    found = re.fullmatch(rf"(?i:hf)://([^/@]+/[^/@]+)(?:@({REVISION}))?/([^@]+)(?:@(.+))?", text)
    if not found or (found[2] and found[4]):
        raise BadSource(f"{_quoted(cell)!r}: wanted hf://owner/repository/file, or hf://owner/repository/file@revision")
    # As huggingface_hub reads it: the revision is encoded, the file's name is not.
    return _hub(cell, found[1], found[3], found[2] or found[4], parse_qsl(tail, keep_blank_values=True))


def _hub_page(cell: str, path: str, query: list[tuple[str, str]]) -> Address:
    if whole := re.fullmatch(rf"/([^/]+/[^/]+?)(?:/tree/({REVISION}))?/?", path):
        return _hub_folder(cell, unquote(whole[1]), whole[2])
    # `raw` is what the repository's history has: of a large file a pointer to it, which nobody means.
    found = re.fullmatch(rf"/([^/]+/[^/]+)/(?:blob|resolve|raw)/({REVISION})/(.+)", path)
    if not found:
        raise BadSource(
            f"{_quoted(cell)!r}: not a file of a model repository. Wanted hf://owner/repository/file, or the address of the"
            " file's page."
        )
    return _hub(cell, unquote(found[1]), unquote(found[3]), found[2], query)


def _hub_folder(cell: str, repository: str, revision: str | None) -> Address:
    _check_repository(cell, repository)
    return HubFolder(cell, pickled=False, repository=repository, revision=unquote(revision) if revision else None)


def _check_repository(cell: str, repository: str) -> None:
    kind = repository.partition("/")[0]
    if kind in ("datasets", "spaces"):
        raise BadSource(f"{_quoted(cell)!r}: of {kind}; wanted a model repository, owner/repository")


def _hub(cell: str, repository: str, file: str, revision: str | None, query: list[tuple[str, str]]) -> Address:
    """Args: revision: as it stands in the address, encoded."""
    _check_repository(cell, repository)
    if any(part in ("", ".", "..") for part in file.split("/")):
        raise BadSource(f"{_quoted(cell)!r}: {one_line(file)!r} is not the name of a file in a repository")
    unused = tuple(dict.fromkeys(one_line(name, 40) for name, _ in query if name != "download"))
    meant = unquote(revision) if revision else None
    return HubAddress(cell, _is_pickle(file), repository, file, meant, unused=unused)
