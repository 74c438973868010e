"""Files and folders that hold checkpoints, read in one way: each tensor's name, type, shape and place, and metadata.

Only headers are read, so a look at a checkpoint of any size takes milliseconds; and nothing here runs what a file asks for.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from axbake.checkpoints.forms import PICKLE, SAFETENSORS, form_of_file
from axbake.checkpoints.recipes import is_recipe, read_recipe
from axbake.errors import AxbakeError
from axbake.printable import shown
from axbake.runtime.tokenizer import VOCABULARY
from axbake.users_files import MOST_JSON_BYTES, UnreadableFile, is_file, kind_of, load_json, open_file, read_json

# A checkpoint's header is 0.1 to 0.3 MB for 1,000 to 2,600 tensors. A file that claims more is damaged, or wants our memory.
MOST_HEADER_BYTES = 16_000_000
MOST_TENSORS = 100_000
MOST_AXES = 8
MOST_NAME = 500  # characters of a tensor's name; the longest of networks have 150
#: Type of a tensor in safetensors' name -> bits of one value. Sub-byte types exist; no checkpoint that axbake bakes has them.
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64}
#: Types that are read -> what torch calls them
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
TORCH_NAMES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
TORCH_NAMES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
CONVERTED = "axbake.source"  # entry in the metadata of what `convert_checkpoint` writes

#: Folder of a diffusers model -> stem of its weights' file name
FOLDERS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
#: The same of those that only some models have
FURTHER = {"text_encoder_2": "model", "text_encoder_3": "model", "text_conditioner": "diffusion_pytorch_model"}
DENOISERS = ("unet", "transformer")  # of which a folder has one
# In a folder of one file for each network, as ComfyUI loads them; the others are named likewise.
SPLIT = tuple(f"{name}.safetensors" for name in DENOISERS)
FOLDER_FORMS = ("diffusers folder", "folder of networks")
SCHEDULER = "scheduler"
TOKENIZER, ADDED_TOKENS = "tokenizer", ("added_tokens.json", "tokenizer_config.json")
PIPELINES, NETWORK = ("model_index.json", "modular_model_index.json"), "config.json"  # of a whole model; of a network
# Of several copies of one network the first of these is taken: whole precision, then half. Others by name alone.
VARIANTS = ("", "fp16", "bf16")


class UnreadableCheckpoint(AxbakeError):
    """The file or folder is not a complete checkpoint in a format that axbake reads."""


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

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    def content(self, name: str) -> bytearray:
        """The bytes of tensor *name*, little endian."""
        stored = self.tensors[name]
        content = bytearray(stored.end - stored.start)
        try:
            with open_file(stored.path) as file:
                file.seek(stored.start)
                read = file.readinto(content)  # type: ignore[attr-defined]  # `read` would need the memory twice
        except UnreadableFile as error:
            raise UnreadableCheckpoint(str(error)) from None
        if read != len(content):
            raise UnreadableCheckpoint(f"{stored.path}: ends inside the tensor {name}; it changed while it was read.")
        return content

    def read(self, name: str) -> Any:
        """Tensor *name* as torch's, in the type that it is stored in."""
        import torch  # here, since who only looks at headers does without

        stored, content = self.tensors[name], self.content(name)
        if stored.dtype not in TORCH_NAMES:
            raise UnreadableCheckpoint(
                f"{stored.path}: {name} is of type {stored.dtype}; readable: {', '.join(TORCH_NAMES)}."
            )
        dtype = torch_dtype(stored.dtype)
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0)
        return flat.to(dtype).reshape(stored.shape)


def torch_dtype(kind: str) -> Any:
    """The `torch.dtype` of what safetensors calls *kind*, one of `TORCH_NAMES`."""
    import torch

    return getattr(torch, TORCH_NAMES[kind])


def all_finite(tensor: Any) -> bool:
    """Whether all numbers of a torch tensor are finite; a piece at a time, as a whole check takes several times its memory."""
    import torch

    return all(bool(torch.isfinite(piece).all()) for piece in tensor.reshape(-1).split(1 << 20))


def form_of(path: Path) -> str:
    """What kind of container *path* is, by its content: safetensors, pickle, one of `FOLDER_FORMS`; a recipe by its
    ending.

    Raises:
        UnreadableCheckpoint: nothing there, or another kind; says which where it can be told.
    """
    kind = kind_of(path)
    if kind == "a folder":
        if any(is_file(path / index) for index in (*PIPELINES, NETWORK)):
            return "diffusers folder"
        if any(is_file(path / name) for name in SPLIT):
            return "folder of networks"
        raise UnreadableCheckpoint(
            f"{path}: a folder without {PIPELINES[0]}, {NETWORK} and {' or '.join(SPLIT)}. Wanted a diffusers folder of a"
            f" complete pipeline or of an autoencoder, a folder with one file for each network ({' or '.join(SPLIT)} and so on),"
            " or one file."
        )
    if kind != "a file":
        raise _missing(path, kind)
    try:
        form = form_of_file(path)
    except UnreadableFile as error:
        raise UnreadableCheckpoint(str(error)) from None
    if form.name in (SAFETENSORS, PICKLE):
        return form.name
    if is_recipe(path):
        return "recipe"
    raise UnreadableCheckpoint(f"{path}: {path.stat().st_size} bytes that are {form.words}. {form.advice}")


