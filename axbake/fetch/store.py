"""Downloads, each under its SHA-256: one file however many rows name it, whole or not there."""

import hashlib
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axbake.cache.files import sync
from axbake.cache.locks import lock
from axbake.digest import file_sha256, write_atomically
from axbake.fetch.download import download
from axbake.fetch.errors import NotAFile
from axbake.fetch.offers import Offer, find_offer
from axbake.fetch.sources import Source
from axbake.fetch.web import Web

logger = logging.getLogger(__name__)
DOWNLOADS = Path("checkpoints/downloads")  # in the project's directory


@dataclass(frozen=True)
class Fetched:
    """A downloaded file, and what is known of it."""

    path: Path
    sha256: str
    record: dict[str, Any]


def fetch(source: Source, pin: str, directory: Path = DOWNLOADS, *, web: Web | None = None) -> Fetched:
    """The file that *source* and *pin* mean, in *directory*; downloaded unless it is there.

    A pinned file that is there from the same source needs no network. Of several callers one downloads, the others wait.

    Args:
        pin: SHA-256, its first ten digits, or empty for what the source has now.

    Raises:
        FetchError
    """
    directory.mkdir(parents=True, exist_ok=True)
    if kept := _kept(source, pin, directory):
        return kept
    web = web or Web()
    offer = find_offer(web, source, pin)
    sha256 = pin if len(pin) == 64 else offer.sha256
    name = sha256 or f"unpinned-{hashlib.sha256(source.text.encode()).hexdigest()[:16]}"
    with lock(directory / f".{name}.lock", about=f"download of {offer.name}"):
        path = place_of(directory, sha256, source) if sha256 else None
        if path and is_whole(path):
            logger.info("%s is here already: %s", offer.name, path)
        else:
            logger.info("Fetching %s from %s", offer.name, source.text)
            part = directory / f"{name}.part"
            sha256 = download(web, offer, part, sha256=sha256, pin=pin)
            path = place_of(directory, sha256, source)
            check_form(part, source, offer.name)
            sync(part)
            part.replace(path)
            sync(directory)
        assert sha256 and path
        record = _record(source, offer, sha256, path)
        write_atomically(_record_of(path), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return Fetched(path, sha256, record)


def ask_sha256(source: Source, pin: str, *, web: Web | None = None) -> str | None:
    """SHA-256 of the file that *source* has, if its site tells it without a download."""
    return find_offer(web or Web(), source, pin).sha256


def place_of(directory: Path, sha256: str, source: Source) -> Path:
    """Where a download of that digest is kept."""
    return directory / f"{sha256}.{'ckpt' if source.pickled else 'safetensors'}"


def is_whole(path: Path) -> bool:
    """Whether a download is there, and has the digest that it is named by."""
    if not path.is_file():
        return False
    found = file_sha256(path)
    if found != path.stem:
        logger.warning("%s is damaged, its SHA-256 is %s; downloading it anew", path, found)
    return found == path.stem


def _kept(source: Source, pin: str, directory: Path) -> Fetched | None:
    """The download of an earlier time, if *pin* names it wholly and it was had from *source*."""
    if len(pin) != 64:
        return None
    path = place_of(directory, pin, source)
    try:
        record = json.loads(_record_of(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("source") != source.text or not is_whole(path):
        return None
    logger.info("%s is here already: %s", record.get("file_name", source.text), path)
    return Fetched(path, pin, record)


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _record(source: Source, offer: Offer, sha256: str, path: Path) -> dict[str, Any]:
    known = {"source": source.text, "file_name": offer.name, "sha256": sha256, "bytes": path.stat().st_size}
    return known | offer.about


def check_form(path: Path, source: Source, name: str) -> None:
    """Raise NotAFile, and remove *path*, if it is no file of the form that *source* says."""
    with path.open("rb") as file:
        start = file.read(16)
    header = int.from_bytes(start[:8], "little")
    safe = len(start) > 8 and start[8:9] == b"{" and header <= path.stat().st_size - 8
    pickled = start[:1] == b"\x80" or zipfile.is_zipfile(path)
    if pickled if source.pickled else safe:
        return
    path.unlink()
    told = "neither safetensors nor a pickle"
    kind = "a safetensors file" if safe else "a pickle" if pickled else f"{told} (it begins {start!r})"
    hint = ""
    if pickled and not source.pickled:
        hint = " Say so: an AIR then ends in .ckpt, a link to Civitai says format=PickleTensor, other addresses end in .ckpt."
    raise NotAFile(f"{source.text}: {name} is {kind}; wanted {'a pickle' if source.pickled else 'safetensors'}.{hint}")
