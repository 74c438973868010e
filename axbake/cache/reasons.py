"""In words how a job differs from those that were built before."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from axbake.cache.entry import Entry
from axbake.cache.key import Key
from axbake.digest import is_sha256
from axbake.printable import shown

Makers = Callable[[set[str]], Iterable[Entry]]  # builds that made one of the contents with these SHA-256
LONGEST = 60  # characters of a value in a sentence
MOST_PHRASES = 20  # in a sentence
MOST_TRACED = 40  # inputs whose makers are looked for; a chain of jobs has ten
MOST_MAKERS = 1000  # builds that are looked at for one of these; few made the same
MOST_COMPARED = 50  # of them with each other


def explain(key: Key, entries: Iterable[Entry], makers: Makers | None = None, *, last: str = "") -> str:
    """Why *key* is new: what differs from an earlier build of the same step and component, and what does not.

    That is the one that the job's model had last, or else the nearest, and of these the newest.

    An input that differs is traced to what made it differ, as far as the builds that made it are known.

    Args:
        entries: earlier builds; those of another step or component are skipped.
        makers: gives the builds that made one of some contents; otherwise they are looked for among *entries*.
        last: when the one was built that the model had last; empty: not known.
    """
    entries = list(entries)
    earlier = [entry for entry in entries if (entry.key.step, entry.key.component) == (key.step, key.component)]
    if not earlier:
        return f"first build of {key.name}"
    near = max(earlier, key=lambda entry: (entry.created == last, _likeness(key, entry.key), entry.created)).key
    differences = Differences(makers or (lambda contents: (entry for entry in entries if made_any(entry, contents))))
    changes = [shown(phrase, 400) for phrase in differences.between(key, near)]
    if not changes:
        return f"{key.component or key.step}: unchanged, but the stored result is missing or damaged"
    if len(changes) > MOST_PHRASES:
        changes[MOST_PHRASES:] = [f"{len(changes) - MOST_PHRASES} more"]
    same = _unchanged(key, near)
    return f"{key.component or key.step}: {', '.join(changes)}" + (f"; {', '.join(same)} as before" if same else "")


def made_any(entry: Entry, contents: set[str]) -> bool:
    """Whether one of the outputs of *entry* has one of these SHA-256."""
    return any(blob.sha256 in contents for blob in entry.outputs.values())


def _likeness(one: Key, other: Key) -> int:
    return sum(one.parts[part] == other.parts[part] for part in one.parts.keys() & other.parts.keys())


class Differences:
    """What is other in one key than in another, with each input that differs traced to what made it differ.

    Args:
        makers: gives the builds that made one of some contents.
    """

    def __init__(self, makers: Makers) -> None:
        self.makers = makers
        self.traced: dict[tuple[str, str], list[str]] = {}  # contents, old and new -> phrases

    def between(self, new: Key, old: Key) -> list[str]:
        """What is other in *new* than in *old*, a phrase each."""
        phrases: dict[str, None] = {}  # the same prompt may come in through several inputs
        for part in [*new.parts, *(old.parts.keys() - new.parts.keys())]:
            group, name = part
            label = name if group in ("settings", "tools") else {"code": "code of"}.get(group, group) + f" {name}"
            if part not in old.parts or part not in new.parts:
                phrases[f"{label} is {'new' if part in new.parts else 'gone'}"] = None
            elif new.parts[part] != old.parts[part]:
                causes = self._causes(old.parts[part], new.parts[part]) if group == "input" else []
                phrases |= dict.fromkeys(causes or [_change(group, label, old.parts[part], new.parts[part])])
        return list(phrases)

    def _causes(self, old: str, new: str) -> list[str]:
        """Why the job that made the content *new* did not make *old*; nothing if either's maker is unknown."""
        if (old, new) not in self.traced and len(self.traced) < MOST_TRACED:
            self.traced[old, new] = []  # a job may give what it was given
            made = list(islice(self.makers({old, new}), MOST_MAKERS))
            of_new, of_old = ([one.key for one in made if made_any(one, {content})] for content in (new, old))
            pairs = [
                (one, other)
                for one in of_new[:MOST_COMPARED]
                for other in of_old[:MOST_COMPARED]
                if one.name == other.name
            ]
            if pairs:
                self.traced[old, new] = self.between(*max(pairs, key=lambda pair: _likeness(*pair)))
        return self.traced.get((old, new), [])


def _change(group: str, label: str, old: Any, new: Any) -> str:
    """One part that differs: in values where there are values."""
    if group == "code":
        return f"{label} changed"
    if group == "input" or all(is_sha256(value) for value in (old, new)):
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
