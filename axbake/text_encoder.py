"""The text encoder as prompts want it: with the vectors of textual-inversion embeddings, and without its last layers.

Vectors become rows of the token table, behind CLIP's own, so a compiled text encoder knows them by their ids.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from axbake.checkpoint import Part, find_family, find_part, read_header
from axbake.embeddings import VOCABULARY, EmbeddingError, read_embedding
from axbake.errors import AxbakeError
from axbake.runtime.prompt import CHUNK
from axbake.weights import Description, read_tensor, write_tensors

COMPONENT = "text_encoder"
TOKEN_TABLE = "embeddings.token_embedding.weight"
# What an embedding was made for, by the width of its vectors
ENCODERS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}


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
