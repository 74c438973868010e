"""A recipe: which layers of a component do not compute in 16 bits. A small file, to be read, edited, compared and shared.

Layers have the names of the exported graphs' nodes. Models of one architecture that were exported by the same version of axbake
have the same names, so a recipe of one fits the others.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml

from axbake.errors import AxbakeError
from axbake.quality.assignment import FLOAT, NARROW, WIDE, Layer
from axbake.users_files import UnreadableFile, is_file, read_yaml

WANTED = "wanted `base: U16` and `layers: {graph: {U8: [names], FP32: [names]}}`"


class RecipeError(AxbakeError):
    """A recipe cannot be used."""


@dataclass(frozen=True)
class Recipe:
    """By address of a graph and type, the names of the layers that compute in it; all others compute in `WIDE`."""

    layers: Mapping[str, Mapping[str, tuple[str, ...]]]


def recipe_of(layers: Sequence[Layer], types: Sequence[str]) -> Recipe:
    """The recipe that gives each of *layers* its type."""
    found: dict[str, dict[str, list[str]]] = {}
    for layer, kind in zip(layers, types, strict=True):
        of_graph = found.setdefault(layer.graph, {NARROW: [], FLOAT: []})
        if kind != WIDE:
            of_graph[kind] += layer.names
    return Recipe({graph: {kind: tuple(names) for kind, names in one.items()} for graph, one in found.items()})


def write_recipe(path: Path, recipe: Recipe, comment: str) -> None:
    """Write *recipe* to *path*, YAML, one layer a line, with *comment* above it."""
    layers = {
        graph: {kind: list(names) for kind, names in one.items() if names} for graph, one in recipe.layers.items()
    }
    text = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(text + yaml.safe_dump({"base": WIDE, "layers": layers}, sort_keys=False), encoding="utf-8")


def read_recipe(path: Path) -> Recipe:
    """The recipe in *path*.

    Raises:
        RecipeError: the file cannot be read, or is no recipe.
    """
    try:
        found = read_yaml(path)
    except UnreadableFile as error:
        raise RecipeError(f"{error} Wanted a recipe: {WANTED}.") from None
    faults = list(_faults(found))
    if faults:
        raise RecipeError(f"{path}: {'; '.join(faults)}; {WANTED}.")
    return Recipe(
        {
            graph: {kind: tuple(of_graph.get(kind) or ()) for kind in (NARROW, FLOAT)}
            for graph, of_graph in found["layers"].items()
        }
    )


def recipe_path(path: str) -> Path:
    """A recipe that the user brings, which is there.

    Raises:
        RecipeError
    """
    if not is_file(Path(path)):
        raise RecipeError(f"{path}: no such file; config/precision names it as a recipe. {WANTED.capitalize()}.")
    return Path(path)


def with_recipe(config: Mapping[str, Any], recipe: Recipe, address: str, graph: Path) -> dict[str, Any]:
    """Pulsar2's *config* of one graph with the layers that *recipe* names.

    A layer's name goes before operator types and subgraphs, so the entries that are there keep the rest.

    Args:
        address: of the graph, under which the recipe has its layers.
        graph: the ONNX file.

    Raises:
        RecipeError: the recipe has no such graph, or names layers that the graph does not have.
    """
    if address not in recipe.layers:
        raise RecipeError(
            f"{address}: the recipe has no graph of this name, only {', '.join(recipe.layers)}; it is of another component, or of"
            " a model that is divided in another way (graph_weights)."
        )
    known = {node.name for node in onnx.load(graph, load_external_data=False).graph.node}
    unknown = [name for names in recipe.layers[address].values() for name in names if name not in known]
    if unknown:
        shown = "; ".join(f"{name}{_near(name, known)}" for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise RecipeError(
            f"{address}: the graph has no layers {shown}{more}. The recipe is of another architecture, or of graphs that another"
            " version of axbake exported: let axbake find it again (precision: recipe), or correct the names."
        )
    return config_with(config, recipe, address)


def config_with(config: Mapping[str, Any], recipe: Recipe, address: str) -> dict[str, Any]:
    """The same of a recipe that is known to fit."""
    entries = [
        {"layer_names": list(names), "data_type": kind} for kind, names in recipe.layers[address].items() if names
    ]
    quant = config["quant"]
    return {**config, "quant": {**quant, "layer_configs": [*quant["layer_configs"], *entries]}}


def _faults(found: Any) -> Iterable[str]:
    if not isinstance(found, dict) or not isinstance(found.get("layers"), dict) or not found["layers"]:
        yield "holds no layers"
        return
    yield from (f"{name}: unknown" for name in found if name not in ("base", "layers"))
    if found.get("base", WIDE) != WIDE:
        yield f"base: {found['base']!r}"
    for graph, of_graph in found["layers"].items():
        if not isinstance(of_graph, dict):
            yield f"layers/{graph}: {of_graph!r}"
            continue
        for kind, names in of_graph.items():
            if kind not in (NARROW, FLOAT):
                yield f"layers/{graph}/{kind}: unknown type"
            elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                yield f"layers/{graph}/{kind}: not a list of names"
        names = [name for names in of_graph.values() if isinstance(names, list) for name in names]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            yield f"layers/{graph}: {', '.join(twice[:5])}: named twice"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
