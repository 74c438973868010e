"""Files and folders that hold checkpoints, all seen alike: each tensor's name, type, shape and place, and what else is said.

Only headers are read, so a look at a checkpoint of any size takes milliseconds; and nothing here runs what a file asks for.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axbake.checkpoints.recipes import is_recipe, read_recipe
from axbake.errors import AxbakeError

# A checkpoint's header is 0.1 to 0.3 MB for 1,000 to 2,600 tensors. A file that claims more is damaged, or wants our memory.
MOST_HEADER_BYTES = 16_000_000
MOST_TENSORS = 100_000
MOST_AXES = 8
MOST_CONFIG_BYTES = 1_000_000  # of a JSON or YAML beside the weights
#: Type of a tensor in safetensors' name -> bits of one value. Sub-byte types exist; no checkpoint that axbake bakes has them.
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64}
CONVERTED = "axbake.source"  # entry in the metadata of what `convert_checkpoint` writes

#: Folder of a diffusers model -> stem of its weights' file name
FOLDERS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
SCHEDULER = "scheduler"
PIPELINE, NETWORK = "model_index.json", "config.json"  # in the folder of a whole model; in that of one of its networks
# Of several copies of one network the first of these is taken: whole precision, then half. Others by name alone.
VARIANTS = ("", "fp16", "bf16")


class UnreadableCheckpoint(AxbakeError):
    """The file, or the folder, is no whole checkpoint of any form that axbake reads."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    dtype: str  # safetensors' name: F16, BF16, F32 …
    shape: tuple[int, ...]
    path: Path
    start: int  # of its bytes in the file
    end: int


@dataclass(frozen=True)
class Container:
    """A checkpoint before anything is known of its meaning."""

    path: Path  # as the user gave it
    format: str  # safetensors, or diffusers folder
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    configs: Mapping[str, dict] = field(default_factory=dict)  # of a diffusers folder: folder -> its config
    origin: Mapping[str, Any] = field(default_factory=dict)  # what `convert_checkpoint` says of the form it was in
    averaged: bool = False  # whether its UNet is the moving average of one, since it holds no other

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    def content(self, name: str) -> bytearray:
        """The bytes of tensor *name*, little endian."""
        stored = self.tensors[name]
        content = bytearray(stored.end - stored.start)
        with stored.path.open("rb") as file:
            file.seek(stored.start)
            read = file.readinto(content)  # and not `read`, which would need the memory twice
        if read != len(content):
            raise UnreadableCheckpoint(f"{stored.path}: ends inside the tensor {name}; it changed while it was read.")
        return content

    def read(self, name: str) -> Any:
        """Tensor *name* as torch's, in the type that it is stored in."""
        import torch  # here, since who only looks at headers does without

        stored, content = self.tensors[name], self.content(name)
        kinds = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F64": torch.float64}
        kinds |= {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool}
        kinds |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
        if stored.dtype not in kinds:
            raise UnreadableCheckpoint(
                f"{stored.path}: {name} is of type {stored.dtype}; readable: {', '.join(kinds)}."
            )
        flat = torch.frombuffer(content, dtype=kinds[stored.dtype]) if content else torch.empty(0)
        return flat.to(kinds[stored.dtype]).reshape(stored.shape)


