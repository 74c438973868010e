"""What decides a job's result."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

FORMAT = 1  # of keys; another one finds nothing that was stored before


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
        content = {"format": FORMAT} | {field.name: getattr(self, field.name) for field in fields(self)}
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
