"""Downloads, each under its SHA-256: one file however many rows name it, whole or not there."""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axbake.cache.errors import writing
from axbake.cache.files import sync
from axbake.cache.locks import lock
from axbake.digest import file_sha256, write_atomically
from axbake.fetch import answers
from axbake.fetch.download import download
from axbake.fetch.errors import FetchError, NotAFile
from axbake.fetch.forms import begins, is_pickle, is_safetensors, what_else
from axbake.fetch.offers import Offer
from axbake.fetch.sites import find_offer
from axbake.fetch.sources import Address
from axbake.fetch.web import Web
from axbake.printable import one_line

logger = logging.getLogger(__name__)
DOWNLOADS = Path("checkpoints/downloads")  # in the project's directory
MOST_RECORD = 1_000_000  # bytes of the note beside a download


@dataclass(frozen=True)
class Fetched:
    """A downloaded file, and what is known of it."""

    path: Path
    sha256: str
    record: dict[str, Any]


def fetch(source: Address, pin: str, directory: Path = DOWNLOADS, *, web: Web | None = None) -> Fetched:
    """The file that *source* and *pin* mean, in *directory*; downloaded unless it is there.

    A pinned file that is there from the same source needs no network. Of several callers one downloads, the others wait.

    Args:
        pin: SHA-256, its first ten digits, or empty for what the source has now.

    Raises:
        FetchError
    """
    pin = _checked_pin(pin)
    if source.unused:
        logger.warning("%s: parameters that change nothing here: %s", source.text, ", ".join(source.unused))
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        return _kept(source, pin, directory) or _fetched(source, pin, directory, web or Web())


def _fetched(source: Address, pin: str, directory: Path, web: Web) -> Fetched:
    """What the site has, downloaded unless a file of its digest is there."""
    offer = find_offer(web, source, pin)
    sha256 = answers.digest(pin) or answers.digest(offer.sha256)
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


def _checked_pin(pin: str) -> str:
    """*pin*, which becomes a part of paths, in small letters."""
    if not re.fullmatch(r"([0-9a-fA-F]{10}|[0-9a-fA-F]{64})?", pin):
        raise FetchError(f"{one_line(pin)!r} is not a SHA-256; wanted its 64 hex digits, or the first ten")
    return pin.lower()


def ask_sha256(source: Address, pin: str, *, web: Web | None = None) -> str | None:
    """SHA-256 of the file that *source* has, if its site tells it without a download."""
    return find_offer(web or Web(), source, _checked_pin(pin)).sha256


def place_of(directory: Path, sha256: str, source: Address) -> Path:
    """Where a download of that digest is kept."""
    return directory / f"{sha256}.{'ckpt' if source.pickled else 'safetensors'}"


def is_whole(path: Path) -> bool:
    """Whether a download is there, and has the digest that it is named by."""
    if not path.is_file():
        return False
    found = file_sha256(path)
    if found != path.stem:
        logger.warning("%s is damaged, its SHA-256 is %s; downloading it again", path, found)
    return found == path.stem


def _kept(source: Address, pin: str, directory: Path) -> Fetched | None:
    """The download of an earlier time, if *pin* names it wholly and it was had from *source*."""
    if len(pin) != 64:
        return None
    path = place_of(directory, pin, source)
    try:
        with _record_of(path).open("rb") as file:
            record = json.loads(file.read(MOST_RECORD))
    except (OSError, ValueError, RecursionError):  # none, or a damaged one
        return None
    if not isinstance(record, dict) or (record.get("source"), record.get("sha256")) != (source.text, pin):
        return None
    if not is_whole(path):
        return None
    logger.info("%s is here already: %s", record.get("file_name", source.text), path)
    return Fetched(path, pin, record)


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _record(source: Address, offer: Offer, sha256: str, path: Path) -> dict[str, Any]:
    known = {"source": source.text, "file_name": offer.name, "sha256": sha256, "bytes": path.stat().st_size}
    unused = {"unused_parameters": list(source.unused)} if source.unused else {}
    return offer.about | known | unused


def check_form(path: Path, source: Address, name: str) -> None:
    """Raise NotAFile, and remove *path*, if it is no checkpoint, or a pickle where *source* does not say that one may come."""
    safe, pickled = is_safetensors(path), is_pickle(path)
    if safe or (pickled and source.pickled):
        return
    if pickled:
        why = (
            f"{name} is a pickle; wanted safetensors. To allow a pickle, write an AIR that ends in .ckpt, a link to "
            "Civitai with format=PickleTensor, or another address that ends in .ckpt or #.ckpt."
        )
    else:
        why = f"{name} is {what_else(path) or f'neither safetensors nor a pickle (it begins {begins(path)})'}."
    path.unlink()
    raise NotAFile(f"{source.text}: {why}")
