"""Merges of checkpoints, as a recipe says: weighted sums and differences, with shares by block.

They are made one tensor at a time in float32, of each checkpoint's networks under diffusers' names, so files of different
layouts and precisions can be merged if they are of one architecture.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from axbake.checkpoints.containers import CONVERTED, SCHEDULER, Container, open_safetensors, torch_dtype
from axbake.checkpoints.finding import (
    PRECISIONS,
    Found,
    averaged_namings,
    find_network,
    precision_of,
    read_found_tensor,
    use_average,
)
from axbake.checkpoints.prediction import gather_evidence, read_sidecar
from axbake.checkpoints.recipes import Recipe, RecipeError, Step, read_recipe
from axbake.checkpoints.writing import header_of, tensor_bytes
from axbake.networks.component import TEXT, Component
from axbake.runtime.progress import progress
from axbake.runtime.values import Latents


class Model:
    """One of the checkpoints: its networks' tensors under diffusers' names, read when asked for."""

    def __init__(self, path: Path, components: Sequence[Component], latents: Latents) -> None:
        self.container: Container = use_average(open_safetensors(path), averaged_namings(components))
        self.found = {one.name: find_network(self.container, one, latents) for one in components}
        self.places: dict[str, tuple[Found, str]] = {}
        self.blocks: dict[str, tuple[str, ...]] = {}  # of each tensor, the narrowest first
        for one in components:
            for name in self.found[one.name].shapes:
                whole = one.files.beside.get(name, one.files.prefix) + name
                self.places[whole] = self.found[one.name], name
                self.blocks[whole] = _blocks_of(one, name)

    def shape(self, name: str) -> tuple[int, ...]:
        found, inside = self.places[name]
        return tuple(found.shapes[inside])

    def dtype(self, name: str) -> torch.dtype:
        found, inside = self.places[name]
        return torch_dtype(precision_of(self.container, found.origins[inside]))

    def tensor(self, name: str) -> torch.Tensor:
        return read_found_tensor(self.container, *self.places[name])


def _blocks_of(component: Component, name: str) -> tuple[str, ...]:
    files = component.files
    if files.merge_block:
        return (files.merge_block(name),)
    return ("text_encoder" if component.role == TEXT else files.folder), "BASE"


def merge_checkpoints(recipe: Path, *, checkpoint: Path, components: Sequence[Component], latents: Latents) -> None:
    """Write the merge that *recipe* says, under diffusers' names.

    A tensor is written in the type that the sources have it in; where they differ, in one that holds them all.

    Args:
        recipe: YAML (`axbake.checkpoints.recipes`).
        checkpoint: safetensors file to write; its metadata says what the UNet predicts, if any source does.
        components, latents: of the family that all sources are of.

    Raises:
        RecipeError: the sources are of different architectures, or predict different things.
        And the errors of `axbake.weights.importing` of a source.
    """
    read = read_recipe(recipe)
    models = {name: Model(path, components, latents) for name, path in read.checkpoints.items()}
    _check_architectures(read, models)
    first, *others = models.values()
    types = {name: _common_type([first.dtype(name), *(model.dtype(name) for model in others)]) for name in first.places}
    header, order = header_of(
        {name: (types[name], first.shape(name)) for name in first.places}, metadata=_metadata(read, models)
    )
    tell = progress("merging: tensor")
    with checkpoint.open("wb") as file:
        file.write(header)
        for number, name in enumerate(order, start=1):
            tensor = _merged(name, read.steps, models, first.blocks[name])
            file.write(tensor_bytes(_narrowed(name, tensor, torch_dtype(types[name]))))
            tell(number, len(order))


def _merged(name: str, steps: list[Step], models: Mapping[str, Model], blocks: tuple[str, ...]) -> torch.Tensor:
    """Tensor *name*, which lies in *blocks*, of the last step's model; float32."""
    known: dict[str, torch.Tensor] = {}

    def of(model: str) -> torch.Tensor:
        if model not in known:
            known[model] = models[model].tensor(name).float()
        return known[model]

    for step in steps:
        alpha = step.share(*blocks)
        a, b, *c = map(of, step.models)
        known[step.name] = torch.add(a, b - c[0], alpha=alpha) if c else torch.lerp(a, b, alpha)
    return known[steps[-1].name]


def _narrowed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """*tensor* as *dtype*.

    Raises:
        RecipeError: too large for it.
    """
    result = tensor.to(dtype)
    if not torch.isfinite(result).all():
        raise RecipeError(
            f"{name}: the merge is too large for {dtype}, up to {float(tensor.abs().max()):g}. Use lower alphas."
        )
    return result


def _check_architectures(recipe: Recipe, models: dict[str, Model]) -> None:
    (base, first), *others = models.items()
    for name, model in others:
        different = [part for part, found in model.found.items() if found.shapes != first.found[part].shapes]
        different += [part for part, found in model.found.items() if found.config != first.found[part].config]
        if different:
            raise RecipeError(
                f"{recipe.path}: {base} and {name} are of different architectures (different in "
                f"{' and '.join(dict.fromkeys(different))}). Merge only checkpoints of one architecture."
            )


def _common_type(kinds: list[torch.dtype]) -> str:
    """Type that holds all values of *kinds*, in safetensors' name."""
    kind = kinds[0]
    for other in kinds[1:]:
        kind = torch.promote_types(kind, other)
    return next(name for name in PRECISIONS.values() if torch_dtype(name) == kind)


def _metadata(recipe: Recipe, models: dict[str, Model]) -> dict[str, str]:
    """What a merge says of itself: what its UNet predicts, as a diffusers folder's scheduler would (`prediction`)."""
    said: dict[str, str] = {}
    zero = set()
    for name, path in recipe.checkpoints.items():
        evidence = gather_evidence(models[name].container, sidecar=read_sidecar(path))
        said |= {f"{name}, {place}": kind for place, kind in evidence.types.items()}
        zero.add(bool(evidence.zero_terminal))
    if len(set(said.values())) > 1 or len(zero) > 1:
        told = "; ".join(f"{place} says {kind}" for place, kind in said.items())
        raise RecipeError(
            f"{recipe.path}: its checkpoints predict different things or were trained with different schedules: {told or zero}."
            " Their merge would draw nothing."
        )
    scheduler: dict[str, Any] = {"rescale_betas_zero_snr": True} if True in zero else {}
    if said:
        scheduler["prediction_type"] = next(iter(said.values()))
    origin = {"form": "recipe", "bytes": sum(path.stat().st_size for path in recipe.checkpoints.values())}
    return {CONVERTED: json.dumps(origin | {"configs": {SCHEDULER: scheduler}}, sort_keys=True)}
