"""The bytes of an offer: resumed where they broke off, their SHA-256 taken on the way, space looked for first.

What has arrived is kept in a `.part` file, which outlives errors and kills; beside it `.part.json` keeps the validator (ETag or
Last-Modified) that `If-Range` sends (RFC 9110, 13.1.5), so that a file that changed meanwhile starts anew.
"""

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
import time
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from axbake.cache.errors import FULL
from axbake.digest import write_atomically
from axbake.fetch.errors import Interrupted, NoRoom, NotAFile, WrongDigest
from axbake.fetch.forms import what_else
from axbake.fetch.line import SLOWEST
from axbake.fetch.offers import Offer
from axbake.fetch.web import Patience, Web, describe
from axbake.runtime.progress import SECONDS
from axbake.units import size_of

logger = logging.getLogger(__name__)
PIECE = 1 << 20  # bytes
MOST_BYTES = 128 * 2**30  # of a file; the largest checkpoints in one are of some 80 GB
LOOK = 64 * 2**20  # bytes after which the disk's room is looked at again
SPARE = 256 * 2**20  # bytes that stay free on the disk of a file whose size is not known


@dataclass
class Part:
    """The part of a file that has arrived."""

    path: Path
    bytes: int
    digest: "hashlib._Hash"
    validator: str  # for If-Range; empty if the site gives none
    resumed: bool = False  # whether it was put together of several answers

    @classmethod
    def open(cls, path: Path, *, whatever: bool) -> "Part":
        """What is at *path* from earlier; nothing, if it could not be told whether the file has changed meanwhile.

        Args:
            whatever: go on without a validator, since the SHA-256 is known and will tell.
        """
        validator = ""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            validator = _usable(json.loads(_note(path).read_text(encoding="utf-8"))["validator"])
        part = cls(path, 0, hashlib.sha256(), validator)
        size = path.stat().st_size if path.is_file() else 0
        if not size or not (validator or whatever):
            part.restart()
            return part
        logger.info("%s are here from an earlier download; continuing from there", size_of(size))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return cls(path, size, digest, validator, resumed=True)

    def restart(self) -> None:
        """Delete what has arrived."""
        self.path.unlink(missing_ok=True)
        _note(self.path).unlink(missing_ok=True)
        self.bytes, self.digest, self.validator, self.resumed = 0, hashlib.sha256(), "", False

    def remember(self, validator: str) -> None:
        """Keep *validator* for the next attempt, before the first byte that it is of."""
        if validator != self.validator:
            self.validator = validator
            write_atomically(_note(self.path), json.dumps({"validator": validator}))

    def remove_note(self) -> None:
        """The file is whole."""
        _note(self.path).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def download(web: Web, offer: Offer, part_path: Path, *, sha256: str | None, pin: str) -> str:
    """Bring *offer* to *part_path*, whole and verified.

    Args:
        sha256: that it must have, if known.
        pin: the beginning of it, or empty.

    Returns:
        its SHA-256.

    Raises:
        FetchError: what has arrived is kept if it can be used.
    """
    whatever = bool(sha256 or pin)
    part = Part.open(part_path, whatever=whatever)
    _receive_all(web, offer, part, whatever=whatever)
    found = part.digest.hexdigest()
    if not found.startswith(sha256 or pin) and part.resumed:
        logger.warning("%s: the parts of several downloads have SHA-256 %s; downloading it again", offer.name, found)
        part.restart()
        _receive_all(web, offer, part, whatever=whatever)
        found = part.digest.hexdigest()
    if not found.startswith(sha256 or pin):
        strange = what_else(part.path)
        part.restart()
        if strange:
            raise NotAFile(f"{offer.name}: the downloaded file is {strange}. {offer.howto}.")
        raise WrongDigest(
            f"{offer.name}: the downloaded file has SHA-256 {found}, wanted {sha256 or pin}. It was deleted. Run "
            "again. If the result is the same, the file on the site has changed: correct the column sha256 if you "
            "want the new file."
        )
    part.remove_note()
    return found


def _receive_all(web: Web, offer: Offer, part: Part, *, whatever: bool) -> None:
    """Ask until everything has arrived."""
    patience = Patience(offer.name, web.sleep)
    most = part.bytes
    while True:
        started = time.monotonic()
        try:
            if _receive(web, offer, part, whatever=whatever):
                return
        except Interrupted as failure:
            # Only bytes that had not come before count, and only as many as are worth the time that they took: else a server
            # that always begins anew, or gives a byte and breaks, is never given up.
            seconds = time.monotonic() - started + patience.pause
            if part.bytes - most > SLOWEST * seconds:
                patience.progressed()
            most = max(most, part.bytes)
            patience.after(failure)
            part.resumed = part.bytes > 0


def _receive(web: Web, offer: Offer, part: Part, *, whatever: bool) -> bool:
    """One answer's bytes; whether all have come."""
    headers = {}
    if not (part.validator or whatever):
        part.restart()  # nothing would tell whether the rest is of the same file
    if part.bytes:
        headers["Range"] = f"bytes={part.bytes}-"
        if part.validator:
            headers["If-Range"] = part.validator
    with web.open(offer.url, token=offer.token, headers=headers, at_site=offer.headers, howto=offer.howto) as answer:
        if answer.status_code == 416:
            return _beyond_the_end(answer, part)
        if answer.status_code == 206:
            _check_place(answer, part)
        elif part.bytes:
            logger.info("%s: the site sends the file from the beginning", offer.name)
            part.restart()
        total = _total(answer, part.bytes)
        _look_for_room(part, total, offer)
        part.remember(_validator(answer))
        with part.path.open("ab", buffering=0) as file:  # a full disk shows at the write, not at the close
            _append(answer, part, file, offer, total)
    if total is not None and part.bytes < total:
        raise Interrupted("the connection ended in the middle")
    return True


