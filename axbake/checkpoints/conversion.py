"""One safetensors file of a checkpoint in any other form: a pickle, a diffusers folder, a recipe of a merge."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axbake.checkpoints.containers import (
    CONVERTED,
    FOLDER_FORMS,
    Container,
    Stored,
    form_of,
    open_container,
    open_safetensors,
    place_of,
    read_configs,
    scan_folder,
)
from axbake.checkpoints.writing import write_tensors
from axbake.networks.component import Component
from axbake.runtime.values import Latents


def open_unconverted(path: Path) -> Container:
    """A view of a checkpoint in any form but that of a recipe; of a pickle it has names, shapes and types alone.

    Raises:
        UnreadableCheckpoint, UnsafeCheckpoint
    """
    from axbake.checkpoints.pickles import convert_pickle

    if form_of(path) != "pickle":
        return open_container(path)
    found = convert_pickle(path, None)["tensors"]
    tensors = {name: Stored(kind, tuple(shape), path, 0, 0) for name, (kind, shape) in found.items()}
    return Container(path, "pickle", tensors, {})


def convert_checkpoint(
    source: list[Path], *, checkpoint: Path, components: Sequence[Component] = (), latents: Latents | None = None
) -> None:
    """Make one safetensors file, with the names as they are, of a checkpoint in any other form; of a recipe, what it merges.

    Args:
        source: files of the checkpoint, as `axbake.checkpoints.containers.files_of` lists them.
        components, latents: of the family, if it is a recipe.
        checkpoint: safetensors file to write. Its metadata holds a folder's configs, and what was not taken over.

    Raises:
        UnreadableCheckpoint, UnsafeCheckpoint
    """
    from axbake.checkpoints.pickles import convert_pickle

    place = place_of(source)
    form = form_of(place)
    if form == "recipe":
        from axbake.checkpoints.merging import merge_checkpoints  # here, since other forms do without it

        assert latents, "a recipe's family is known"
        merge_checkpoints(place, checkpoint=checkpoint, components=components, latents=latents)
        return
    said: dict[str, Any] = {"form": form, "bytes": sum(path.stat().st_size for path in source)}
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as directory:
        made = Path(directory) / "pickle.safetensors"
        if form == "pickle":
            answer = convert_pickle(place, made)
            said |= {name: answer[name] for name in ("left_out", "leftovers")}
            tensors |= open_safetensors(made).tensors
        elif form in FOLDER_FORMS:
            folder = scan_folder(place)
            for name, files in folder.weights.items():
                for number, file in enumerate(files):
                    opened = file
                    if form_of(file) == "pickle":
                        opened = Path(directory) / f"{name}.{number}.safetensors"
                        said.setdefault("leftovers", []).extend(convert_pickle(file, opened)["leftovers"])
                    tensors |= {
                        f"{name}.{tensor}": stored for tensor, stored in open_safetensors(opened).tensors.items()
                    }
            said["configs"] = read_configs(folder)
        else:
            container = open_safetensors(place)
            tensors |= container.tensors
            metadata |= container.metadata
        view = Container(place, form, tensors, {})
        write_tensors(
            checkpoint,
            {name: (stored.dtype, stored.shape) for name, stored in tensors.items()},
            view.content,
            metadata=metadata | {CONVERTED: json.dumps(said, sort_keys=True)},
        )
