"""The networks inside a checkpoint: which family they are of, and their tensors by diffusers' names.

Almost everything is decided from the header (names, shapes, types). Tensor data is only copied, and converted where it is stored
in eight bits.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import Container, all_finite, open_container, torch_dtype
from axbake.checkpoints.refusals import TensorMismatch, UnknownFamily, check_latents, check_limits, check_told
from axbake.families.family import Family
from axbake.families.others import recognise
from axbake.networks.component import DECODER, ENCODER, Component, Naming, Shapes
from axbake.networks.names import ema_renamer
from axbake.runtime.values import Latents

#: Type that a weight is stored in -> type that it is imported as
PRECISIONS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32", "F8_E4M3": "F16", "F8_E5M2": "F16"}
SCALES = (".scale_weight", ".weight_scale")  # beside a weight in 8 bits, which is to be multiplied by it (ComfyUI)
NO_WEIGHTS = (*SCALES, ".scale_input", ".input_scale", "scaled_fp8")


@dataclass(frozen=True)
class Origin:
    """Where a tensor of a network comes from."""

    name: str  # in the file
    part: int = 0  # which of *parts* equal parts of its rows
    parts: int = 1
    scale: str | None = None  # name of the tensor that it is to be multiplied by
    turned: bool = False  # whether the file holds it transposed
    exchanged: bool = False  # whether the file holds its halves the other way round
    span: int = 1  # how many parts it is, one after the other


@dataclass(frozen=True)
class Found:
    """One component inside a checkpoint."""

    config: dict  # diffusers' form
    prefix: str  # of its names in the file
    origins: Mapping[str, Origin]  # by diffusers name
    shapes: Shapes  # by diffusers name; 1×1 convolutions of the VAE's attention already as matrices


def _prefixes(shapes: Shapes, naming: Naming) -> list[str]:
    """What stands before the names of a network that *naming* names, each time that it is there."""
    end = naming.marker
    return sorted(name.removesuffix(end) for name in shapes if name == end or name.endswith(f".{end}"))


def find_names(container: Container, component: Component) -> tuple[str, Mapping[str, Origin]]:
    """Prefix of *component*'s names, and its tensors by their diffusers names.

    A network that is there twice with the same bytes counts once: merges carry a text encoder under the names of two programs.

    Raises:
        TensorMismatch: not there, there twice and not the same, or two tensors become one.
    """
    vae = ", or another VAE in the column vae" if component.role in (ENCODER, DECODER) else ""
    places = _places(container, component)
    if not places:
        wanted = " or ".join(naming.marker for naming in component.files.namings)
        raise TensorMismatch(
            f"{container.path}: no {component.name} found: wanted a tensor {wanted}, with any prefix. Give a complete "
            f"checkpoint{vae}."
        )
    (prefix, origins), *others = places.items()
    for other, same in others:
        if difference := _difference(container, origins, same):
            raise TensorMismatch(
                f"{container.path}: contains two networks that could be its {component.name}, below "
                f"{prefix or 'no prefix'} and below {other or 'no prefix'}, which differ: {difference}. Keep the "
                f"tensors of one of them in the file{vae}."
            )
    return prefix, origins


def copies_of(container: Container, component: Component) -> set[str]:
    """Names in *container* of the tensors of *component* that `find_names` has left aside, since they are there twice."""
    _, *others = _places(container, component).values()
    return {origin.name for origins in others for origin in origins.values()}


def _places(container: Container, component: Component) -> dict[str, Mapping[str, Origin]]:
    """Tensors of each network that could be *component*, by diffusers' names; by the prefix of their own."""
    places: dict[str, Naming] = {}
    for naming in component.files.namings:
        for prefix in _prefixes(container.shapes, naming):
            places.setdefault(prefix, naming)  # converted files may have names of both kinds under one prefix
    found = {prefix: _names_below(container, prefix, naming, places) for prefix, naming in places.items()}
    if not component.files.meant:
        return found
    shapes = {prefix: _shapes(container, origins) for prefix, origins in found.items()}
    every = list(shapes.values())
    return {prefix: origins for prefix, origins in found.items() if component.files.meant(shapes[prefix], every)}


def _shapes(container: Container, origins: Mapping[str, Origin]) -> Shapes:
    """Shapes of a network's tensors, by diffusers' names."""
    return {new: _part_shape(new, container.tensors[origin.name].shape, origin) for new, origin in origins.items()}


def _difference(container: Container, these: Mapping[str, Origin], those: Mapping[str, Origin]) -> str:
    """In what two networks of *container* differ; empty if in nothing."""
    if alone := sorted(these.keys() ^ those.keys()):
        return f"one alone has {alone[0]}"
    for name, one in these.items():
        other = those[name]
        first, second = container.tensors[one.name], container.tensors[other.name]
        alike = (first.dtype, first.shape, one.part, one.parts) == (second.dtype, second.shape, other.part, other.parts)
        if not alike or container.content(one.name) != container.content(other.name):
            return f"{one.name} is not {other.name}"
    return ""


