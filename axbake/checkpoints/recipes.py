"""Recipes: YAML files that name a merge of several checkpoints. `axbake.checkpoints.merging` does what they say."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from axbake.digest import file_sha256
from axbake.errors import AxbakeError

SUFFIXES = (".yaml", ".yml")
SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "recipe.schema.yaml"
MOST_BYTES = 1_000_000  # of a recipe
MOST_ALPHA = 10.0
UNET_BLOCKS = ("M00", *(f"{side}{number:02}" for side in ("IN", "OUT") for number in range(12)))
#: Names of the parts of a model that have a share of their own: those of SuperMerger, and two of its base's parts
BLOCKS = ("BASE", *UNET_BLOCKS, "text_encoder", "vae")
FAULTS = (
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)  # PyYAML's, besides its own


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
    content = _load(path)
    schema = yaml.safe_load(SCHEMA.read_text())
    faults = [
        f"{'/'.join(map(str, error.absolute_path)) or 'recipe'}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(content)
    ]
    faults = faults or [*_step_faults(content), *_file_faults(content["checkpoints"])]
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


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes; at most {MOST_BYTES}")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, *FAULTS) as error:
        raise RecipeError(f"{path}: {str(error)[:300]}. Wanted a recipe of a merge in YAML.") from None


def _step_faults(content: dict) -> Iterator[str]:
    known = list(content["checkpoints"])
    used = set()
    for number, step in enumerate(content["steps"], start=1):
        place = f"steps/{number}"
        given = [name for name in "abc" if name in step]
        wanted = ["a", "b", "c"] if step["method"] == "add_difference" else ["a", "b"]
        if given != wanted:
            yield f"{place}: {step['method']} of {', '.join(given)}; wanted {', '.join(wanted)}"
        yield from (
            f"{place}/{name}: {step[name]!r} is none of {', '.join(known)}" for name in given if step[name] not in known
        )
        used |= {step[name] for name in given}
        for block, alpha in {"alpha": step["alpha"], **step.get("blocks", {})}.items():
            if block != "alpha" and block not in BLOCKS:
                yield f"{place}/blocks/{block}: none of {', '.join(BLOCKS)}"
            if isinstance(alpha, bool) or not abs(alpha) <= MOST_ALPHA:
                yield f"{place}/{block}: {alpha}, wanted a number from -{MOST_ALPHA:g} to {MOST_ALPHA:g}"
        if name := step.get("name"):
            if name in known:
                yield f"{place}/name: {name!r} stands twice"
            known.append(name)
    unused = [name for name in known if name not in used and name != content["steps"][-1].get("name")]
    if unused:
        yield f"no step uses {', '.join(unused)}"


def _file_faults(checkpoints: dict) -> Iterator[str]:
    for name, entry in checkpoints.items():
        path = Path(entry["path"])
        if path.suffix != ".safetensors":
            yield f"checkpoints/{name}: {path} is no .safetensors file; others cannot be merged"
        elif not path.is_file():
            yield f"checkpoints/{name}: {path} is not there"
        elif not (found := file_sha256(path)).startswith(entry["sha256"].lower()):
            yield f"checkpoints/{name}: {path} has SHA-256 {found}, the recipe says {entry['sha256']}"


def unet_block(name: str) -> str:
    """Block of a UNet's tensor by its LDM name, without prefix; BASE for the time embedding (SuperMerger's `mergers.py`)."""
    if name.startswith("time_embed."):
        return "BASE"
    if m := re.match(r"(input|output)_blocks\.(\d+)\.", name):
        return f"{'IN' if m[1] == 'input' else 'OUT'}{int(m[2]):02}"
    return "M00" if name.startswith("middle_block.") else "OUT11"
