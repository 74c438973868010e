"""A remote cache as the jobs of a run use it: one index a run, each hit fetched once, and at most one sentence of trouble."""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axbake.cache.blobs import Blobs
from axbake.cache.entry import Blob, Entry
from axbake.cache.errors import Damaged, trouble
from axbake.cache.files import content_sha256
from axbake.cache.key import Key
from axbake.cache.locks import lock
from axbake.cache.records import LONGEST, parse, quoted
from axbake.cache.remote import index as indexes
from axbake.cache.remote.errors import Distrusted, RemoteAddressError, RemoteTrouble, SigningError
from axbake.cache.remote.index import Index, Outputs
from axbake.cache.remote.places import Place, open_place
from axbake.cache.remote.signing import sign, signer
from axbake.cache.tree import Tree, open_plain
from axbake.digest import is_sha256
from axbake.units import size_of

logger = logging.getLogger(__name__)
OFF = 600  # s for which a remote that failed is not asked again
RECORD = 2 * LONGEST  # bytes of an entry's text and signature, as JSON
ROUNDS = 3  # in which an index is written until it has what was pushed
REMOTE, SIGNERS, UNSIGNED, KEY = (
    "AXBAKE_CACHE_REMOTE",
    "AXBAKE_CACHE_SIGNERS",
    "AXBAKE_CACHE_UNSIGNED",
    "AXBAKE_SIGNING_KEY",
)
PUSH = "AXBAKE_CACHE_PUSH"
AUTO = "auto"


@dataclass(frozen=True)
class Trust:
    """Whose entries a project takes."""

    signers: Path | None  # OpenSSH's allowed_signers
    unsigned: bool = False  # whether it takes those that nobody of them has signed

    def check(self, text: str, signature: str) -> str:
        """Who made the entry *text*; nobody known, where the project takes such.

        Raises:
            Distrusted
            SigningError: the file of signers cannot be used.
        """
        if self.signers is None:
            if not self.unsigned:
                raise Distrusted("the project names nobody whose entries it takes (cache_signers)")
            return ""
        try:
            return signer(text.encode(), signature, self.signers)
        except Distrusted:
            if not self.unsigned:
                raise
            return ""