def _names_below(container: Container, prefix: str, naming: Naming, places: Iterable[str]) -> Mapping[str, Origin]:
    """Tensors of the network below *prefix*, by diffusers' names; of those in *places* that lie deeper, none."""
    path = container.path
    deeper = tuple(other for other in places if other != prefix and other.startswith(prefix))
    inside = {
        name.removeprefix(prefix): shape
        for name, shape in container.shapes.items()
        if name.startswith(prefix) and not (deeper and name.startswith(deeper))
    }
    rename = naming.renamer(inside)
    exchanged = naming.exchanged(inside) if naming.exchanged else ()
    origins: dict[str, Origin] = {}
    for name in sorted(inside):
        if name.endswith(NO_WEIGHTS):
            continue
        new = rename(name)
        news = (new,) if isinstance(new, str) else new or ()
        stem = name.removesuffix(".weight")
        scale = next((f"{prefix}{stem}{end}" for end in SCALES if f"{stem}{end}" in inside and stem != name), None)
        for part, each in enumerate(news):
            if part and each == news[part - 1]:
                origins[each] = replace(origins[each], span=origins[each].span + 1)
                continue
            if each in origins:
                raise TensorMismatch(f"{path}: {origins[each].name} and {prefix}{name} are both {each}")
            turned, halves = each in naming.turned, each in exchanged
            origins[each] = Origin(prefix + name, part, len(news), scale, turned, halves)
    return origins


