"""Bundles: a model in a directory that an on-board program loads as it is, and the same as one archive for upload."""

import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from axbake import __version__
from axbake.bundles.carried import runtime_files
from axbake.bundles.layouts import LAYOUTS, Layout
from axbake.bundles.model_card import licence_notes, model_card, requirements
from axbake.cache import Cache, cache_directory
from axbake.errors import AxbakeError
from axbake.networks.card_layers import files_on_card
from axbake.networks.component import Component, addresses, columns_of
from axbake.networks.sampling import SamplingError
from axbake.npz import npz_bytes
from axbake.root import shipped
from axbake.runtime.added import FILE
from axbake.runtime.bundle import FORMAT
from axbake.runtime.sampler import load_schedule
from axbake.runtime.values import CANVAS, Conditioning, Latents, Picture
from axbake.weights.files import read_sampling

logger = logging.getLogger(__name__)
MORE_STEPS = (10, 20)  # that a bundle of axbake's own has schedules for, besides the row's
MANIFEST = "manifest.json"
ORIGIN = ("sha256", "autov2", "family", "title", "prediction_type")  # of a checkpoint, that a manifest tells
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "LICENSE")
GRAPHS = "*.onnx filter=lfs diff=lfs merge=lfs -text\n"
TOKEN_TABLES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"
ATTRIBUTES = "*.axmodel filter=lfs diff=lfs merge=lfs -text\n*.npz filter=lfs diff=lfs merge=lfs -text\n"


class BundleChanged(AxbakeError):
    """A bundle's files do not match its manifest."""


