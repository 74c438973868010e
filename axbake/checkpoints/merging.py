"""Merges of checkpoints, as a recipe says: weighted sums and differences, with shares by block.

sd-mecha (github ljleb/sd-mecha) evaluates them, one tensor at a time in float32. It is given each checkpoint's networks under
diffusers' names, so files of different layouts and precisions can be merged if they are of one architecture.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import sd_mecha
import torch
from sd_mecha.extensions.model_configs import KeyMetadata, ModelComponent, ModelConfigImpl, register_aux
from sd_mecha.recipe_nodes import LiteralRecipeNode, OpenModelRecipeNode, RecipeNode
from sd_mecha.streaming import SafetensorsMapping, StateDictKeyError, TensorMetadata
from tqdm import tqdm

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
from axbake.checkpoints.recipes import Recipe, RecipeError, Step, read_recipe, unet_block
from axbake.checkpoints.writing import header_of, tensor_bytes
from axbake.networks.component import Component
from axbake.networks.names import ldm_unet_name
from axbake.runtime.progress import progress
from axbake.runtime.values import Latents


class Model(SafetensorsMapping):
    """A checkpoint as sd-mecha reads models: its networks' tensors under diffusers' names, read when asked for."""

    def __init__(self, path: Path, components: Sequence[Component], latents: Latents) -> None:
        self.container: Container = use_average(open_safetensors(path), averaged_namings(components))
        self.found = {one.name: find_network(self.container, one, latents) for one in components}
        self.places: dict[str, tuple[Found, str]] = {
            one.files.prefix + name: (self.found[one.name], name)
            for one in components
            for name in self.found[one.name].shapes
        }

    def shape(self, name: str) -> tuple[int, ...]:
        found, inside = self.places[name]
        return tuple(found.shapes[inside])

    def dtype(self, name: str) -> torch.dtype:
        found, inside = self.places[name]
        return torch_dtype(precision_of(self.container, found.origins[inside]))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.places:
            raise StateDictKeyError(name)
        return read_found_tensor(self.container, *self.places[name])

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def keys(self) -> Any:
        return self.places.keys()

    def values(self) -> Any:
        return (self[name] for name in self)

    def items(self) -> Any:
        return ((name, self[name]) for name in self)

    def metadata(self) -> Any:
        return ((name, TensorMetadata(torch.Size(self.shape(name)), self.dtype(name))) for name in self)

    def close(self) -> None:
        """Files are opened for each tensor alone."""


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
    types = {name: _common_type([first.dtype(name), *(model.dtype(name) for model in others)]) for name in first}
    header, order = header_of(
        {name: (types[name], first.shape(name)) for name in first}, metadata=_metadata(read, models)
    )
    config = _registered({name: KeyMetadata(list(first.shape(name)), torch_dtype(types[name])) for name in order})
    nodes = {
        name: OpenModelRecipeNode(model, read.checkpoints[name], config, "weight") for name, model in models.items()
    }
    with checkpoint.open("wb") as file:
        file.write(header)
        written = _Writer(file, order, {name: torch_dtype(kind) for name, kind in types.items()})
        sd_mecha.merge(
            _node(read.steps, nodes, config),
            output=written,
            threads=0,  # one tensor after the other, in their order
            merge_dtype=torch.float32,
            output_dtype=None,
            strict_mandatory_keys=True,
            tqdm=partial(tqdm, disable=True),
        )
        written.check()


def _registered(keys: dict[str, KeyMetadata]) -> ModelConfigImpl:
    """sd-mecha's config of a model of *keys*, which it has to know by a name."""
    config = ModelConfigImpl(
        f"axbake-{hashlib.sha256(repr(keys).encode()).hexdigest()}", {"model": ModelComponent(keys)}
    )
    with contextlib.suppress(ValueError):  # known since an earlier merge of this process
        register_aux(config)
    return config


def _check_architectures(recipe: Recipe, models: dict[str, Model]) -> None:
    (base, first), *others = models.items()
    for name, model in others:
        different = [part for part, found in model.found.items() if found.shapes != first.found[part].shapes]
        different += [part for part, found in model.found.items() if found.config != first.found[part].config]
        if different:
            raise RecipeError(
                f"{recipe.path}: {base} and {name} are of different architectures (different in"
                f" {' and '.join(dict.fromkeys(different))}). Merges want checkpoints of one architecture."
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


def _node(steps: list[Step], models: Mapping[str, RecipeNode], config: ModelConfigImpl) -> RecipeNode:
    """The last of *steps* as sd-mecha's recipe of *models*, which have names."""
    nodes = dict(models)
    for step in steps:
        alpha = _shares(step, config) if step.blocks else step.alpha
        a, b, *c = (nodes[model] for model in step.models)
        merged = sd_mecha.add_difference(a, b - c[0], alpha=alpha) if c else sd_mecha.weighted_sum(a, b, alpha=alpha)
        nodes[step.name] = merged
    return merged


def _shares(step: Step, config: ModelConfigImpl) -> RecipeNode:
    """alpha of each tensor, by its block."""
    shares = {name: torch.tensor(step.share(*_blocks_of(name))) for name in config.keys()}  # noqa: SIM118  # no dict
    return LiteralRecipeNode(shares, model_config=config, merge_space="param")


def _blocks_of(name: str) -> tuple[str, ...]:
    """Blocks of a tensor, the narrowest first."""
    network, _, inside = name.partition(".")
    return (unet_block(ldm_unet_name(inside)),) if network == "unet" else (network, "BASE")


class _Writer(MutableMapping):
    """Takes tensors in the order of a file, and appends each to it."""

    def __init__(self, file: BinaryIO, order: list[str], types: dict[str, torch.dtype]) -> None:
        self.file, self.types = file, types
        self.waiting = order[::-1]
        self.tell = progress("merging: tensor")
        self.count = len(order)

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        if name == "__metadata__":  # sd-mecha's own text form, with paths
            return
        assert self.waiting and name == self.waiting[-1], f"{name}, wanted {self.waiting[-1:]}"
        result = tensor.to(self.types[self.waiting.pop()])
        if not torch.isfinite(result).all():
            raise RecipeError(
                f"{name}: the merge is too large for {result.dtype}, up to {float(tensor.abs().max()):g}. Give lower shares."
            )
        self.file.write(tensor_bytes(result))
        self.tell(self.count - len(self.waiting), self.count)

    def check(self) -> None:
        """Every tensor was written."""
        assert not self.waiting, f"{len(self.waiting)} tensors were not merged: {self.waiting[-3:]}"

    def __getitem__(self, name: str) -> torch.Tensor:
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return self.count - len(self.waiting)
