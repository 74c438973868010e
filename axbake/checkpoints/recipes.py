"""Recipes: YAML files that name a merge of several checkpoints. `axbake.checkpoints.merging` does what they say."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import yaml

from axbake.digest import file_sha256
from axbake.errors import AxbakeError
from axbake.printable import shown
from axbake.root import shipped
from axbake.users_files import UnreadableFile, is_file, kind_of, read_yaml

SUFFIXES = (".yaml", ".yml")
SCHEMA = shipped("workflow/schemas/recipe.schema.yaml")
MOST_ALPHA = 10.0
MOST_FAULTS = 20  # in a message
UNET_BLOCKS = ("M00", *(f"{side}{number:02}" for side in ("IN", "OUT") for number in range(12)))
#: Names of the parts of a model that have a share of their own: those of SuperMerger, and two of its base's parts
BLOCKS = ("BASE", *UNET_BLOCKS, "text_encoder", "vae")


class RecipeError(AxbakeError):
    """A recipe cannot be used, or its checkpoints cannot be merged."""


@dataclass(frozen=True)
class Step:
    """One merge of two or three models, by their names."""

    name: str
    method: str  # weighted_sum or add_difference
    models: tuple[str, ...]  # a, b; of a difference also c
    alpha: float
    blocks: dict[str, float]

    def share(self, *blocks: str) -> float:
        """alpha of the first of *blocks* that has one of its own."""
        return next((self.blocks[block] for block in blocks if block in self.blocks), self.alpha)


@dataclass(frozen=True)
class Recipe:
    """A merge: checkpoints by name, and steps of which the last one's result is wanted."""

    path: Path
    checkpoints: dict[str, Path]
    steps: list[Step]


def is_recipe(path: Path) -> bool:
    """Whether the column checkpoint names a recipe, by its ending."""
    return path.suffix in SUFFIXES


def read_recipe(path: Path) -> Recipe:
    """The recipe in *path*; its checkpoints are there and are those that it means.

    Raises:
        RecipeError: lists what cannot be used, with its place.
    """
    try:
        content = read_yaml(path)
    except UnreadableFile as error:
        raise RecipeError(f"{error} Wanted a merge recipe in YAML.") from None
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    faults = _listed(
        f"{shown('/'.join(map(str, error.absolute_path)) or 'recipe')}: {shown(error.message, 200)}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(content)
    )
    faults = faults or _listed(itertools.chain(_step_faults(content), _file_faults(content["checkpoints"])))
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise RecipeError(f"{path}: this recipe cannot be used:\n{listed}\nSee docs/loras-and-merges.md.")
    steps = [
        Step(
            str(step.get("name", "")),
            step["method"],
            tuple(step[name] for name in "abc" if name in step),
            float(step["alpha"]),
            {block: float(alpha) for block, alpha in step.get("blocks", {}).items()},
        )
        for step in content["steps"]
    ]
    return Recipe(path, {name: Path(entry["path"]) for name, entry in content["checkpoints"].items()}, steps)


def _listed(faults: Iterator[str]) -> list[str]:
    """The first of *faults*, each short; what comes behind them is not computed."""
    found = [shown(fault, 400) for fault in itertools.islice(faults, MOST_FAULTS + 1)]
    return [*found[:MOST_FAULTS], "and more"] if len(found) > MOST_FAULTS else found


def _step_faults(content: dict) -> Iterator[str]:
    known, used = dict.fromkeys(content["checkpoints"]), set()
    last = content["steps"][-1].get("name")
    for number, step in enumerate(content["steps"], start=1):
        place = f"steps/{number}"
        given = [name for name in "abc" if name in step]
        wanted = ["a", "b", "c"] if step["method"] == "add_difference" else ["a", "b"]
        if given != wanted:
            yield f"{place}: {step['method']} of {', '.join(given)}; wanted {', '.join(wanted)}"
        yield from (
            f"{place}/{name}: '{shown(step[name])}' is not one of {_few(known)}"
            for name in given
            if step[name] not in known
        )
        used |= {step[name] for name in given}
        for block, alpha in {"alpha": step["alpha"], **step.get("blocks", {})}.items():
            if block != "alpha" and block not in BLOCKS:
                yield f"{place}/blocks/{shown(block)}: not one of {', '.join(BLOCKS)}"
            if isinstance(alpha, bool) or not abs(alpha) <= MOST_ALPHA:
                yield f"{place}/{shown(block)}: {shown(alpha)}, wanted a number from -{MOST_ALPHA:g} to {MOST_ALPHA:g}"
        if name := step.get("name"):
            if name in known:
                yield f"{place}/name: '{shown(name)}' appears twice"
            known[name] = None
    if unused := [name for name in known if name not in used and name != last]:
        yield f"no step uses {_few(unused)}"


def _few(names: Iterable[str]) -> str:
    """Some of *names*, for a message."""
    found = [shown(name, 40) for name in itertools.islice(names, 9)]
    return ", ".join(found[:8]) + (" …" if len(found) > 8 else "")


def _file_faults(checkpoints: dict) -> Iterator[str]:
    for name, entry in checkpoints.items():
        path, place = Path(entry["path"]), f"checkpoints/{shown(name)}: {shown(entry['path'])}"
        if path.suffix != ".safetensors":
            yield f"{place} is not a .safetensors file; only these can be merged"
        elif not is_file(path):
            yield f"{place} is {kind_of(path) or 'not there'}"
        elif not (found := file_sha256(path)).startswith(entry["sha256"].lower()):
            yield f"{place} has SHA-256 {found}, the recipe says {entry['sha256']}"
