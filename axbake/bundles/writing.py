"""Bundles: a model in a directory that an on-board program loads as it is, and the same as one archive for upload."""

import hashlib
import io
import json
import logging
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from axbake import __version__
from axbake.bundles.layouts import LAYOUTS, Layout
from axbake.bundles.model_card import licence_notes, model_card, requirements
from axbake.cache import Cache, cache_directory
from axbake.checkpoints.weights import SamplingError, read_sampling
from axbake.errors import AxbakeError
from axbake.graphs.interface import Interface, interface
from axbake.runtime.bundle import FORMAT
from axbake.runtime.sampler import load_schedule
from axbake.toolchain.launch import link_or_copy

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
MORE_STEPS = (10, 20)  # that a bundle of axbake's own has schedules for, besides the row's
MANIFEST = "manifest.json"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
ATTRIBUTES = "*.axmodel filter=lfs diff=lfs merge=lfs -text\n*.npz filter=lfs diff=lfs merge=lfs -text\n"


class BundleChanged(AxbakeError):
    """A bundle's files are not those that its manifest lists."""


def write_bundle(
    *,
    text_encoder: Path,
    unet: Path,
    vae_encoder: Path,
    vae_decoder: Path,
    records: list[Path],
    checkpoint: Path,
    unet_weights: Path,
    schedule: Path,
    embeddings: Path,
    layout: str,
    program: str,
    source: str,
    model: str,
    prompt: str,
    negative_prompt: str,
    height: int,
    width: int,
    scheduler: str,
    steps: int,
    guidance_scale: float,
    seed: int,
    prompt_chunks: int,
    clip_skip: int,
    manifest: Path,
) -> None:
    """Lay out a model for the program of *layout*, in the directory that *manifest* is in; the manifest comes there last.

    Models and schedule are hard links, where the file system can. What an earlier bundle left in the directory is removed.

    Args:
        text_encoder, unet, vae_encoder, vae_decoder: compiled models.
        records: `build/{component}.json` of the four.
        checkpoint: `checkpoint.json`.
        unet_weights: `weights/unet.safetensors`, for schedules of other numbers of steps.
        embeddings: `embeddings.json`.
        layout: of `LAYOUTS`.
        program: whose tensor names the models have (`axbake.graphs.interface`).
        source: where the checkpoint was had; may be empty.
        manifest: JSON to write, in a private directory below the bundle's own.
        …: how the reference is drawn, and the bundle's programs draw where they are not told otherwise.

    Raises:
        LayoutError: the row does not meet the layout's demands.
    """
    plan, described = LAYOUTS[layout], _read_json(checkpoint)
    settings = {
        "model": model,
        "height": height,
        "width": width,
        "scheduler": scheduler,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "prompt_chunks": prompt_chunks,
        "clip_skip": clip_skip,
        "program": program,
        "prediction_type": described["prediction_type"],
        "zero_terminal_snr": described["zero_terminal_snr"],
        "scaling_factor": described["scaling_factor"],
    }
    plan.check(layout, settings)
    models = {"text_encoder": text_encoder, "unet": unet, "vae_encoder": vae_encoder, "vae_decoder": vae_decoder}
    names = list(_read_json(embeddings)["embeddings"])
    content = _description(layout, plan, described, settings, source, [_read_json(record) for record in records])
    with tempfile.TemporaryDirectory(dir=manifest.parent) as directory:
        made = Path(directory)
        for component, file in plan.models.items():
            _place(models[component], made / file)
        for name in TOKENIZER:
            _place(ROOT / "resources" / "clip" / name, made / plan.tokenizer / name, copy=True)
        texts = {
            "README.md": model_card(content),
            "LICENSE.md": licence_notes(content, names),
            ".gitattributes": ATTRIBUTES,
        }
        files = {name: text.encode() for name, text in texts.items()}
        files |= plan.extras(load_schedule(schedule), settings)
        if layout == "axbake":
            files |= _own_files(emulated=content["emulated"])
            _place(schedule, made / "schedule.npz")
            _place(embeddings, made / "embeddings.json", copy=True)
            _write_schedules(made / "schedules", unet_weights, settings)
        for name, data in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(data)
        content["files"] = _digests(made)
        manifest.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _replace_all(made, manifest.parent.parent, private=manifest.parent)
    logger.info("%s files, %.0f MB", len(content["files"]), sum(f["bytes"] for f in content["files"].values()) / 1e6)


