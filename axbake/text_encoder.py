"""The text encoder as prompts want it: with the vectors of textual-inversion embeddings, and without its last layers.

Embeddings come as `.safetensors`, or as `.pt` and `.bin`, which are read as data alone: nothing in them is run. Their vectors
become rows of the token table, behind CLIP's own, so a compiled text encoder knows them by their ids.
"""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from axbake.checkpoint import Part, find_family, find_part, read_header
from axbake.errors import AxbakeError
from axbake.runtime.prompt import CHUNK
from axbake.weights import Description, read_tensor, write_tensors

COMPONENT = "text_encoder"
TOKEN_TABLE = "embeddings.token_embedding.weight"
VOCABULARY = 49408  # CLIP's: rows of the token table before embeddings
ENCODERS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL",
}  # by width of a vector
# What torch raises on files that are no pickle, end early, or ask for more than tensors.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
)


class EmbeddingError(AxbakeError):
    """A file is no textual-inversion embedding that the model's text encoder can take."""


class ClipSkipError(AxbakeError):
    """A text encoder has not as many layers as are to be left out."""


def import_text_encoder(checkpoint: Path, embeddings: list[Path], *, clip_skip: int, weights: Path) -> None:
    """Write the text encoder of *checkpoint* with *embeddings* and without its last layers.

    Without embeddings, and with a clip skip of 1, the bytes are those of `axbake.checkpoint.import_checkpoint`.

    Args:
        checkpoint: single-file safetensors with LDM names.
        embeddings: files of textual-inversion embeddings; their vectors follow CLIP's in the token table, in this order, in
            the type that the table is stored in.
        clip_skip: the last *clip_skip* - 1 layers are left out; the final norm stays, as in AUTOMATIC1111's
            `modules/sd_hijack_clip.py` (`CLIP_stop_at_last_layers`).
        weights: the safetensors file to write.

    Raises:
        UnreadableCheckpoint, UnknownFamily, TensorMismatch, EmbeddingError, ClipSkipError
    """
    header = read_header(checkpoint)
    family = find_family(header)
    part = _without_last_layers(find_part(header, family, COMPONENT), clip_skip - 1)
    rows, width = part.shapes[TOKEN_TABLE]
    vectors = [_fitting(read_embedding(path), path, rows=rows, width=width) for path in embeddings]
    count = sum(len(vector) for vector in vectors)
    shapes = dict(part.shapes) | {TOKEN_TABLE: (rows + count, width)}

    def read(name: str) -> torch.Tensor:
        tensor = read_tensor(checkpoint, part.sources[name])
        return torch.cat([tensor, *(vector.to(tensor.dtype) for vector in vectors)]) if name == TOKEN_TABLE else tensor

    write_tensors(
        weights,
        {new: (header.dtypes[old], shapes[new]) for new, old in part.sources.items()},
        read,
        metadata=Description(COMPONENT, family.name, part.config | {"vocab_size": rows + count}).as_metadata(),
    )


def _without_last_layers(part: Part, count: int) -> Part:
    """*part* without its last *count* layers."""
    kept = part.config["num_hidden_layers"] - count
    if kept < 1:
        raise ClipSkipError(
            f"clip_skip: {count + 1} leaves out {count} layers of {part.config['num_hidden_layers']}; at least one must stay."
            " Set a lower number in the table."
        )

    def stays(name: str) -> bool:
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        return layer is None or int(layer[1]) < kept

    return replace(
        part,
        config=part.config | {"num_hidden_layers": kept},
        sources={new: old for new, old in part.sources.items() if stays(new)},
        shapes={name: shape for name, shape in part.shapes.items() if stays(name)},
    )


def list_embeddings(embeddings: list[Path], *, names: list[str], listing: Path) -> None:
    """Write which ids *embeddings* have in the token table that `import_text_encoder` makes.

    Args:
        names: by which prompts call them, one a file.
        listing: JSON to write: name -> ids of its vectors, in order.
    """
    ids, first = {}, VOCABULARY
    for name, path in zip(names, embeddings, strict=True):
        count = len(read_embedding(path))
        ids[name] = list(range(first, first + count))
        first += count
    listing.write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8")


def read_embedding(path: Path) -> torch.Tensor:
    """The vectors of a textual-inversion embedding, (N, W).

    Forms: AUTOMATIC1111's (`string_to_param` in `.pt`, `emb_params` in `.safetensors`) and diffusers' (one tensor under the
    embedding's own name).

    Raises:
        EmbeddingError: another form, or a file that asks for code to be run.
    """
    content = _read_file(path)
    if isinstance(content, dict) and "string_to_param" in content:
        content = content["string_to_param"]
    items = list(content.items()) if isinstance(content, dict | torch.nn.ParameterDict) else []
    names = [str(name) for name, _ in items]
    if {"clip_g", "clip_l"} & set(names):
        raise EmbeddingError(
            f"{path}: an embedding for Stable Diffusion XL ({', '.join(names)}); wanted one for the model's."
        )
    if len(items) != 1 or not isinstance(items[0][1], torch.Tensor) or items[0][1].ndim not in (1, 2):
        raise EmbeddingError(
            f"{path}: holds {', '.join(names[:5]) or 'no tensors by name'}; wanted a textual-inversion embedding:"
            " string_to_param, emb_params, or one tensor of (vectors, width)."
        )
    vectors = items[0][1].detach()
    return vectors if vectors.ndim == 2 else vectors[None]


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The original textual inversion saves torch's own ParameterDict, which holds tensors and nothing else.
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *UNREADABLE) as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = (
            f"asks for {asked[1]}, which is not data; it was not run"
            if asked
            else f"cannot be read ({type(error).__name__})"
        )
        raise EmbeddingError(f"{path}: {why}. Wanted a textual-inversion embedding; get it as .safetensors.") from error


def _fitting(vectors: torch.Tensor, path: Path, *, rows: int, width: int) -> torch.Tensor:
    """*vectors*, after checking that a text encoder of *rows* tokens of *width* numbers can take them."""
    count, found = vectors.shape
    if rows != VOCABULARY:
        raise EmbeddingError(
            f"{path}: the text encoder has {rows} tokens, wanted CLIP's {VOCABULARY} to add embeddings to."
        )
    if found != width:
        made_for = f", for {ENCODERS[found]}" if found in ENCODERS else ""
        raise EmbeddingError(f"{path}: vectors of {found} numbers{made_for}; the model's text encoder takes {width}.")
    if count > CHUNK:
        raise EmbeddingError(f"{path}: {count} vectors; a prompt's chunk holds {CHUNK}.")
    return vectors