def _missing(path: Path, kind: str) -> UnreadableCheckpoint:
    """The error of a path that is not one of a file or folder."""
    if kind:
        return UnreadableCheckpoint(f"{shown(path, 400)}: {kind}. Wanted a file, or a diffusers folder.")
    return UnreadableCheckpoint(f"{shown(path, 400)}: no such file. Correct the path.")


def open_container(path: Path) -> Container:
    """A view of the safetensors file or diffusers folder *path*; a pickle is converted first (`axbake.checkpoints.conversion`).

    Raises:
        UnreadableCheckpoint: damaged, not in this format, or beyond the limits of this module.
    """
    form = form_of(path)
    if form in FOLDER_FORMS:
        return _open_folder(path)
    if form == "safetensors":
        return open_safetensors(path)
    raise UnreadableCheckpoint(
        f"{path}: a {form}. The bake converts it to `results/{{model}}/checkpoint.safetensors`, without running code "
        "from it."
    )


def open_safetensors(path: Path) -> Container:
    """A view of a safetensors file, after checking all that its header claims.

    Stricter than the library: limits of size, no name twice, no tensor of more axes than networks have.

    Raises:
        UnreadableCheckpoint
    """
    size = path.stat().st_size if is_file(path) else 0

    def refusal(why: str) -> UnreadableCheckpoint:
        return UnreadableCheckpoint(
            f"{path}: {size} bytes that are not a complete safetensors file ({why}). Download it again and compare its "
            "SHA-256 with its page."
        )

    try:
        with open_file(path) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise refusal(f"its header ends at byte {length + 8}" if len(start) == 8 else "too short for a header")
            if length > MOST_HEADER_BYTES:
                raise refusal(f"a header of {length} bytes; at most {MOST_HEADER_BYTES}")
            text = file.read(length)
    except UnreadableFile as error:
        raise UnreadableCheckpoint(str(error)) from None
    try:
        header = load_json(text.decode("utf-8"))
    except ValueError as error:
        raise refusal(f"header: {shown(error, 200)}") from None
    if not isinstance(header, dict):
        raise refusal("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal("__metadata__ is not a table of texts")
    if len(header) > MOST_TENSORS:
        raise refusal(f"{len(header)} tensors; at most {MOST_TENSORS}")
    tensors, end = {}, 0
    try:
        check_names(header)
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
    said = _said_of_source(metadata.get(CONVERTED, "{}"))
    return Container(path, "safetensors", tensors, metadata, said.get("configs", {}), said)


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError unless *names* can be a network's: not too long for a message, and printable."""
    for name in names:
        if len(name) > MOST_NAME:
            raise ValueError(f"a tensor's name of {len(name)} characters ({shown(name, 40)}); at most {MOST_NAME}")
        if not name.isprintable():
            raise ValueError(f"a tensor's name with control characters ({shown(name)})")


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48  # bool is an int, and nothing that exists is larger


def _stored(name: str, entry: Any, path: Path, base: int) -> Stored:
    """A tensor's entry in a safetensors header, checked; ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: wanted dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name}: type {shown(dtype, 40)} is unknown; known: {', '.join(BITS)}")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(_whole, shape)):
        raise ValueError(f"{name}: {shown(shape, 80)} is not a shape of at most {MOST_AXES} axes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise ValueError(f"{name}: data_offsets {shown(offsets, 80)} are not two numbers")
    start, end = offsets
    if end - start != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"{name}: {end - start} bytes for shape {shape} of {dtype}")
    return Stored(dtype, tuple(shape), path, base + start, base + end)


def _said_of_source(text: str) -> dict[str, Any]:
    """What `convert_checkpoint` wrote into a file's metadata; without what it would not have written, as anybody can."""
    try:
        said = load_json(text)
    except ValueError:
        return {}
    wanted: dict[str, type] = {"form": str, "bytes": int, "configs": dict, "left_out": list, "leftovers": list}
    told = {
        name: said[name] for name, kind in wanted.items() if isinstance(said, dict) and type(said.get(name)) is kind
    }
    for name in ("left_out", "leftovers"):
        if name in told:
            told[name] = [entry for entry in told[name] if isinstance(entry, str)]
    if "configs" in told:
        told["configs"] = {name: config for name, config in told["configs"].items() if isinstance(config, dict)}
    return told


def _read_json(path: Path) -> dict:
    """A JSON object in a file beside the weights.

    Raises:
        UnreadableCheckpoint: not there, too large, or no JSON object.
    """
    try:
        value = read_json(path)
    except UnreadableFile as error:
        raise UnreadableCheckpoint(f"{error} Wanted a JSON object, as diffusers writes it.") from None
    if not isinstance(value, dict):
        raise UnreadableCheckpoint(f"{path}: not a JSON object. Wanted one, as diffusers writes it.")
    return value


@dataclass(frozen=True)
class Folder:
    """Files of a diffusers folder that are read."""

    configs: dict[str, Path]  # folder -> config
    weights: dict[str, list[Path]]  # folder -> its file, or its shards
    indexes: list[Path]  # that name the shards
    tokenizer: list[Path] = field(default_factory=list)  # that name words which were added to CLIP's


def scan_folder(path: Path) -> Folder:
    """Which files of a diffusers folder hold its networks.

    Safetensors before pickles, whole precision before half (`VARIANTS`), one file before shards.

    Raises:
        UnreadableCheckpoint: a network is missing; lists what the folder has.
    """
    if form_of(path) == "folder of networks":
        return _scan_networks(path)
    listing = next((path / name for name in PIPELINES if is_file(path / name)), None)
    if listing is None:
        return _scan_autoencoder(path)
    index = _read_json(listing)
    configs, weights, indexes = {}, {}, []
    wanted = _with_transformer(FOLDERS) if "transformer" in index else FOLDERS
    for folder, stem in (wanted | {name: stem for name, stem in FURTHER.items() if any(index.get(name) or [])}).items():
        place = path / folder
        if kind_of(place) != "a folder":
            raise UnreadableCheckpoint(
                f"{path}: no folder {folder}; its {listing.name} is of a {shown(index.get('_class_name'), 80)}. Wanted"
                f" {', '.join(wanted)}, and of models that have them {', '.join(FURTHER)}."
            )
        configs[folder] = _config_in(place, NETWORK)
        weights[folder], index_of = _weights_of(place, stem)
        indexes += index_of
    if is_file(path / SCHEDULER / "scheduler_config.json"):
        configs[SCHEDULER] = _config_in(path / SCHEDULER, "scheduler_config.json")
    tokenizer = [path / TOKENIZER / name for name in ADDED_TOKENS if is_file(path / TOKENIZER / name)]
    return Folder(configs, weights, indexes, tokenizer)


def _with_transformer(folders: Mapping[str, str]) -> dict[str, str]:
    """*folders* of a model that has a transformer, and no UNet."""
    return {"transformer" if name == "unet" else name: stem for name, stem in folders.items()}


def _config_in(place: Path, name: str) -> Path:
    """The config of a network in the folder *place*, after checking that reading it will end."""
    config = place / name
    if not is_file(config):
        raise UnreadableCheckpoint(
            f"{config}: {kind_of(config) or 'not there'}. Wanted a file, as diffusers writes it."
        )
    if (size := config.stat().st_size) > MOST_JSON_BYTES:
        raise UnreadableCheckpoint(
            f"{config}: {size} bytes; at most {MOST_JSON_BYTES}. Wanted a config as diffusers writes it."
        )
    return config


def _scan_autoencoder(path: Path) -> Folder:
    """The same of a folder that holds an autoencoder alone."""
    kind = shown(_read_json(_config_in(path, NETWORK)).get("_class_name"), 80)
    if not kind.startswith("Autoencoder"):
        raise UnreadableCheckpoint(
            f"{path}: no {PIPELINES[0]}, and its {NETWORK} is of {kind}. Wanted a diffusers folder of a complete pipeline "
            "or of an autoencoder."
        )
    weights, indexes = _weights_of(path, FOLDERS["vae"])
    return Folder({"vae": path / NETWORK}, {"vae": weights}, indexes)


def _scan_networks(path: Path) -> Folder:
    """The same for a folder that has one file for each network, and no configs."""
    wanted = FOLDERS if is_file(path / SPLIT[0]) else _with_transformer(FOLDERS)
    files = {name: path / f"{name}.safetensors" for name in (*wanted, *FURTHER)}
    if missing := [file.name for name, file in files.items() if name in wanted and not is_file(file)]:
        raise UnreadableCheckpoint(
            f"{path}: no {', '.join(missing)}, but {_listing(path)}. Wanted a file for each network:"
            f" {', '.join(f'{name}.safetensors' for name in files)} ({', '.join(FURTHER)}: of models that have them). Links"
            " to files are followed."
        )
    return Folder({}, {name: [file] for name, file in files.items() if is_file(file)}, [])


def _weights_of(place: Path, stem: str) -> tuple[list[Path], list[Path]]:
    """Files of the weights in one folder of a diffusers model, and the index that names them, if they are shards."""
    pickled = "pytorch_model" if stem == "model" else stem
    for name, kind in ((stem, "safetensors"), (pickled, "bin")):
        for variant in VARIANTS:
            marked = f".{variant}" if variant else ""
            if is_file(file := place / f"{name}{marked}.{kind}"):
                return [file], []
            # diffusers has written both orders: model.fp16.safetensors.index.json and model.safetensors.index.fp16.json.
            for index in (f"{name}{marked}.{kind}.index.json", f"{name}.{kind}.index{marked}.json"):
                if is_file(place / index):
                    return _shards(_config_in(place, index)), [place / index]
    raise UnreadableCheckpoint(
        f"{place}: no {stem}.safetensors, nor one of {', '.join(filter(None, VARIANTS))}; found "
        f"{_listing(place) or 'no files'}."
    )


def _listing(place: Path) -> str:
    """Names of some files in a folder, for messages."""
    try:
        found = sorted(shown(file.name, 80) for file in itertools.islice(place.iterdir(), 1000))
    except OSError as error:
        return error.strerror or "none that can be listed"
    return ", ".join(found[:20])


def _shards(index: Path) -> list[Path]:
    table = _read_json(index).get("weight_map")
    names = (
        set(table.values()) if isinstance(table, dict) and all(isinstance(n, str) for n in table.values()) else set()
    )
    if not names or any(Path(name).name != name or name == ".." for name in names):
        raise UnreadableCheckpoint(f"{index}: weight_map does not name files beside it.")
    missing = sorted(name for name in names if not is_file(index.parent / name))
    if missing:
        listed = ", ".join(shown(name, 80) for name in missing[:8])
        raise UnreadableCheckpoint(f"{index}: shards are missing: {listed}. Download the folder again.")
    return [index.parent / name for name in sorted(names)]


def files_of(path: Path) -> list[Path]:
    """Files that make up the checkpoint *path*, the first of which is itself, or a folder's PIPELINES, NETWORK or one of SPLIT.

    Others are those of the folder that are read, or the checkpoints that a recipe merges.

    Raises:
        UnreadableCheckpoint: a device or a pipe, or a folder of no form that axbake reads.
        RecipeError: a recipe that cannot be used.
    """
    kind = kind_of(path)
    if kind not in ("", "a file", "a folder"):
        raise _missing(path, kind)
    if kind == "a file" and is_recipe(path):
        return [path, *read_recipe(path).checkpoints.values()]
    if kind != "a folder":
        return [path]
    form_of(path)
    folder = scan_folder(path)
    files = {*folder.configs.values(), *folder.indexes, *(file for files in folder.weights.values() for file in files)}
    first = next(path / name for name in (*PIPELINES, NETWORK, *SPLIT) if is_file(path / name))
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
                    f"{file}: a pickle. The bake converts it to `results/{{model}}/checkpoint.safetensors`, without "
                    "running code from it."
                )
            part = {f"{name}.{tensor}": stored for tensor, stored in open_safetensors(file).tensors.items()}
            if doubles := set(part) & set(tensors):
                raise UnreadableCheckpoint(f"{file}: {sorted(doubles)[0]} is also in another shard.")
            tensors |= part
    return Container(path, form_of(path), tensors, {}, read_configs(folder))


def read_configs(folder: Folder) -> dict[str, dict]:
    """Each network's config.json, and the scheduler's, by the name of its folder."""
    return {name: _read_json(file) for name, file in folder.configs.items()}


def added_words(folder: Folder) -> list[str]:
    """Words of a folder's tokenizer that CLIP's vocabulary lacks, as textual inversion adds them.

    Raises:
        UnreadableCheckpoint: a file of the tokenizer is no table.
    """
    words: dict[str, None] = {}
    for path in folder.tokenizer:
        said = _read_json(path)
        decoder = said.get("added_tokens_decoder")  # of transformers from 4.34 on: number -> what it stands for
        entries = decoder.items() if isinstance(decoder, dict) else [(number, word) for word, number in said.items()]
        for number, word in entries:
            word = word.get("content") if isinstance(word, dict) else word
            if isinstance(word, str) and re.fullmatch(r"\d{1,9}", str(number)) and int(number) >= VOCABULARY:
                words[word] = None
    return list(words)


def place_of(files: list[Path]) -> Path:
    """The checkpoint that `files_of` lists *files* of."""
    is_folder = files[0].name in (*PIPELINES, NETWORK) or (files[0].name in SPLIT and len(files) > 1)
    return files[0].parent if is_folder else files[0]
