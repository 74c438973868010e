"""What a build cache tells of how fast this machine is: its builds, each with what it had to do.

An entry says what decided its result, and how long it took. What it had to do follows from the settings of the builds that made
what it read, and from the shapes in the headers of the weights. So entries of any age count, and nothing has to be kept for it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from safetensors import SafetensorError

from axbake.cache import Cache, Entry
from axbake.calibration.counting import count_branches
from axbake.families import FAMILIES
from axbake.forecast.networks import Network, network_of
from axbake.forecast.work import Bake, Work, is_step, threads_of, work_of
from axbake.networks.component import ROLES, Shapes
from axbake.weights.files import read_shapes

MOST = 2000  # builds that are looked at, the newest
LARGEST = 1e5  # of a number in a setting
NUMBERS = (
    "height",
    "width",
    "steps",
    "guidance_scale",
    "image_guidance_scale",
    "prompt_chunks",
)  # settings, alone, or in one of these:
GROUPS = ("columns", "picture")
#: (step, setting of it) -> what it says
SAID = {
    ("record_trajectories", "prompts"): "prompts",
    ("calibrate_denoiser", "samples"): "samples",
    ("compare_calibration", "samples"): "first",
    ("check_compiled", "samples"): "compared",
    ("calibrate_text_encoder", "prompts"): "texts",
}
SHARED = {"list_embeddings"}  # steps whose results are the same for models of every size
COMPONENTS = {one.name: one.role for family in FAMILIES.values() for one in family.components}
UNKNOWN = math.nan  # what is computed of it is unknown too
Facts = dict[str, Any]  # by name; the SHA-256 of weights by component


@dataclass(frozen=True)
class Build:
    """A build of the past."""

    step: str
    component: str | None
    work: Work
    seconds: float


def builds_in(cache: Cache, entries: Iterable[Entry], *, cores: int) -> Iterator[Build]:
    """The newest builds in *cache*, those of which is known what they had to do; the newest first.

    Args:
        entries: of the cache.
        cores: that jobs are taken to have had.
    """
    history = History(cache, entries, cores)
    for entry in history.newest:
        work = history.work_of(entry) if is_step(entry.key.step) else {}
        if work and math.isfinite(sum(work.values())):
            yield Build(entry.key.step, entry.key.component, work, entry.seconds)


class History:
    """The newest of *entries* of *cache*, and which of them made what others read."""

    def __init__(self, cache: Cache, entries: Iterable[Entry], cores: int):
        self.cache, self.cores = cache, cores
        self.newest = sorted(entries, key=lambda entry: entry.created, reverse=True)[:MOST]
        self.makers = {blob.sha256: entry for entry in reversed(self.newest) for blob in entry.outputs.values()}
        self._facts: dict[str, Facts] = {}  # by entry
        self._shapes: dict[str, Shapes] = {}  # by SHA-256 of weights

    def work_of(self, entry: Entry) -> Work:
        """What the build had to do; some of it is not a number where a setting is unknown.

        Nothing where its weights are unknown, and for one graph of several, since the build does not say how many.
        """
        if "/" in (entry.key.component or ""):
            return {}
        facts = self._facts_of(entry)
        number = {name: facts.get(name, UNKNOWN) for name in (*NUMBERS, *SAID.values())}
        networks = {name: self._network(name, facts) for name in COMPONENTS if name in facts}
        there = {network.role for network in networks.values()}
        networks |= {role: Network(role, UNKNOWN, UNKNOWN, UNKNOWN) for role in ROLES if role not in there}
        bake = Bake(
            networks=networks,
            steps=number["steps"],
            branches=UNKNOWN
            if math.isnan(number["guidance_scale"])
            else count_branches(number["guidance_scale"], facts.get("image_guidance_scale")),
            prompts=number["prompts"],
            samples=number["samples"],
            first=number["first"],
            compared=number["compared"],
            texts=number["texts"],
            precision=str(facts.get("precision")),
            emulated="emulator" in facts.get("compiler", "emulator"),
            threads=threads_of(networks.values(), self.cores),
        )
        try:
            return work_of(entry.key.step, entry.key.component, bake)
        except KeyError:  # of a component whose weights nobody knows
            return {}

    def _facts_of(self, entry: Entry) -> Facts:
        """What its settings say, and those of the builds before it."""
        digest = entry.key.digest
        if digest in self._facts:
            return self._facts[digest]
        self._facts[digest] = facts = _said(entry)
        facts |= {stem: blob.sha256 for name, blob in entry.outputs.items() if (stem := _component(name))}
        for name, content in entry.key.inputs.items():
            for sha256 in content.split():
                maker = self.makers.get(sha256)
                if component := _component(name):
                    facts.setdefault(component, sha256)
                elif maker and maker.key.step not in SHARED:
                    self._facts[digest] = facts = self._facts_of(maker) | facts
        return facts

    def _network(self, component: str, facts: Facts) -> Network:
        sha256 = facts[component]
        if sha256 not in self._shapes:
            self._shapes[sha256] = self._read(sha256)
        size = {name: facts.get(name, UNKNOWN) for name in ("height", "width", "prompt_chunks")}
        role = COMPONENTS[component]
        found = self._shapes[sha256]
        return network_of(found, role, **size) if found else Network(role, UNKNOWN, UNKNOWN, UNKNOWN)

    def _read(self, sha256: str) -> Shapes:
        """Shapes in the weights of that content; none if they are not in the cache any more."""
        made = self.makers[sha256].outputs.values() if sha256 in self.makers else ()
        for blob in made:
            if blob.sha256 == sha256 and self.cache.blobs.is_there(blob):
                try:
                    return read_shapes(self.cache.blobs.path(blob))
                except (OSError, SafetensorError):
                    return {}
        return {}


def _component(name: str) -> str | None:
    """The component whose weights are in a file of that name: `weights/unet.safetensors`."""
    path = PurePosixPath(name)
    return path.stem if path.suffix == ".safetensors" and path.stem in COMPONENTS else None


def _said(entry: Entry) -> Facts:
    """What the settings of a build say, as far as times depend on it; anyone may have written them."""
    settings = entry.key.identity.get("settings", {})
    groups = [settings, *(settings[name] for name in GROUPS if isinstance(settings.get(name), Mapping))]
    facts: Facts = {name: _number(group[name]) for group in groups for name in NUMBERS if name in group}
    for (step, name), what in SAID.items():
        if step == entry.key.step and name in settings:
            facts[what] = _number(settings[name])
    if entry.key.step == "record_trajectories":
        facts["precision"] = settings.get("precision")
    if entry.key.step in ("compile_model", "build_layers") and isinstance(settings.get("compiler"), Mapping):
        facts["compiler"] = settings["compiler"]
    return facts


def _number(value: Any) -> float:
    """A number, or how many there are in a list."""
    value = len(value) if isinstance(value, list) else value
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST
    return value if known else UNKNOWN