def _part_shape(new: str, shape: tuple[int, ...], origin: Origin) -> tuple[int, ...]:
    """Shape of a tensor once it is taken out of the file's."""
    # LDM's attention in the VAE has 1×1 convolutions, diffusers' has matrices.
    if re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.", new) and shape[2:] == (1, 1):
        return shape[:2]
    if origin.turned:
        return shape[::-1]
    return (shape[0] // origin.parts * origin.span, *shape[1:]) if origin.parts > 1 and shape else shape


def open_checkpoint(path: Path, averaged: Sequence[Naming] = ()) -> Container:
    """A view of the safetensors file or diffusers folder *path*, ready for `find_network`."""
    return use_average(open_container(path), averaged)


def use_average(container: Container, namings: Sequence[Naming]) -> Container:
    """*container* with a UNet's moving average in the place of the UNet that *namings* name, if it holds no other."""
    names = {name: ema_renamer(name) for name in container.tensors} if namings else {}
    if not any(names.values()) or any(_prefixes(container.shapes, naming) for naming in namings):
        return container
    tensors = {names[name] or name: stored for name, stored in container.tensors.items()}
    return replace(container, tensors=tensors, averaged=True)


def averaged_namings(components: Iterable[Component]) -> tuple[Naming, ...]:
    """Namings of those of *components* of which training keeps a moving average, each once."""
    kept = (naming for component in components if component.files.averaged for naming in component.files.namings)
    return tuple({naming.marker: naming for naming in kept}.values())


def find_family(container: Container, families: Mapping[str, Family]) -> Family:
    """The one of *families* whose denoiser is in *container*.

    Raises:
        UnknownFamily: none or several; says what the file is where that can be told.
    """
    known = ", ".join(f"{family.name} ({family.title})" for family in families.values())
    if other := recognise(container.shapes):
        raise UnknownFamily(f"{container.path}: this is {other.kind}. {other.sentence} Known families: {known}.")
    shapes = container.shapes
    denoisers = {family.name: family.denoiser for family in families.values()}
    there = [name for name, one in denoisers.items() if any(_prefixes(shapes, naming) for naming in one.files.namings)]
    if not there:
        markers = dict.fromkeys(naming.marker for one in denoisers.values() for naming in one.files.namings)
        raise UnknownFamily(
            f"{container.path}: {len(shapes)} tensors that fit no family; known: {known}. A denoiser would have"
            f" {' or '.join(markers)}."
        )
    networks = {denoisers[name].files.namings: denoisers[name] for name in there}  # families may name theirs alike
    named = {namings: _shapes_of(container, denoiser) for namings, denoiser in networks.items()}
    fitting = [families[name] for name in there if _fits(families[name].fits, named[denoisers[name].files.namings])]
    fitting = _most_complete(container, fitting) if len(fitting) > 1 else fitting
    if len(fitting) > 1:
        names = " and ".join(family.name for family in fitting)
        raise UnknownFamily(
            f"{container.path}: a denoiser that fits several families, {names}; their `fits` must differ."
        )
    if not fitting:
        _, origins = find_names(container, denoisers[there[0]])
        raise UnknownFamily(
            f"{container.path}: a denoiser of {len(origins)} tensors that fits no family; known: {known}. Its "
            "cross-attention does not have the width of any of them (attn2.to_k.weight, proj_in.weight)."
        )
    return fitting[0]


def _most_complete(container: Container, families: Sequence[Family]) -> list[Family]:
    """Those of *families*, which have one kind of denoiser, with the most text encoders that are all in *container*."""
    whole = [one for one in families if all(has_network(container, text) for text in one.text_encoders)]
    most = max((len(one.text_encoders) for one in whole), default=0)
    return [one for one in whole if len(one.text_encoders) == most] or list(families)[:1]


def is_of(container: Container, denoiser: Component, fits: Callable[[Shapes], bool]) -> bool:
    """Whether the network that *denoiser* names in *container* is of the family with this *fits*."""
    return _fits(fits, _shapes_of(container, denoiser))


def _shapes_of(container: Container, component: Component) -> Shapes:
    """Shapes of the network that *component* names in *container*, by diffusers' names."""
    _, origins = find_names(container, component)
    return {new: container.shapes[origin.name] for new, origin in origins.items()}


def _fits(fits: Callable[[Shapes], bool], shapes: Shapes) -> bool:
    with contextlib.suppress(StopIteration, IndexError):  # without the tensors that show it
        return fits(shapes)
    return False


def has_network(container: Container, component: Component) -> bool:
    """Whether *component* is in *container*."""
    return any(_prefixes(container.shapes, naming) for naming in component.files.namings)


def find_network(container: Container, component: Component, latents: Latents) -> Found:
    """Tensors of *component* in a checkpoint, with the config they describe.

    Args:
        latents: that its family draws with.

    Raises:
        UnknownFamily: a network of another kind than the family's, such as one for inpainting.
        TensorMismatch: they are not exactly the network's, by name and shape.
    """
    from axbake.weights import networks  # here, since who only looks at what a file is does without torch

    found = read_network(container, component)
    try:
        network = networks.wanted_shapes(component.build, found.config)
    except (ValueError, TypeError, ArithmeticError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        raise TensorMismatch(
            f"{container.path}: {component.name}: no network can be built with its shapes: {str(error)[:300]}"
        ) from error
    _compare(container.path, component.name, found.shapes, network)
    check_latents(container.path, found.config, latents)
    return found


def read_network(container: Container, component: Component) -> Found:
    """The same from the header alone, without comparing it with the network that its config describes.

    Raises:
        UnknownFamily: a network of another kind than the family's.
        TensorMismatch: not enough to tell its config, or types that are none of weights.
    """
    files = component.files
    prefix, origins = find_names(container, component)
    shapes = _shapes(container, origins)
    try:
        config = files.architecture(shapes)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise TensorMismatch(
            f"{container.path}: {component.name}: cannot be read from {len(shapes)} tensors; without {error} its width "
            "or depth cannot be determined. The file does not contain the whole network."
        ) from error
    told = container.configs.get(files.folder, {})
    check_told(container.path, files, told)
    config |= {name: told[name] for name in files.told if told.get(name) is not None}
    check_limits(container.path, component.name, config)
    _check_types(container, component.name, origins)
    return Found(config, prefix, origins, shapes)


def _check_types(container: Container, component: str, origins: Mapping[str, Origin]) -> None:
    strange = [
        f"{origin.name} is {container.tensors[origin.name].dtype}"
        for origin in origins.values()
        if container.tensors[origin.name].dtype not in PRECISIONS
    ]
    if strange:
        raise TensorMismatch(
            f"{container.path}: {component}: {'; '.join(strange[:8])}. Weights are {', '.join(PRECISIONS)}; Pulsar2 quantises"
            " itself, so give the checkpoint that this was made from."
        )


def _compare(path: Path, component: str, found: Shapes, wanted: Shapes) -> None:
    problems = [f"{name}: missing, wanted {shape}" for name, shape in wanted.items() if name not in found]
    problems += [
        f"{name}: {shape}, which the network does not use" for name, shape in found.items() if name not in wanted
    ]
    problems += [
        f"{name}: found {found[name]}, wanted {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise TensorMismatch(f"{path}: {component}: {'; '.join(problems[:8])}{more}")


def read_found_tensor(container: Container, found: Found, name: str) -> Any:
    """Tensor *name* of a component: in the precision it is stored in, or in fp16 where that has eight bits, scaled."""
    origin = found.origins[name]
    tensor = container.read(origin.name)
    if origin.scale:
        scale = container.read(origin.scale).float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise TensorMismatch(
                f"{container.path}: {origin.scale}: {tuple(scale.shape)} is not a scale for {origin.name}"
            )
        tensor = tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))
    tensor = tensor.to(torch_dtype(precision_of(container, origin)))
    if not all_finite(tensor):
        raise TensorMismatch(f"{container.path}: {origin.name} holds values that are not finite. The file is damaged.")
    tensor = tensor.T.contiguous() if origin.turned else tensor
    rows = tensor.shape[0] // origin.parts if origin.parts > 1 else 0
    tensor = tensor[origin.part * rows : (origin.part + origin.span) * rows] if rows else tensor
    tensor = tensor.roll(tensor.shape[0] // 2, 0) if origin.exchanged else tensor
    return tensor.reshape(found.shapes[name])


def precision_of(container: Container, origin: Origin) -> str:
    """Type that the tensor at *origin* is imported as, in safetensors' name."""
    return PRECISIONS[container.tensors[origin.name].dtype]
