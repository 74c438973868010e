"""What decides a job's result, and in words how one differs from another."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axbake.cache.store import Entry

Makers = Callable[[set[str]], Iterable["Entry"]]  # builds that made one of the contents with these SHA-256
FORMAT = 1  # of keys; another one finds nothing that was stored before
SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST = 60  # characters of a value in a sentence


@dataclass(frozen=True)
class Key:
    """All that decides a job's result: readable first, digests second."""

    step: str  # the rule's name
    component: str | None
    identity: dict[str, dict[str, Any]]  # settings: name -> value, code: module -> digest, tools: package -> version
    inputs: dict[str, str]  # input -> SHA-256 of its content
    outputs: dict[str, str]  # output -> file name: an ONNX graph names the file of its tensors

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: order of names does not count."""
        content = {"format": FORMAT, **asdict(self)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Step and component: `compile_model/unet`."""
        return f"{self.step}/{self.component}" if self.component else self.step

    @cached_property
    def parts(self) -> dict[tuple[str, str], Any]:
        """Everything in it by group and name; settings within settings as `precision/unet`."""
        groups = {**self.identity, "input": self.inputs, "output": self.outputs}
        return {(group, name): value for group, values in groups.items() for name, value in _flat(values)}


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def explain(key: Key, entries: Iterable["Entry"], makers: Makers | None = None) -> str:
    """Why *key* is new: what differs from the nearest earlier build of the same step and component, and what does not.

    An input that differs is traced to what made it differ, as far as the builds that made it are known.

    Args:
        entries: earlier builds; others than of this step and component are passed over.
        makers: gives the builds that made one of some contents; otherwise they are looked for among *entries*.
    """
    entries = list(entries)
    earlier = [entry for entry in entries if (entry.key.step, entry.key.component) == (key.step, key.component)]
    if not earlier:
        return f"first build of {key.name}"
    near = max(earlier, key=lambda entry: (_likeness(key, entry.key), entry.created)).key
    changes = _changes(
        key, near, makers or (lambda contents: (entry for entry in entries if made_any(entry, contents)))
    )
    if not changes:
        return f"{key.component or key.step}: as before; what was stored is gone or damaged"
    same = _unchanged(key, near)
    return f"{key.component or key.step}: {', '.join(changes)}" + (f"; {', '.join(same)} as before" if same else "")


def made_any(entry: "Entry", contents: set[str]) -> bool:
    """Whether one of the outputs of *entry* has one of these SHA-256."""
    return any(blob.sha256 in contents for blob in entry.outputs.values())


def _likeness(one: Key, other: Key) -> int:
    return sum(one.parts[part] == other.parts[part] for part in one.parts.keys() & other.parts.keys())


def _changes(new: Key, old: Key, makers: Makers, seen: frozenset[str] = frozenset()) -> list[str]:
    """What is other in *new* than in *old*, a phrase each. What *seen* contents come from was asked before."""
    phrases: dict[str, None] = {}  # the same prompt may come in through several inputs
    for part in [*new.parts, *(old.parts.keys() - new.parts.keys())]:
        group, name = part
        label = name if group in ("settings", "tools") else {"code": "code of"}.get(group, group) + f" {name}"
        if part not in old.parts or part not in new.parts:
            phrases[f"{label} is {'new' if part in new.parts else 'gone'}"] = None
        elif new.parts[part] != old.parts[part]:
            causes = _causes(old.parts[part], new.parts[part], makers, seen) if group == "input" else []
            phrases |= dict.fromkeys(causes or [_change(group, label, old.parts[part], new.parts[part])])
    return list(phrases)


def _causes(old: str, new: str, makers: Makers, seen: frozenset[str]) -> list[str]:
    """Why the job that made the content *new* did not make *old*; nothing if either's maker is unknown."""
    if new in seen:
        return []  # a job may give what it was given
    made = list(makers({old, new}))
    pairs = [
        (one.key, other.key)
        for one in made
        for other in made
        if one.key.name == other.key.name and made_any(one, {new}) and made_any(other, {old})
    ]
    return _changes(*max(pairs, key=lambda pair: _likeness(*pair)), makers, seen | {new}) if pairs else []


def _change(group: str, label: str, old: Any, new: Any) -> str:
    """One part that differs: in values where there are values."""
    if group == "code":
        return f"{label} changed"
    if group == "input" or all(isinstance(value, str) and SHA256.fullmatch(value) for value in (old, new)):
        return f"{label} differs"
    if isinstance(old, list) and isinstance(new, list):
        return _list_change(label.replace("_", " "), old, new)
    return f"{label}{':' if group != 'tools' else ''} {_shown(old)} → {_shown(new)}"


def _list_change(label: str, old: list, new: list) -> str:
    one = label.removesuffix("s")
    before, after = (Counter(json.dumps(value, sort_keys=True) for value in values) for values in (old, new))
    if before == after:
        return f"{label} in another order"
    if len(old) == len(new):
        places = [place for place, pair in enumerate(zip(old, new, strict=True), start=1) if pair[0] != pair[1]]
        return f"{one} {places[0]} changed" if len(places) == 1 else f"{len(places)} of {len(new)} {label} changed"
    counts = {"added": (after - before).total(), "removed": (before - after).total()}
    said = [f"{count} {one if count == 1 else label} {what}" for what, count in counts.items() if count]
    return ", ".join(said)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _unchanged(new: Key, old: Key) -> list[str]:
    """Inputs that are equal, then the parts of the identity that are."""
    inputs = [name for name, content in new.inputs.items() if old.inputs.get(name) == content]
    return inputs + [group for group, values in new.identity.items() if values and old.identity.get(group) == values]
