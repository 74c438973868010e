"""The index of a remote cache: of each entry the outputs, so that one small file says what is there."""

import json
from collections.abc import Mapping

from axbake.cache.entry import Blob
from axbake.cache.errors import Damaged
from axbake.cache.key import FORMAT
from axbake.cache.records import parse, quoted
from axbake.digest import is_sha256

NAME = "index.json"
LONGEST = 64 << 20  # bytes, of some 200,000 entries
MOST_NAME = 200  # characters of an output's name

Outputs = dict[str, Blob]  # by file name
Index = dict[str, Outputs]  # by key


def read_index(content: bytes) -> Index:
    """The index that is the *content* of its file; nothing if it is of another format of keys, which finds nothing anyway.

    Raises:
        Damaged
    """
    said = parse(content)
    if said.get("format") != FORMAT:
        return {}
    entries = said.get("entries")
    if not isinstance(entries, dict):
        raise Damaged(f"entries is {quoted(entries)}, wanted an object")
    return {key: _outputs(key, value) for key, value in entries.items()}


def index_text(index: Index) -> str:
    """What `read_index` reads."""
    entries = {
        key: {name: [blob.sha256, blob.size] for name, blob in outputs.items()}
        for key, outputs in sorted(index.items())
    }
    return json.dumps({"format": FORMAT, "entries": entries}, indent=0, ensure_ascii=False) + "\n"


def size_of_outputs(outputs: Mapping[str, Blob]) -> int:
    """Bytes of them."""
    return sum(blob.size for blob in outputs.values())


def _outputs(key: str, value: object) -> Outputs:
    if not is_sha256(key) or not isinstance(value, dict):
        raise Damaged(f"{quoted(key)} is {quoted(value)}, wanted outputs by a key of 64 hex digits")
    found: Outputs = {}
    for name, said in value.items():
        if len(name) > MOST_NAME or not isinstance(said, list) or len(said) != 2:
            raise Damaged(f"output {quoted(name)} is {quoted(said)}, wanted SHA-256 and bytes")
        try:
            found[name] = Blob(*said)
        except ValueError as error:
            raise Damaged(str(error)) from error
    return found