def write_bundle(
    *,
    models: list[Path],
    records: list[Path],
    checkpoint: Path,
    denoiser: Path,
    schedule: Path,
    embeddings: Path,
    layout: str,
    program: str,
    source: str,
    picture: Picture,
    components: list[Component],
    latents: Latents,
    conditioning: Conditioning,
    manifest: Path,
    canvas: Sequence[Path] = (),
    vae_tile: int = 0,
) -> None:
    """Lay out a model for the program of *layout*, in the directory that *manifest* is in; the manifest comes there last.

    Models and schedule are hard links, where the file system can. What an earlier bundle left in the directory is removed.

    Args:
        models: compiled models, of all *components* and their graphs in order; of a language model on the card the files that
            `axbake.networks.card_layers.files_on_card` names.
        records: `build/{graph}.json` of them; of a language model on the card `build/{component}.json`.
        checkpoint: `checkpoint.json`.
        denoiser: its `weights/{component}.safetensors`, for schedules of other numbers of steps.
        embeddings: `embeddings.json`.
        layout: of `LAYOUTS`.
        program: whose tensor names the models have (`axbake.graphs.programs`).
        source: where the checkpoint is from; may be empty.
        picture: how the reference is drawn, and the bundle's programs draw where they are not told otherwise.
        latents, conditioning: of the family.
        canvas: what the reference is drawn on, as `axbake.drawing.reference.draw_reference` has it.
        vae_tile: side of the VAE decoder's tiles in pixels; 0: it draws the whole picture.
        manifest: JSON to write, in a private directory below the bundle's own.

    Raises:
        LayoutError: the row does not meet the layout's demands.
    """
    plan, described = LAYOUTS[layout], _read_json(checkpoint)
    known = {name: described[name] for name in ("prediction_type", "zero_terminal_snr", "scaling_factor")}
    drawn = {name: value for name, value in asdict(picture).items() if value is not None}
    settings = drawn | {"program": program} | known
    owners = {graph: component for component in components for graph in _parts(component)}
    roles = {graph: component.role for graph, component in owners.items()}
    cells = settings | {"vae_tile": vae_tile}
    on_card = {graph: role for graph, role in roles.items() if not owners[graph].host}
    plan.check(layout, cells, on_card, drawn_on=bool(canvas))
    compiled = dict(zip(roles, models, strict=True))
    files = {
        graph: plan.models.get(role, f"{graph}{_suffix(owners[graph])}")
        for graph, role in roles.items()
        if _takes(plan, role)
    }
    in_layers = any(component.card for component in components)
    on_host = any(component.host and not component.card for component in components)
    built = [name for one in components for name in ([one.name] if one.card else addresses(one))]
    by_name = dict(zip(built, map(_read_json, records), strict=True))
    made_by = {graph: by_name[owners[graph].name if owners[graph].card else graph] for graph in files}
    names = list(_read_json(embeddings)["embeddings"])
    content: dict[str, Any] = {
        "format": FORMAT,
        "layout": layout,
        "model": picture.model,
        "emulated": any(made_by[graph]["emulated"] for graph in files),
        "axbake": __version__,
        "models": _models(components, files, made_by, described, cells),
        "conditioning": {name: value for name, value in asdict(conditioning).items() if value is not None},
        "latents": asdict(replace(latents, scale=described["scaling_factor"])),
        "settings": {name: value for name, value in settings.items() if name != "model"},
        "checkpoint": {name: described[name] for name in ORIGIN} | {"source": source},
    }
    if canvas:
        content["canvas"] = [f"canvas/{name}{file.suffix.lower()}" for name, file in zip(CANVAS, canvas, strict=False)]
    with tempfile.TemporaryDirectory(dir=manifest.parent) as directory:
        made = Path(directory)
        for graph, file in files.items():
            _place(compiled[graph], made / file)
        for name in TOKENIZER:
            _place(shipped("resources/clip") / name, made / plan.tokenizer / name, copy=True)
        texts = {
            "README.md": model_card(content),
            "LICENSE.md": licence_notes(content, names),
            ".gitattributes": ATTRIBUTES + GRAPHS * on_host + TOKEN_TABLES * in_layers,
        }
        more = {name: text.encode() for name, text in texts.items()}
        more |= plan.extras(load_schedule(schedule), settings)
        if not plan.models:
            (rows,) = (component.rows for component in components if component.rows)
            more |= _own_files(emulated=bool(content["emulated"]), on_host=on_host, on_card=in_layers)
            _place(schedule, made / "schedule.npz")
            _place(embeddings, made / "embeddings.json", copy=True)
            _write_schedules(made / "schedules", denoiser, rows, picture)
            for add in (component.added for component in components if component.added):
                (made / FILE).write_bytes(npz_bytes(vars(add(denoiser))))
        for place, brought in zip(content.get("canvas", ()), canvas, strict=True):
            _place(brought, made / place, copy=True)
        for name, data in more.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(data)
        digests = content["files"] = _digests(made)
        manifest.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _replace_all(made, manifest.parent.parent, private=manifest.parent)
    logger.info("%s files, %.0f MB", len(digests), sum(file["bytes"] for file in digests.values()) / 1e6)


def _parts(component: Component) -> list[str]:
    """What *component* runs from: addresses of its graphs, or the files of a language model on the card."""
    return files_on_card(component.name, component.card) if component.card else addresses(component)


def _suffix(component: Component) -> str:
    """What a graph's file is called behind its address."""
    if component.card:
        return ""
    return ".onnx" if component.host else ".axmodel"


def _takes(plan: Layout, role: str) -> bool:
    """Whether the layout's program has a place for a network of *role*."""
    return not plan.models or role in plan.models


def _models(
    components: list[Component], files: dict[str, str], made_by: dict[str, dict], described: dict, cells: dict
) -> dict[str, dict[str, Any]]:
    """What the manifest says of each component: its role, its files in order, what made them, what they take and give."""
    said = {}
    for component in components:
        graphs = [graph for graph in _parts(component) if graph in files]
        if not graphs:
            continue
        config = described["components"][component.name]["config"]
        columns = columns_of(component, cells)
        faces = [piece.interface(config, **columns) for piece in component.graphs]
        made = {name for face in faces for name in face.outputs}
        inputs = {name: tensor for face in faces for name, tensor in face.inputs.items() if name not in made}
        record = made_by[graphs[0]]
        said[component.name] = {
            "role": component.role,
            "files": [files[graph] for graph in graphs],
            **{name: record[name] for name in ("toolchain", "version", "emulated")},
            "inputs": {n: {"shape": list(tensor.shape), "dtype": tensor.dtype} for n, tensor in inputs.items()},
            "outputs": list(faces[-1].outputs),
        } | ({"host": True} if component.host and not component.card else {})
    return said