@dataclass(frozen=True)
class Remote:
    """A remote cache, and where in the local one its index and what is half fetched are kept.

    Args:
        address: as `axbake.cache.remote.places.open_place` takes it.
        tree: of the local cache.
    """

    address: str
    trust: Trust
    tree: Tree

    @classmethod
    def from_environment(cls, tree: Tree) -> "Remote | None":
        """What AXBAKE_CACHE_REMOTE and the others say, which the workflow sets from its config; None without an address."""
        address = os.environ.get(REMOTE, "")
        if not address:
            return None
        signers = os.environ.get(SIGNERS, "")
        return cls(address, Trust(Path(signers) if signers else None, os.environ.get(UNSIGNED) == "1"), tree)

    @cached_property
    def place(self) -> Place:
        """Where it lies.

        Raises:
            RemoteAddressError
        """
        return open_place(self.address)

    @cached_property
    def _kept(self) -> Path:
        return self.tree.top / "remote" / hashlib.sha256(self.address.encode()).hexdigest()[:16]

    # The index ---------------------------------------------------------------------------------------------------

    def refresh(self) -> str:
        """Read the index for a run, and keep it for its jobs; what came of it, in a sentence without a full stop.

        Raises:
            RemoteAddressError, SigningError: the project's settings cannot be used.
        """
        place = self.place
        if self.trust.signers is None and not self.trust.unsigned:
            raise SigningError(
                "cache_remote is set, but cache_signers names nobody whose entries the project takes. Give a file of OpenSSH's"
                " format allowed_signers, or set cache_unsigned to true, which takes everybody's."
            )
        if self.trust.signers is not None and not self.trust.signers.is_file():
            self.trust.check("", "x")  # which says so
        try:
            content = place.read(indexes.NAME, indexes.LONGEST)
            index = indexes.read_index(content) if content is not None else {}
        except (RemoteTrouble, Damaged) as error:
            self._turn_off(str(error))
            return f"the remote build cache is not used: {error}"
        try:
            self.tree.top.mkdir(parents=True, exist_ok=True)
            self.tree.make(self._kept)
            self.tree.write(self._kept / indexes.NAME, indexes.index_text(index))
            self.tree.remove(self._kept / "off")
        except OSError as error:
            return f"the remote build cache is not used: {trouble(error, self.tree.top)}"
        return f"remote build cache: {place.address}, {len(index)} builds"

    def outputs(self, key: Key) -> Outputs | None:
        """What the index, as it was read for the run, says of *key*; None if nothing."""
        return None if self._is_off() else self._index.get(key.digest)

    @cached_property
    def _index(self) -> Index:
        try:
            return indexes.read_index(self.tree.read(self._kept / indexes.NAME, longest=indexes.LONGEST))
        except (OSError, Damaged):
            return {}

    def _is_off(self) -> bool:
        try:
            return float(self.tree.read(self._kept / "off", longest=64)) > time.time()
        except (OSError, ValueError, Damaged):
            return False

    def _turn_off(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self.tree.top.mkdir(parents=True, exist_ok=True)
            self.tree.make(self._kept)
            self.tree.write(self._kept / "off", f"{time.time() + OFF:.0f}")
        logger.debug("the remote build cache is off for %d s: %s", OFF, why)

    # Fetching ----------------------------------------------------------------------------------------------------

    def bring(self, key: Key, blobs: Blobs, entry_path: Path) -> bool:
        """Bring the build of *key* into the local cache, if the remote has it; whether it is there now.

        What is no entry of the key, damaged, or not signed by those whom the project takes entries of, is not brought, and the
        log says so. The first trouble of a run turns the remote off for it.
        """
        if self.outputs(key) is None:
            return False
        started = time.monotonic()
        try:
            entry, who = self._entry(key.digest)
            come = sum(self._bring_blob(blob, blobs) for blob in set(entry.outputs.values()))
            text = json.dumps(entry.record(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            self.tree.write(entry_path, text)
        except (RemoteTrouble, RemoteAddressError, SigningError) as error:
            self._turn_off(str(error))
            logger.warning("%s: %s; the remote build cache is not asked again for %d min", key.name, error, OFF // 60)
            return False
        except (Damaged, Distrusted) as error:
            logger.warning("%s: not taken from the remote build cache %s: %s", key.name, self.place.address, error)
            return False
        except OSError as error:
            logger.warning("%s: %s; not taken from the remote build cache", key.name, trouble(error, self.tree.top))
            return False
        seconds, by = time.monotonic() - started, f"signed by {who}" if who else "of an unknown signer"
        logger.info("%s: from the remote build cache, %s: %s in %.1f s", key.name, by, size_of(come), seconds)
        return True

    def _entry(self, digest: str) -> tuple[Entry, str]:
        """The entry of a key, and who signed it.

        Raises:
            Damaged: it is none, or of another key.
            Distrusted, RemoteTrouble
        """
        content = self.place.read(f"entries/{digest}.json", RECORD)
        if content is None:
            raise Damaged("the index names it, but it is not there")
        record = parse(content)
        text, signature = record.get("entry"), record.get("signature")
        if not isinstance(text, str) or not isinstance(signature, str):
            raise Damaged(f"entry is {quoted(text)}, signature {quoted(signature)}; wanted two texts")
        try:
            said = text.encode()
        except UnicodeEncodeError as error:
            raise Damaged(f"not a text: {error}") from error
        who = self.trust.check(text, signature)
        return Entry.parse(said, Path(f"{digest}.json")), who

    def _bring_blob(self, blob: Blob, blobs: Blobs) -> int:
        """Bring a blob that is not there; bytes that came.

        An earlier, broken download goes on where it ended.

        Raises:
            Damaged: the remote has other content.
            RemoteTrouble, OSError
        """
        with lock(self.tree.top / "locks" / blob.sha256, about="a blob", tree=self.tree):
            if blobs.damage(blob) is None:
                return 0
            self.tree.make(self._kept)
            part = self._kept / blob.sha256
            with self.tree.opened(self._kept) as directory:
                try:
                    opened = open_plain(directory, part.name, os.O_RDWR | os.O_CREAT, 0o600)
                except Damaged:
                    self.tree.remove(part)
                    opened = open_plain(directory, part.name, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                begun = self._receive(blob, opened)
                if (found := content_sha256(opened)) != blob.sha256:
                    os.ftruncate(opened, 0)
                    raise Damaged(f"the blob {blob.sha256[:12]}… has the SHA-256 {found[:12]}…")
            finally:
                os.close(opened)
            if blobs.keep(part).sha256 != blob.sha256:
                raise Damaged(f"the blob {blob.sha256[:12]}… changed while it was stored")
            self.tree.remove(part)
            return blob.size - begun

    def _receive(self, blob: Blob, opened: int) -> int:
        """Append to an open file what it lacks of *blob*; bytes that were there before."""
        begun = have = os.fstat(opened).st_size
        if have > blob.size:
            os.ftruncate(opened, 0)
            begun = have = 0
        os.lseek(opened, have, os.SEEK_SET)
        name = f"blobs/{blob.sha256[:2]}/{blob.sha256}"
        for piece in self.place.pieces(name, have, blob.size):
            have += len(piece)
            if have > blob.size:
                os.ftruncate(opened, 0)
                raise Damaged(f"more than the {blob.size} bytes of the blob {blob.sha256[:12]}…")
            left = memoryview(piece)
            while left:
                left = left[os.write(opened, left) :]
        if have < blob.size:
            raise RemoteTrouble(f"{self.address}: {have} of {blob.size} bytes of the blob {blob.sha256[:12]}… came")
        return begun

    # Pushing -----------------------------------------------------------------------------------------------------

    def lacking(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of *entries* that the remote does not have.

        Raises:
            RemoteTrouble, Damaged
        """
        there = self.read_index() if self.place.exists() else {}
        return [entry for entry in entries if entry.key.digest not in there]

    def push(self, entries: Iterable[Entry], blobs: Blobs, *, key: Path | None) -> int:
        """Write *entries*, with what they made, and name them in the index; bytes that were written.

        Args:
            key: that signs them; None: they are not signed.

        Raises:
            RemoteTrouble: what was written before stays, and counts the next time.
            SigningError
            Damaged: a blob of the local cache is not what it was.
        """
        if not self.place.writable:
            raise RemoteTrouble(f"{self.address}: a web server, which is read only; push to where it serves from")
        pushed: Index = {}
        come = 0
        there = self.place.sizes("blobs")
        files: dict[str, bytes | Path] = {}
        for entry in entries:
            for blob in entry.outputs.values():
                name = f"blobs/{blob.sha256[:2]}/{blob.sha256}"
                if there.get(name) == blob.size:
                    continue
                if damage := blobs.damage(blob, anew=True):
                    raise Damaged(f"{entry.key.name}: blob {blob.sha256[:12]}…: {damage}")
                files[name] = blobs.path(blob)
                there[name] = blob.size
                come += blob.size
            text = json.dumps(entry.record(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            signature = sign(text.encode(), key) if key else ""
            record = json.dumps({"entry": text, "signature": signature}, ensure_ascii=False) + "\n"
            # Behind its blobs, so that whoever finds it finds what it made.
            files[f"entries/{entry.key.digest}.json"] = record.encode()
            pushed[entry.key.digest] = dict(entry.outputs)
        if pushed:
            self.place.write(files)
            self._write_index(pushed)
        return come

    def push_built(self, entry: Entry, blobs: Blobs) -> None:
        """Push what was built just now, if the project wants that (`cache_push: auto`); trouble is a warning, and no more."""
        if os.environ.get(PUSH) != AUTO or self._is_off():
            return
        try:
            self.push([entry], blobs, key=signing_key())
        except (RemoteTrouble, RemoteAddressError, SigningError, Damaged) as error:
            self._turn_off(str(error))
            logger.warning("%s: %s; the result is not in the remote build cache", entry.key.name, error)

    def read_index(self) -> Index:
        """The index as it is now.

        Raises:
            RemoteTrouble, Damaged
        """
        content = self.place.read(indexes.NAME, indexes.LONGEST)
        return indexes.read_index(content) if content is not None else {}

    def _write_index(self, pushed: Index) -> None:
        """Name *pushed* in the index. Somebody else may write it at the same time, so it is looked at again."""
        for _ in range(ROUNDS):
            try:
                there = self.read_index()
            except Damaged as error:
                logger.warning("%s: the index is damaged (%s), and is written anew", self.address, error)
                there = {}
            if pushed.items() <= there.items():
                return
            self.place.write({indexes.NAME: indexes.index_text(there | pushed).encode()})
        if not pushed.items() <= self.read_index().items():
            raise RemoteTrouble(f"{self.address}: others write the index at the same time; push again")

    # Looking after it --------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """What is wrong with it, a sentence each: of every entry in the index, and all content.

        Raises:
            RemoteTrouble
        """
        faults = []
        for digest, outputs in self.read_index().items():
            try:
                entry, _ = self._entry(digest)
                if entry.outputs != outputs:
                    raise Damaged("the index says that it made something else")
                for blob in entry.outputs.values():
                    self._verify_blob(blob)
            except (Damaged, Distrusted) as error:
                faults.append(f"{digest[:12]}…: {error}")
        return faults

    def _verify_blob(self, blob: Blob) -> None:
        digest, have = hashlib.sha256(), 0
        for piece in self.place.pieces(f"blobs/{blob.sha256[:2]}/{blob.sha256}", 0, blob.size):
            digest.update(piece)
            have += len(piece)
            if have > blob.size:
                break
        if digest.hexdigest() != blob.sha256:
            raise Damaged(f"the blob {blob.sha256[:12]}… has other content, {have} bytes")

    def garbage(self, *, days: float) -> tuple[list[str], Index]:
        """Names of files that nobody needs, and the index without them.

        That is: entries that were built more than *days* ago, entries that cannot be read, what no entry that stays names, and
        whatever else lies there.

        Raises:
            RemoteTrouble
        """
        kept: Index = {}
        going = []
        sizes = self.place.sizes("entries") | self.place.sizes("blobs")
        for name in sorted(name for name in sizes if name.startswith("entries/")):
            digest = name.removeprefix("entries/").removesuffix(".json")
            try:
                if not is_sha256(digest) or name != f"entries/{digest}.json":
                    raise Damaged("not an entry's name")
                content = self.place.read(name, RECORD)
                text = parse(content or b"").get("entry")
                entry = Entry.parse(str(text).encode(), Path(f"{digest}.json"))
                age = time.time() - _seconds(entry.created)
            except (Damaged, UnicodeEncodeError):
                going.append(name)
                continue
            if age > days * 86400:
                going.append(name)
            else:
                kept[digest] = dict(entry.outputs)
        needed = {f"blobs/{blob.sha256[:2]}/{blob.sha256}" for outputs in kept.values() for blob in outputs.values()}
        going += sorted(name for name in sizes if name.startswith("blobs/") and name not in needed)
        return going, kept

    def prune(self, going: Iterable[str], kept: Index) -> None:
        """Remove the files *going*; the index first, so that nobody is led to what is gone.

        Raises:
            RemoteTrouble
        """
        self.place.write({indexes.NAME: indexes.index_text(kept).encode()})
        for name in going:
            self.place.remove(name)


def remote_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables for a project's jobs, by its *config*."""
    signers = str(config.get("cache_signers", ""))
    return {
        REMOTE: str(config.get("cache_remote", "")),
        SIGNERS: str(Path(signers).absolute()) if signers else "",
        UNSIGNED: "1" if config.get("cache_unsigned") is True else "",
        PUSH: str(config.get("cache_push", "")),
    }


def signing_key() -> Path | None:
    """The user's key that signs entries: AXBAKE_SIGNING_KEY."""
    said = os.environ.get(KEY, "")
    return Path(said) if said else None


def _seconds(created: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(created).timestamp()