def _description(
    layout: str, plan: Layout, described: dict, settings: dict[str, Any], source: str, records: list[dict]
) -> dict[str, Any]:
    """The manifest without its files."""
    made = {record["component"]: record for record in records if record["component"] in plan.models}
    size = {name: settings[name] for name in ("height", "width", "prompt_chunks", "program")}
    faces = {name: interface(name, described["components"][name]["config"], **size) for name in made}
    known = ("sha256", "autov2", "family", "title", "prediction_type")
    return {
        "format": FORMAT,
        "layout": layout,
        "model": settings["model"],
        "emulated": any(record["emulated"] for record in made.values()),
        "axbake": __version__,
        "models": {name: _model(plan.models[name], made[name], faces[name]) for name in plan.models},
        "settings": {name: value for name, value in settings.items() if name != "model"},
        "checkpoint": {**{name: described[name] for name in known}, "source": source},
    }


def _model(file: str, record: dict, face: Interface) -> dict[str, Any]:
    inputs = {name: {"shape": list(tensor.shape), "dtype": tensor.dtype} for name, tensor in face.inputs.items()}
    made_by = {name: record[name] for name in ("toolchain", "version", "emulated")}
    return {"file": file, **made_by, "inputs": inputs, "output": face.output}


def _own_files(*, emulated: bool) -> dict[str, bytes]:
    """What the layout axbake has that no other has: its programs."""
    sources = {
        "axbake/__init__.py": ROOT / "axbake" / "__init__.py",
        "axbake/LICENSE": ROOT / "LICENSE",
        **{path.name: path for path in (ROOT / "resources" / "bundle").glob("*.py")},
        **{f"axbake/runtime/{path.name}": path for path in (ROOT / "axbake" / "runtime").glob("*.py")},
    }
    return {name: path.read_bytes() for name, path in sources.items()} | {
        "requirements.txt": requirements(emulated=emulated).encode()
    }


def _write_schedules(directory: Path, unet_weights: Path, settings: dict[str, Any]) -> None:
    """The row's scheduler for `MORE_STEPS`, as far as scheduler and UNet can do so many."""
    from axbake.drawing.schedule import (  # it imports torch, which the other layouts do without
        ScheduleError,
        derive_schedule,
    )

    directory.mkdir()
    if read_sampling(unet_weights).steps is not None:
        return
    for steps in sorted({*MORE_STEPS} - {settings["steps"]}):
        path = directory / f"{settings['scheduler']}-{steps}.npz"
        try:
            how = {name: settings[name] for name in ("scheduler", "guidance_scale")}
            derive_schedule(**how, steps=steps, unet=unet_weights, schedule=path)
        except (ScheduleError, SamplingError) as error:
            logger.info("no schedule of %d steps: %s", steps, error)


def _place(source: Path, target: Path, *, copy: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(source, target)
    else:
        link_or_copy(source, target)


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
                wrong.append(f"{name}: not there")
                continue
            member.size = path.stat().st_size
            with path.open("rb") as file:
                packed.addfile(member, watched := _Hashed(file))
            if name != MANIFEST and watched.sha256.hexdigest() != content["files"][name]["sha256"]:
                wrong.append(f"{name}: other content")
    if wrong:
        raise BundleChanged(
            f"{manifest.parent}: {'; '.join(wrong)}. Delete {MANIFEST} there, and make the bundle anew."
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