def _own_files(*, emulated: bool, on_host: bool, on_card: bool) -> dict[str, bytes]:
    """What the layout axbake has that no other has: its programs."""
    sources = {
        "axbake/__init__.py": shipped("axbake/__init__.py"),
        "axbake/LICENSE": shipped("LICENSE"),
        **{path.name: path for path in shipped("resources/bundle").glob("*.py")},
        **{f"axbake/runtime/{name}": shipped("axbake/runtime") / name for name in runtime_files()},
    }
    return {name: path.read_bytes() for name, path in sources.items()} | {
        "requirements.txt": requirements(emulated=emulated, on_host=on_host, on_card=on_card).encode()
    }


def _write_schedules(directory: Path, denoiser: Path, rows: Callable[..., Any], picture: Picture) -> None:
    """The row's scheduler for `MORE_STEPS`, as far as scheduler and denoiser can do so many."""
    from axbake.drawing.schedule import (  # it imports torch, which the other layouts do without
        ScheduleError,
        derive_schedule,
    )

    directory.mkdir()
    if read_sampling(denoiser).steps is not None:
        return
    for steps in sorted({*MORE_STEPS} - {picture.steps}):
        try:
            derive_schedule(
                scheduler=picture.scheduler,
                steps=steps,
                guidance_scale=picture.guidance_scale,
                rows=rows,
                denoiser=denoiser,
                height=picture.height,
                width=picture.width,
                cfg_trunc_ratio=1.0 if picture.cfg_trunc_ratio is None else picture.cfg_trunc_ratio,
                schedule=directory / f"{picture.scheduler}-{steps}.npz",
            )
        except (ScheduleError, SamplingError) as error:
            logger.info("no schedule of %d steps: %s", steps, error)


def _place(source: Path, target: Path, *, copy: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(source, target)
    else:
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            shutil.copyfile(source, target)


def _files(directory: Path) -> list[Path]:
    """Files below *directory*, sorted, as paths from there."""
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def _digests(directory: Path) -> dict[str, dict[str, Any]]:
    sha256 = Cache(cache_directory(None)).sha256  # does not read what is linked to a blob that was read
    return {
        path.as_posix(): {"sha256": sha256(directory / path), "bytes": (directory / path).stat().st_size}
        for path in _files(directory)
    }


def _replace_all(made: Path, place: Path, *, private: Path) -> None:
    """Move the files below *made* to *place*, and remove all else there but *private*."""
    kept = set(_files(made))
    for path in kept:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).replace(place / path)
    for path in sorted(place.rglob("*"), reverse=True):  # what is in a directory before the directory
        if private == path or private in path.parents or path.relative_to(place) in kept:
            continue
        if not path.is_dir():
            path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def pack_bundle(manifest: Path, *, archive: Path) -> None:
    """Write the bundle of *manifest* as a `.tar`, in a folder named after model and layout; the same bundle gives the same bytes.

    Raises:
        BundleChanged: its files are not those of the manifest.
    """
    content = _read_json(manifest)
    top = f"{content['model']}-{content['layout']}"
    wrong = []
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as packed:
        for name in [MANIFEST, *sorted(content["files"])]:
            path = manifest.parent / name
            member = tarfile.TarInfo(f"{top}/{name}")
            if not path.is_file():
                wrong.append(f"{name}: missing")
                continue
            member.size = path.stat().st_size
            with path.open("rb") as file:
                packed.addfile(member, watched := _Hashed(file))
            if name != MANIFEST and watched.sha256.hexdigest() != content["files"][name]["sha256"]:
                wrong.append(f"{name}: other content")
    if wrong:
        raise BundleChanged(
            f"{manifest.parent}: {'; '.join(wrong)}. Delete {MANIFEST} there and make the bundle again."
        )


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: io.BufferedReader):
        self.sha256 = hashlib.sha256()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.sha256.update(chunk)
        return chunk


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