def form_of(path: Path) -> str:
    """What kind of container *path* is, by its first bytes: safetensors, pickle, diffusers folder; a recipe by its ending.

    Raises:
        UnreadableCheckpoint: nothing there, or another kind; says which where it can be told.
    """
    if path.is_dir():
        if any((path / index).is_file() for index in (PIPELINE, NETWORK)):
            return "diffusers folder"
        raise UnreadableCheckpoint(
            f"{path}: a folder without {PIPELINE} and {NETWORK}. Wanted a diffusers folder of a whole pipeline, or of an"
            " autoencoder, or one file."
        )
    start = _start(path)
    if is_recipe(path):
        return "recipe"
    if len(start) > 8 and start[8:9] == b"{":
        return "safetensors"
    # A zip archive as torch.save writes it, a pickle of protocol 2 to 5, or what older ones begin with.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return "pickle"
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin") and start and start[:4] != b"GGUF":
        return "pickle"
    raise UnreadableCheckpoint(f"{path}: {_size(path)} bytes that are {_another_kind(start)}")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise UnreadableCheckpoint(
            f"{path}: {_size(path)} bytes that are no whole safetensors file ({error.strerror}). Correct the path."
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _another_kind(start: bytes) -> str:
    if start[:4] == b"GGUF":
        return "a GGUF file, whose weights are quantised in blocks. axbake bakes the safetensors file that it was made from."
    if start.lstrip()[:1] == b"<":
        return (
            "no whole safetensors file but a web page, which a download needs a login for. Download it again and compare"
            " its SHA-256 with the page it is from."
        )
    return "no whole safetensors file. Download it again and compare its SHA-256 with the page it is from."


def open_container(path: Path) -> Container:
    """A view of the safetensors file or diffusers folder *path*; a pickle is converted first (`axbake.checkpoints.conversion`).

    Raises:
        UnreadableCheckpoint: damaged, of another form, or beyond the limits of this module.
    """
    form = form_of(path)
    if form == "diffusers folder":
        return _open_folder(path)
    if form == "safetensors":
        return open_safetensors(path)
    raise UnreadableCheckpoint(
        f"{path}: a {form}. `results/{{model}}/checkpoint.safetensors` is made of it, without running what it holds."
    )


def open_safetensors(path: Path) -> Container:
    """A view of a safetensors file, after checking all that its header claims.

    Stricter than the library: limits of size, no name twice, no tensor of more axes than networks have.

    Raises:
        UnreadableCheckpoint
    """
    size, start = _size(path), _start(path)

    def refusal(why: str) -> UnreadableCheckpoint:
        return UnreadableCheckpoint(
            f"{path}: {size} bytes that are no whole safetensors file ({why}). Download it again and compare its SHA-256"
            " with the page it is from."
        )

    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > size - 8:
        raise refusal(f"its header ends at byte {length + 8}" if len(start) >= 8 else "too short for a header")
    if length > MOST_HEADER_BYTES:
        raise refusal(f"a header of {length} bytes; at most {MOST_HEADER_BYTES}")
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise refusal(f"header: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise refusal("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal("__metadata__ is no table of texts")
    if len(header) > MOST_TENSORS:
        raise refusal(f"{len(header)} tensors; at most {MOST_TENSORS}")
    tensors, end = {}, 0
    try:
        for name, entry in header.items():
            tensors[name] = _stored(name, entry, path, 8 + length)
        for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            if stored.start != 8 + length + end:
                raise ValueError(f"{name} begins at {stored.start - 8 - length}, the tensor before it ends at {end}")
            end = stored.end - 8 - length
    except ValueError as error:
        raise refusal(str(error)) from None
    if 8 + length + end != size:
        raise refusal(f"its tensors end at byte {8 + length + end}")
    said = _json_object(metadata.get(CONVERTED, "{}"))
    configs = said.get("configs")
    told = (
        {name: config for name, config in configs.items() if isinstance(config, dict)}
        if isinstance(configs, dict)
        else {}
    )
    return Container(path, "safetensors", tensors, metadata, told, said)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict:
    if len({name for name, _ in pairs}) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return dict(pairs)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48  # bool is an int, and nothing that exists is larger


def _stored(name: str, entry: Any, path: Path, base: int) -> Stored:
    """A tensor's entry in a safetensors header, checked; ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:200]}: wanted dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name[:200]}: type {str(dtype)[:40]} is unknown; known: {', '.join(BITS)}")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(_whole, shape)):
        raise ValueError(f"{name[:200]}: {str(shape)[:80]} is no shape of {MOST_AXES} axes at most")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise ValueError(f"{name[:200]}: data_offsets {str(offsets)[:80]} are no two numbers")
    start, end = offsets
    if end - start != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"{name[:200]}: {end - start} bytes for shape {shape} of {dtype}")
    return Stored(dtype, tuple(shape), path, base + start, base + end)


def _json_object(text: str) -> dict:
    """The JSON object *text*; an empty one if it is none, since anybody can write metadata."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> dict:
    """A JSON object in a file beside the weights.

    Raises:
        UnreadableCheckpoint: not there, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes; at most {MOST_CONFIG_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableCheckpoint(f"{path}: {error}. Wanted a JSON object, as diffusers writes it.") from None


@dataclass(frozen=True)
class Folder:
    """Files of a diffusers folder that are read."""

    configs: dict[str, Path]  # folder -> config
    weights: dict[str, list[Path]]  # folder -> its file, or its shards
    indexes: list[Path]  # that name the shards


def scan_folder(path: Path) -> Folder:
    """Which files of a diffusers folder hold its networks.

    Safetensors before pickles, whole precision before half (`VARIANTS`), one file before shards.

    Raises:
        UnreadableCheckpoint: a network is missing; lists what the folder has.
    """
    if not (path / PIPELINE).is_file():
        return _scan_autoencoder(path)
    index = _read_json(path / PIPELINE)
    configs, weights, indexes = {}, {}, []
    for folder, stem in FOLDERS.items():
        place = path / folder
        if not place.is_dir():
            raise UnreadableCheckpoint(
                f"{path}: no folder {folder}; its {PIPELINE} is of a {str(index.get('_class_name'))[:80]}. Wanted"
                f" {', '.join(FOLDERS)}, as Stable Diffusion 1.x and 2.x have them."
            )
        configs[folder] = place / NETWORK
        weights[folder], index_of = _weights_of(place, stem)
        indexes += index_of
    if (path / SCHEDULER / "scheduler_config.json").is_file():
        configs[SCHEDULER] = path / SCHEDULER / "scheduler_config.json"
    return Folder(configs, weights, indexes)


def _scan_autoencoder(path: Path) -> Folder:
    """The same of a folder that holds an autoencoder alone."""
    kind = str(_read_json(path / NETWORK).get("_class_name"))[:80]
    if not kind.startswith("Autoencoder"):
        raise UnreadableCheckpoint(
            f"{path}: no {PIPELINE}, and its {NETWORK} is of {kind}. Wanted a diffusers folder of a whole pipeline, or of an"
            " autoencoder."
        )
    weights, indexes = _weights_of(path, FOLDERS["vae"])
    return Folder({"vae": path / NETWORK}, {"vae": weights}, indexes)


def _weights_of(place: Path, stem: str) -> tuple[list[Path], list[Path]]:
    """Files of the weights in one folder of a diffusers model, and the index that names them, if they are shards."""
    pickled = "pytorch_model" if stem == "model" else stem
    for name, kind in ((stem, "safetensors"), (pickled, "bin")):
        for variant in VARIANTS:
            marked = f".{variant}" if variant else ""
            if (file := place / f"{name}{marked}.{kind}").is_file():
                return [file], []
            # diffusers has written both orders: model.fp16.safetensors.index.json and model.safetensors.index.fp16.json.
            for index in (f"{name}{marked}.{kind}.index.json", f"{name}.{kind}.index{marked}.json"):
                if (place / index).is_file():
                    return _shards(place / index), [place / index]
    found = sorted(file.name for file in place.iterdir())[:20]
    raise UnreadableCheckpoint(
        f"{place}: no {stem}.safetensors, nor one of {', '.join(filter(None, VARIANTS))}; there are {', '.join(found)}."
    )


def _shards(index: Path) -> list[Path]:
    table = _read_json(index).get("weight_map")
    names = (
        set(table.values()) if isinstance(table, dict) and all(isinstance(n, str) for n in table.values()) else set()
    )
    if not names or any(Path(name).name != name for name in names):
        raise UnreadableCheckpoint(f"{index}: weight_map does not name files beside it.")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise UnreadableCheckpoint(f"{index}: shards are missing: {', '.join(missing[:8])}. Download the folder again.")
    return [index.parent / name for name in sorted(names)]


def files_of(path: Path) -> list[Path]:
    """Files that make up the checkpoint *path*, the first of which is itself, or of a folder model_index.json or config.json.

    Others are those of the folder that are read, or the checkpoints that a recipe merges.
    """
    if path.is_file() and is_recipe(path):
        return [path, *read_recipe(path).checkpoints.values()]
    if not path.is_dir():
        return [path]
    form_of(path)
    folder = scan_folder(path)
    files = {*folder.configs.values(), *folder.indexes, *(file for files in folder.weights.values() for file in files)}
    first = path / PIPELINE if (path / PIPELINE).is_file() else path / NETWORK
    return [first, *sorted(files - {first})]


def needs_conversion(path: Path) -> bool:
    """Whether *path* is anything but a single safetensors file."""
    return form_of(path) != "safetensors"


def _open_folder(path: Path) -> Container:
    folder = scan_folder(path)
    tensors: dict[str, Stored] = {}
    for name, files in folder.weights.items():
        for file in files:
            if form_of(file) != "safetensors":
                raise UnreadableCheckpoint(
                    f"{file}: a pickle. `results/{{model}}/checkpoint.safetensors` is made of it without running what it holds."
                )
            part = {f"{name}.{tensor}": stored for tensor, stored in open_safetensors(file).tensors.items()}
            if doubles := set(part) & set(tensors):
                raise UnreadableCheckpoint(f"{file}: {sorted(doubles)[0]} is in another shard too.")
            tensors |= part
    return Container(path, "diffusers folder", tensors, {}, read_configs(folder))


def read_configs(folder: Folder) -> dict[str, dict]:
    """Each network's config.json, and the scheduler's, by the name of its folder."""
    return {name: _read_json(file) for name, file in folder.configs.items()}


def place_of(files: list[Path]) -> Path:
    """The checkpoint that `files_of` lists *files* of."""
    return files[0].parent if files[0].name in (PIPELINE, NETWORK) else files[0]
