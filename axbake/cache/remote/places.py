"""Where a remote cache lies: a directory, an S3-like store, a dataset at Hugging Face, or a web server, which is read only.

obstore (Python's face of the Rust crate object_store) speaks to all but directories, which others may write to as well and are
read as the local cache is: no links, plain files alone. Hugging Face's files are read as a web server's, and written by its own
library, many in one commit.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from axbake.cache.errors import Damaged
from axbake.cache.files import Name, share
from axbake.cache.remote.errors import RemoteAddressError, RemoteTrouble
from axbake.cache.tree import ABSENT, Tree
from axbake.printable import one_line, shown

STORES = ("s3", "gs", "az")
WANTED = "a directory, s3://BUCKET/PATH (or gs://, az://), hf://datasets/OWNER/NAME, or https://…, which is read only"
CONNECT, REQUEST = timedelta(seconds=10), timedelta(seconds=60)
RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
PIECE = 4 << 20  # bytes of a request; what takes longer than REQUEST for them is too slow
FILES = 100  # of a commit at Hugging Face, as its documentation recommends («Storage limits»)
HUB = re.compile(r"datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?:/([\w./-]+))?/?")

Content = bytes | Path


class Place(Protocol):
    """A directory of files by name, `entries/….json`."""

    address: str  # for people
    writable: bool

    def exists(self) -> bool:
        """Whether it is there; if not, the first that is written makes it."""

    def read(self, name: str, most: int) -> bytes | None:
        """What is in a file of at most *most* bytes; None if it is not there.

        Raises:
            Damaged: it is larger, or no plain file.
            RemoteTrouble
        """

    def pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """What is in a file of *size* bytes from *start* on, in pieces; it may give more or less.

        Raises:
            RemoteTrouble
            Damaged: it is not there, or no plain file.
        """

    def write(self, files: Mapping[str, Content]) -> None:
        """Write *files*, each whole or not at all, in their order.

        Raises:
            RemoteTrouble
        """

    def sizes(self, under: str) -> dict[str, int]:
        """Bytes of each file below the directory *under*, by name.

        Raises:
            RemoteTrouble
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            RemoteTrouble
        """


def open_place(address: str) -> Place:
    """The place at *address*.

    Raises:
        RemoteAddressError
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return Directory(Path(address).expanduser().absolute())
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query:
        raise RemoteAddressError(
            f"cache_remote: {scheme}://{shown(parts.hostname or '')}…: has a user, a password or a query in it. Secrets belong"
            " into the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, or the like."
        )
    if scheme == "hf" and (hub := HUB.fullmatch(rest)) and ".." not in rest:
        return HubDataset(address, hub[1], hub[2] or "main", hub[3] or "")
    if scheme in STORES and rest.strip("/"):
        return Store(address, writable=True)
    if scheme in ("http", "https") and parts.hostname:
        return Store(address, writable=False)
    raise RemoteAddressError(f"cache_remote: {shown(address, 200)}; wanted {WANTED}.")


