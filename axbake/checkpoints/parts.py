"""The networks inside a checkpoint: which family they are of, and their tensors by diffusers' names.

Almost everything is decided from the header (names, shapes, types). Tensor data is only copied, and converted where it is stored
in eight bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import Container, open_container
from axbake.checkpoints.refusals import (
    TOLD_BY_CONFIG,
    TensorMismatch,
    UnknownFamily,
    check_channels,
    check_limits,
    check_told,
)
from axbake.families import FAMILIES, VAE, Component, Family, Layout, Shapes
from axbake.families.names import ema_renamer
from axbake.families.others import recognise

#: Type that a weight is stored in -> type that it is imported as
PRECISIONS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32", "F8_E4M3": "F16", "F8_E5M2": "F16"}
SCALES = (".scale_weight", ".weight_scale")  # beside a weight in 8 bits, which is to be multiplied by it (ComfyUI)
NO_WEIGHTS = (*SCALES, ".scale_input", ".input_scale", "scaled_fp8")


@dataclass(frozen=True)
class Source:
    """Where a tensor of a network comes from."""

    name: str  # in the file
    part: int = 0  # which of *parts* equal parts of its rows
    parts: int = 1
    scale: str | None = None  # name of the tensor that it is to be multiplied by


@dataclass(frozen=True)
class Part:
    """One component inside a checkpoint."""

    config: dict  # diffusers' form
    prefix: str  # of its names in the file
    sources: Mapping[str, Source]  # by diffusers name
    shapes: Shapes  # by diffusers name; 1×1 convolutions of the VAE's attention already as matrices


def _prefixes(shapes: Shapes, layout: Layout) -> list[str]:
    """What stands before the names of a network of *layout*, each time that it is there."""
    end = layout.marker
    return sorted(name.removesuffix(end) for name in shapes if name == end or name.endswith(f".{end}"))


def find_names(
    path: Path, shapes: Shapes, component: str, layouts: tuple[Layout, ...]
) -> tuple[str, Mapping[str, Source]]:
    """Prefix of *component*'s names, and its tensors by their diffusers names.

    Raises:
        TensorMismatch: not there, there twice, or two tensors become one.
    """
    places = [(layout, prefix) for layout in layouts for prefix in _prefixes(shapes, layout)]
    # Converted files may have names of both layouts under one prefix.
    if len({prefix for _, prefix in places}) != 1:
        found = " and ".join(f"{prefix}{layout.marker}" for layout, prefix in places)
        wanted = " or ".join(layout.marker for layout in layouts)
        why = f"there are several: {found}" if found else f"wanted a tensor {wanted}, with any prefix"
        vae = ", or another VAE in the column vae" if component in VAE else ""
        raise TensorMismatch(
            f"{path}: no telling where its {component} is: {why}. Give a whole checkpoint of one model{vae}."
        )
    layout, prefix = places[0]
    inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    rename = layout.renamer(inside)
    sources: dict[str, Source] = {}
    for name in sorted(inside):
        if name.endswith(NO_WEIGHTS):
            continue
        new = rename(name)
        news = (new,) if isinstance(new, str) else new or ()
        stem = name.removesuffix(".weight")
        scale = next((f"{prefix}{stem}{end}" for end in SCALES if f"{stem}{end}" in inside and stem != name), None)
        for part, each in enumerate(news):
            if each in sources:
                raise TensorMismatch(f"{path}: {sources[each].name} and {prefix}{name} are both {each}")
            sources[each] = Source(prefix + name, part, len(news), scale)
    return prefix, sources


def _part_shape(new: str, shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """Shape of a tensor once it is taken out of the file's."""
    # LDM's attention in the VAE has 1×1 convolutions, diffusers' has matrices.
    if ".attentions.0.to_" in new and shape[2:] == (1, 1):
        return shape[:2]
    return (shape[0] // source.parts, *shape[1:]) if source.parts > 1 and shape else shape


def open_checkpoint(path: Path) -> Container:
    """A view of the safetensors file or diffusers folder *path*, ready for `find_part`."""
    return use_average(open_container(path))


def use_average(container: Container) -> Container:
    """*container* with a UNet's moving average in the place of the UNet, if it holds no other."""
    names = {name: ema_renamer(name) for name in container.tensors}
    if not any(names.values()) or any(_prefixes(container.shapes, layout) for layout in _unet_layouts().values()):
        return container
    tensors = {names[name] or name: stored for name, stored in container.tensors.items()}
    return replace(container, tensors=tensors, averaged=True)


def _unet_layouts() -> dict[str, Layout]:
    return {layout.marker: layout for family in FAMILIES.values() for layout in family.components["unet"].layouts}


def find_family(container: Container) -> Family:
    """The one family whose UNet is in *container*.

    Raises:
        UnknownFamily: none or several; says what the file is where that can be told.
    """
    known = ", ".join(f"{family.name} ({family.title})" for family in FAMILIES.values())
    if other := recognise(container.shapes):
        raise UnknownFamily(f"{container.path}: this is {other.kind}. {other.sentence} Known families: {known}.")
    layouts, shapes = _unet_layouts(), container.shapes
    if not any(_prefixes(shapes, layout) for layout in layouts.values()):
        raise UnknownFamily(
            f"{container.path}: {len(shapes)} tensors that fit no family; known: {known}. A UNet would have"
            f" {' or '.join(layouts)}."
        )
    _, sources = find_names(container.path, shapes, "unet", tuple(layouts.values()))
    unet = {new: shapes[source.name] for new, source in sources.items()}
    try:
        fitting = [family for family in FAMILIES.values() if family.fits(unet)]
    except (StopIteration, IndexError):
        fitting = []
    if len(fitting) != 1:
        raise UnknownFamily(
            f"{container.path}: a UNet of {len(unet)} tensors that is of no one family; known: {known}. Missing:"
            " cross-attention, by whose widths they are told apart (attn2.to_k.weight, proj_in.weight)."
        )
    return fitting[0]


def component_of(family: Family | None, component: str) -> Component:
    """What is known of *component*; of an autoencoder's halves without a family."""
    if component in VAE:
        return VAE[component]
    assert family, f"{component}: of a family"
    return family.components[component]


def has_part(container: Container, component: str) -> bool:
    """Whether half of an autoencoder is in *container*."""
    return any(_prefixes(container.shapes, layout) for layout in VAE[component].layouts)


def find_part(container: Container, family: Family | None, component: str) -> Part:
    """Tensors of *component* in a checkpoint of *family*, with the config they describe.

    Args:
        family: None will do for an autoencoder's halves.

    Raises:
        UnknownFamily: a network of another kind than the family's, such as one for inpainting.
        TensorMismatch: they are not exactly the network's, by name and shape.
    """
    from axbake.checkpoints import components  # here, since who only looks at what a file is does without torch

    part = read_part(container, family, component)
    try:
        network = components.wanted_shapes(component, part.config)
    except (ValueError, TypeError, ArithmeticError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        raise TensorMismatch(
            f"{container.path}: {component}: its shapes describe no network that can be built: {str(error)[:300]}"
        ) from error
    _compare(container.path, component, part.shapes, network)
    check_channels(container.path, part.config)
    return part


def read_part(container: Container, family: Family | None, component: str) -> Part:
    """The same from the header alone, without comparing it with the network that its config describes.

    Raises:
        UnknownFamily: a network of another kind than the family's.
        TensorMismatch: not enough to tell its config, or types that are none of weights.
    """
    wanted = component_of(family, component)
    prefix, sources = find_names(container.path, container.shapes, component, wanted.layouts)
    shapes = {new: _part_shape(new, container.tensors[source.name].shape, source) for new, source in sources.items()}
    try:
        config = wanted.architecture(shapes)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise TensorMismatch(
            f"{container.path}: {component}: cannot be read from {len(shapes)} tensors; without {error} there is no"
            f" telling how wide or deep it is. The file is not a whole {family.title if family else 'autoencoder'}."
        ) from error
    told = container.configs.get(wanted.folder, {})
    check_told(container.path, wanted.folder, told)
    config |= {name: told[name] for name in TOLD_BY_CONFIG[wanted.folder] if told.get(name) is not None}
    check_limits(container.path, component, config)
    _check_types(container, component, sources)
    return Part(config, prefix, sources, shapes)


def _check_types(container: Container, component: str, sources: Mapping[str, Source]) -> None:
    strange = [
        f"{source.name} is {container.tensors[source.name].dtype}"
        for source in sources.values()
        if container.tensors[source.name].dtype not in PRECISIONS
    ]
    if strange:
        raise TensorMismatch(
            f"{container.path}: {component}: {'; '.join(strange[:8])}. Weights are {', '.join(PRECISIONS)}; Pulsar2 quantises"
            " itself, so give the checkpoint that this was made from."
        )


def _compare(path: Path, component: str, found: Shapes, wanted: Shapes) -> None:
    problems = [f"{name}: missing, wanted {shape}" for name, shape in wanted.items() if name not in found]
    problems += [
        f"{name}: {shape}, which the network has no use for" for name, shape in found.items() if name not in wanted
    ]
    problems += [
        f"{name}: found {found[name]}, wanted {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise TensorMismatch(f"{path}: {component}: {'; '.join(problems[:8])}{more}")


def read_part_tensor(container: Container, part: Part, name: str) -> Any:
    """Tensor *name* of a component: in the precision it is stored in, or in fp16 where that has eight bits, scaled."""
    import torch

    source = part.sources[name]
    tensor = container.read(source.name)
    if source.scale:
        scale = container.read(source.scale).float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise TensorMismatch(f"{container.path}: {source.scale}: {tuple(scale.shape)} is no scale of {source.name}")
        tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    tensor = tensor.to(kinds[precision_of(container, source)])
    # A piece at a time: the check of a whole tensor would take several times its memory.
    if not all(torch.isfinite(piece).all() for piece in tensor.reshape(-1).split(1 << 20)):
        raise TensorMismatch(f"{container.path}: {source.name} holds values that are not finite. The file is damaged.")
    rows = tensor.shape[0] // source.parts if source.parts > 1 else 0
    tensor = tensor[source.part * rows : (source.part + 1) * rows] if rows else tensor
    return tensor.reshape(part.shapes[name])


def precision_of(container: Container, source: Source) -> str:
    """Type that the tensor at *source* is imported as, in safetensors' name."""
    return PRECISIONS[container.tensors[source.name].dtype]
