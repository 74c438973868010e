"""A bundle of the layout `axbake`: its manifest, and what is loaded by it."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .added import FILE, AddedEmbedding, load_added
from .card_chain import open_component
from .errors import BundleError
from .language_card import is_language_model
from .model import Postponed, Session
from .reading import read_object, shown
from .remembered import Remembered
from .sampler import Schedule, load_schedule
from .session import open_models
from .tokenizer import ClipTokenizer, load_tokenizer
from .values import Conditioning, Latents, Picture

MOST_ON_HOST = 1 << 30  # bytes of graphs that a board's host has in memory at once, where it runs several
FORMAT = 2  # of the manifest
LAYOUT = "axbake"
#: Annotation -> what JSON has there, or in a list there
TYPES: dict[str, Any] = {
    "int": int,
    "int | None": (int, type(None)),
    "float": (int, float),
    "str": str,
    "float | None": (int, float, type(None)),
}
TYPES |= {"tuple[str, ...]": str, "tuple[int, ...]": int, "tuple[float, ...]": (int, float)}
ROLES = ("text", "denoiser", "encoder", "decoder")


@dataclass(frozen=True)
class Component:
    """One model of a bundle."""

    role: str  # of `ROLES`
    files: tuple[str, ...]  # its graphs, in the order in which they run
    host: bool = False  # whether the host runs it, whatever runs the others

    @property
    def in_layers(self) -> bool:
        """Whether it is a language model whose layers are models of their own."""
        return is_language_model([Path(file) for file in self.files])


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]
    components: dict[str, Component]
    latents: Latents
    conditioning: Conditioning
    picture: Picture  # the model's reference
    canvas: tuple[str, ...] = ()  # files of picture and mask, or of a picture alone, that it was drawn on, if it was

    def of_role(self, role: str) -> list[str]:
        """The components of *role*, text encoders in the conditioning's order.

        Raises:
            BundleError: there is none, or more than one though they are not text encoders.
        """
        if role == "text":
            return list(self.conditioning.encoders)
        found = [name for name, component in self.components.items() if component.role == role]
        if len(found) != 1:
            raise BundleError(
                f"{self.folder}: models of role {role}: {', '.join(found) or 'none'}; wanted one. Make the bundle "
                "again."
            )
        return found

    def open(self, component: str, *, runtime: str, device: int, threads: int) -> tuple[Session, float]:
        """A component's model, and how many seconds loading it took; one that only new prompts need is loaded for them."""
        start = time.perf_counter()
        wanted = self.components[component]
        paths = [self.folder / file for file in wanted.files]
        if wanted.host:
            opener = functools.partial(open_models, paths, threads=threads, most_open=MOST_ON_HOST)
            return Postponed(component, opener), 0.0
        if wanted.in_layers:
            how: dict[str, Any] = {"runtime": runtime, "device": device, "threads": threads}
            return Postponed(component, functools.partial(open_component, paths, **how)), 0.0
        session = open_component(paths, runtime=runtime, device=device, threads=threads)
        session.component = component
        return session, time.perf_counter() - start

    def remembered(self) -> Remembered | None:
        """The prompts that its text encoders have read; None where one of them is loaded anyway."""
        texts = [self.components[name] for name in self.conditioning.encoders]
        if not all(component.host or component.in_layers for component in texts):
            return None
        files = self.manifest["files"]
        models = [files[file]["sha256"] for component in texts for file in component.files]
        return Remembered(self.folder, made_by=[models, files["embeddings.json"]["sha256"]])

    def tokenizer(self) -> ClipTokenizer:
        """CLIP's tokenizer, with the names of the model's embeddings."""
        return load_tokenizer(self.folder / "tokenizer", self.folder / "embeddings.json")

    def added(self) -> AddedEmbedding | None:
        """What prompts add to the denoiser's time embedding is computed with; None where they add nothing."""
        return load_added(self.folder / FILE) if self.conditioning.pooled else None

    def schedule(self, steps: int) -> Schedule:
        """The model's scheduler, set to *steps* steps.

        Raises:
            BundleError: the bundle has no such schedule.
        """
        if steps == self.picture.steps:
            return load_schedule(self.folder / "schedule.npz")
        path = self.folder / "schedules" / f"{self.picture.scheduler}-{steps}.npz"
        if not path.is_file():
            others = (int(other.stem.rpartition("-")[2]) for other in path.parent.glob("*.npz"))
            known = ", ".join(map(str, sorted({self.picture.steps, *others})))
            raise BundleError(
                f"{steps} steps: the bundle has schedules of {known} steps. Use one of these, or bake a row with "
                f"{steps} steps."
            )
        return load_schedule(path)