def _check_place(answer: requests.Response, part: Part) -> None:
    """Begin anew if the *answer* to a range does not go on where *part* ends, with the same file."""
    place = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", answer.headers.get("Content-Range", ""))
    same = not part.validator or _validator(answer) in ("", part.validator)
    if not place or int(place[1]) != part.bytes or int(place[2]) <= part.bytes or not same:
        part.restart()
        raise Interrupted("the file on the site has changed; starting from the beginning", 0.0)


def _beyond_the_end(answer: requests.Response, part: Part) -> bool:
    """What a 416 means: everything has arrived already, or what has arrived belongs to another file."""
    size = re.fullmatch(r"bytes \*/([0-9]{1,18})", answer.headers.get("Content-Range", ""))
    if part.bytes and size and int(size[1]) == part.bytes:
        return True
    part.restart()
    raise Interrupted("HTTP 416: the part on disk is not the beginning of this file", 0.0)


def _total(answer: requests.Response, have: int) -> int | None:
    """Bytes of the whole file; None if the site does not say."""
    if answer.status_code == 206:
        return int(answer.headers["Content-Range"].rpartition("/")[2])  # as `_check_place` has found it
    length = answer.headers.get("Content-Length", "")
    if not re.fullmatch("[0-9]+", length):
        return None
    return have + (int(length) if len(length) <= 18 else 10**18)  # Python reads no number of thousands of digits


def _validator(answer: requests.Response) -> str:
    """What tells this file from a later one: a strong ETag, or its date."""
    tag = answer.headers.get("ETag", "")
    return _usable(tag if tag.startswith('"') else answer.headers.get("Last-Modified", "") if not tag else "")


def _usable(validator: Any) -> str:
    """*validator* if it can be sent back in a header, else empty."""
    return validator if isinstance(validator, str) and re.fullmatch(r"[\x20-\x7e]{1,1000}", validator) else ""


def _look_for_room(part: Part, total: int | None, offer: Offer) -> None:
    """Raise if *total* bytes, or more than have come of a file of unknown size, are too many for a checkpoint or the disk."""
    if max(total or 0, part.bytes) > MOST_BYTES:
        part.restart()
        what = "says that it sends" if total else "has sent more than"
        raise NotAFile(
            f"{offer.name}: the site {what} {size_of(total or MOST_BYTES)}; no checkpoint is larger than"
            f" {size_of(MOST_BYTES)}. {offer.howto}."
        )
    free = shutil.disk_usage(part.path.parent).free
    if total is None and free < SPARE:
        raise NoRoom(
            f"{part.path.parent}: {size_of(part.bytes)} arrived of a file of unknown size, and {size_of(free)} of disk "
            f"space are free; axbake keeps {size_of(SPARE)} free. Free some space and run again; the received part is "
            "kept."
        )
    if total is not None and total - part.bytes > free:
        raise NoRoom(
            f"{part.path.parent}: {size_of(total - part.bytes)} are still to download, but only {size_of(free)} of "
            "disk space are free. Free some space, or make checkpoints/ a link to a directory on a larger disk."
        )


def _append(answer: requests.Response, part: Part, file: RawIOBase, offer: Offer, total: int | None) -> None:
    """Write what comes, and report how far it is."""
    started = told = time.monotonic()
    before = looked = part.bytes
    try:
        while piece := answer.raw.read1(PIECE):  # what there is, so that a kill loses nothing that came
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
            part.digest.update(piece)
            part.bytes += len(piece)
            if part.bytes - looked > LOOK and total is None:
                looked = part.bytes
                _look_for_room(part, total, offer)
            now = time.monotonic()
            if now - told >= SECONDS:
                told = now
                logger.info(
                    "%s: %s", offer.name, progress_line(part.bytes, total, (part.bytes - before) / (now - started))
                )
    except (HTTPError, requests.RequestException) as error:
        raise Interrupted(describe(error)) from None
    except OSError as error:
        if error.errno in FULL | {errno.EFBIG}:
            # What the file holds may be less than what was counted; the next run looks at the file itself.
            raise NoRoom(
                f"{part.path}: no room after {size_of(part.bytes)} of {size_of(total) if total else 'an unknown size'} "
                f"({errno.errorcode[error.errno or 0]}). Free some space and run again; the received part is kept."
            ) from None
        raise Interrupted(describe(error)) from None
    finally:
        answer.close()
    seconds, come = max(time.monotonic() - started, 1e-6), (part.bytes - before) / 1e6
    logger.info("%s: %s MB in %.1f s, %.1f MB/s", offer.name, f"{come:,.1f}", seconds, come / seconds)


def progress_line(done: int, total: int | None, rate: float) -> str:
    """How far a download is.

    Args:
        done: bytes.
        total: bytes, if known.
        rate: bytes a second.
    """
    if total is None:
        return f"{done / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s"
    left = f"{max(total - done, 0) / rate:,.0f} s left" if rate else "time left unknown"
    share = 100 * done // max(total, 1)
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({share} %), {rate / 1e6:.1f} MB/s, {left}"