class Directory:
    """A directory, on any file system."""

    writable = True

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.tree = Tree(path)

    def _path(self, name: str) -> Path:
        return self.tree.top / name

    def exists(self) -> bool:
        """As `Place` says."""
        return self.tree.top.is_dir()

    def read(self, name: str, most: int) -> bytes | None:
        """As `Place` says."""
        with self._trouble():
            try:
                return self.tree.read(self._path(name), longest=most)
            except ABSENT:
                self._look()
                return None

    def pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """As `Place` says."""
        with self._trouble():
            try:
                with self.tree.plain(self._path(name)) as opened:
                    os.lseek(opened, start, os.SEEK_SET)
                    while piece := os.read(opened, PIECE):
                        yield piece
            except ABSENT:
                raise Damaged("not there") from None

    def write(self, files: Mapping[str, Content]) -> None:
        """As `Place` says."""
        with self._trouble():
            self.tree.top.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                path = self._path(name)
                self.tree.make(path.parent)
                if isinstance(content, bytes):
                    self.tree.write(path, content.decode())
                    continue
                with self.tree.opened(path.parent) as directory, content.open("rb") as file:
                    beside = Name(f".{path.name}.{os.urandom(4).hex()}", directory)
                    try:
                        share(file.fileno(), beside, source=None)
                        beside.chmod(self.tree.mode & 0o666)
                        os.rename(beside.name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
                    finally:
                        beside.unlink()

    def sizes(self, under: str) -> dict[str, int]:
        """As `Place` says."""
        found: dict[str, int] = {}
        with self._trouble():
            waiting = [self._path(under)]
            while waiting:
                for path, state in self.tree.contents(waiting.pop()):
                    if path.name.startswith("."):
                        continue
                    if path.is_dir() and not path.is_symlink():
                        waiting.append(path)
                    else:
                        found[str(path.relative_to(self.tree.top))] = state.st_size
        return found

    def remove(self, name: str) -> None:
        """As `Place` says."""
        with self._trouble():
            self.tree.remove(self._path(name))

    def _look(self) -> None:
        """Raise OSError if there is no such directory at all."""
        self.tree.top.stat()

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RemoteTrouble(f"{self.address}: {os.strerror(error.errno or 0)}") from error


class Store:
    """What obstore speaks to: an S3-like store, or a web server."""

    def __init__(self, address: str, *, writable: bool, headers: Mapping[str, str] | None = None) -> None:
        from obstore.store import from_url

        self.address, self.writable = address, writable
        client: dict[str, Any] = {"connect_timeout": CONNECT, "timeout": REQUEST}
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
        # The project or the user said http; nothing that is believed depends on it.
        client["allow_http"] = address.startswith("http://") or endpoint.startswith("http://")
        if headers:
            client["default_headers"] = dict(headers)
        with self._trouble():
            self._store: Any = from_url(address, client_options=client, retry_config=RETRIES)  # type: ignore[call-overload]

    def exists(self) -> bool:
        """As `Place` says: nobody can make a bucket or a dataset by writing into it."""
        return True

    def read(self, name: str, most: int) -> bytes | None:
        """As `Place` says."""
        import obstore
        from obstore.exceptions import NotFoundError

        with self._trouble():
            try:
                answer = obstore.get(self._store, name)
            except (NotFoundError, FileNotFoundError):
                return None
            if answer.meta["size"] > most:
                raise Damaged(f"{answer.meta['size']} bytes, wanted {most} at most")
            content = b""
            for piece in answer.stream(min_chunk_size=PIECE):
                content += bytes(piece)
                if len(content) > most:
                    raise Damaged(f"more than {most} bytes")
            return content

    def pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """As `Place` says."""
        import obstore
        from obstore.exceptions import BaseError, NotFoundError, NotSupportedError

        with self._trouble():
            try:
                while start < size and size > PIECE:
                    piece = bytes(obstore.get_range(self._store, name, start=start, end=min(start + PIECE, size)))
                    if not piece:
                        return
                    yield piece
                    start += len(piece)
            except (NotFoundError, FileNotFoundError):
                raise Damaged("not there") from None
            except BaseError as error:
                whole_files_alone = isinstance(error, NotSupportedError) or "non-partial" in str(error)
                if start or not whole_files_alone:
                    raise
            if start < size:
                try:
                    answer = obstore.get(self._store, name, options={"range": {"offset": start}} if start else None)
                except (NotFoundError, FileNotFoundError):
                    raise Damaged("not there") from None
                yield from map(bytes, answer.stream(min_chunk_size=PIECE))

    def write(self, files: Mapping[str, Content]) -> None:
        """As `Place` says."""
        import obstore

        with self._trouble():
            for name, content in files.items():
                obstore.put(self._store, name, content)

    def sizes(self, under: str) -> dict[str, int]:
        """As `Place` says."""
        import obstore

        with self._trouble():
            return {one["path"]: one["size"] for some in obstore.list(self._store, prefix=under) for one in some}

    def remove(self, name: str) -> None:
        """As `Place` says."""
        import obstore
        from obstore.exceptions import NotFoundError

        with self._trouble(), contextlib.suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, name)

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, ValueError, OSError) as error:
            raise RemoteTrouble(f"{self.address}: {_without_queries(error)}") from None


class HubDataset(Store):
    """A dataset at Hugging Face."""

    def __init__(self, address: str, repository: str, revision: str, path: str) -> None:
        from huggingface_hub import constants, get_token

        self.repository, self.revision, self.path = repository, revision, path
        token = get_token()
        base = f"{constants.ENDPOINT}/datasets/{repository}/resolve/{revision}/{path}".rstrip("/")
        super().__init__(base, writable=True, headers={"authorization": f"Bearer {token}"} if token else None)
        self.address = address

    def _name(self, name: str) -> str:
        return f"{self.path}/{name}".lstrip("/")

    def write(self, files: Mapping[str, Content]) -> None:
        """As `Place` says, `FILES` in a commit."""
        from huggingface_hub import CommitOperationAdd, HfApi

        added = [CommitOperationAdd(self._name(name), content) for name, content in files.items()]
        for start in range(0, len(added), FILES):
            self._commit(HfApi().create_commit, added[start : start + FILES], "axbake: results of builds")

    def sizes(self, under: str) -> dict[str, int]:
        """As `Place` says."""
        from huggingface_hub import HfApi

        found = self._asked(
            lambda: list(
                HfApi().list_repo_tree(
                    self.repository, self._name(under), recursive=True, repo_type="dataset", revision=self.revision
                )
            ),
            [],
        )
        start = len(self._name(""))
        return {one.path[start:].lstrip("/"): one.size for one in found if hasattr(one, "size")}

    def remove(self, name: str) -> None:
        """As `Place` says."""
        from huggingface_hub import CommitOperationDelete, HfApi

        self._commit(HfApi().create_commit, [CommitOperationDelete(self._name(name))], "axbake: pruned")

    def _commit(self, create: Any, operations: list[Any], message: str) -> None:
        how = {"repo_type": "dataset", "revision": self.revision, "commit_message": message}
        self._asked(lambda: create(self.repository, operations, **how), None)

    def _asked(self, ask: Any, absent: Any) -> Any:
        import requests
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        try:
            return ask()
        except EntryNotFoundError:
            return absent
        except (HfHubHTTPError, requests.RequestException, OSError, ValueError) as error:
            raise RemoteTrouble(f"{self.address}: {_without_queries(error)}") from None


def _without_queries(error: Exception) -> str:
    """What *error* says, on one line. A redirect's address can have a signature in its query."""
    return re.sub(r"\?[^\s\"')]+", "?…", one_line(str(error), 300))