def read_bundle(folder: Path) -> Bundle:
    """The bundle in *folder*, all its files there, of the sizes that they had when it was made.

    Raises:
        BundleError: it is no bundle of this layout, or not whole.
    """
    path = folder / "manifest.json"
    manifest = read_object(path)
    found = (manifest.get("layout"), manifest.get("format"))
    if found != (LAYOUT, FORMAT):
        raise BundleError(
            f"{path}: layout and format {shown(found)}; wanted {(LAYOUT, FORMAT)}. Make the bundle again."
        )
    try:
        bundle = _bundle(folder, manifest)
        sizes = {name: f"{file['bytes']} bytes" for name, file in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path}: {type(error).__name__}: {shown(error)}; not a manifest of format {FORMAT}. Make the bundle again."
        ) from error
    wrong = [
        f"{name}: {_size(folder / name)}, wanted {size}" for name, size in sizes.items() if _size(folder / name) != size
    ]
    if wrong:
        raise BundleError(f"{folder}: incomplete or changed: {shown('; '.join(wrong), 2000)}. Copy the bundle again.")
    return bundle


def _bundle(folder: Path, manifest: dict[str, Any]) -> Bundle:
    """What *manifest* says, as values.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not of this format.
    """
    components = {
        name: Component(entry["role"], tuple(entry["files"]), entry.get("host") is True)
        for name, entry in manifest["models"].items()
    }
    for name, component in components.items():
        if component.role not in ROLES or not component.files or not set(component.files) <= set(manifest["files"]):
            raise ValueError(f"{name}: {component}; wanted a role of {', '.join(ROLES)}, and files of the bundle")
    conditioning = _value(Conditioning, manifest["conditioning"])
    texts = [name for name, component in components.items() if component.role == "text"]
    if sorted(texts) != sorted(conditioning.encoders):
        raise ValueError(
            f"models of role text: {texts}, conditioning of {list(conditioning.encoders)}; wanted the same"
        )
    only_some = dict.fromkeys(("image_guidance_scale", "cfg_trunc_ratio"))  # models have these
    settings = {**only_some, **manifest["settings"]}
    drawn = [
        field.name for field in fields(Picture) if field.name not in ("model", "strength")
    ]  # strength is the command line's
    picture = _value(Picture, {"model": manifest["model"], **{name: settings[name] for name in drawn}})
    if not isinstance(manifest["emulated"], bool):
        raise TypeError(f"emulated: {manifest['emulated']!r}, wanted true or false")
    canvas = tuple(manifest.get("canvas", ()))  # only models that draw on a picture have one
    wanted = (0, 2) if picture.image_guidance_scale is None else (1,)
    if len(canvas) not in wanted or not set(canvas) <= set(manifest["files"]):
        raise ValueError(
            f"canvas: {canvas!r}; wanted a picture and a mask, or, with an image guidance scale, a picture; files of the bundle"
        )
    return Bundle(folder, manifest, components, _value(Latents, manifest["latents"]), conditioning, picture, canvas)


def _value(kind: Any, entries: Mapping[str, Any]) -> Any:
    """A *kind* of *entries*; JSON's lists are tuples in it.

    Raises:
        TypeError: names the values that are of another type than the field's.
    """
    made = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()})
    wrong = []
    for field in fields(made):
        value, annotation = getattr(made, field.name), str(field.type)
        parts = value if annotation.startswith("tuple") and isinstance(value, tuple) else (value,)
        if not all(isinstance(part, TYPES[annotation]) for part in parts):
            wrong.append(f"{field.name}: {value!r}, wanted {annotation}")
    if wrong:
        raise TypeError("; ".join(wrong))
    return made


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.is_file() else "not there"
