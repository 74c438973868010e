"""The text encoder as prompts want it: with the vectors of textual-inversion embeddings, and without its last layers.

Vectors become rows of the token table, behind CLIP's own, so a compiled text encoder knows them by their ids.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoints.containers import VOCABULARY
from axbake.checkpoints.embeddings import EmbeddingError, read_embedding
from axbake.errors import AxbakeError
from axbake.runtime.prompt import CHUNK
from axbake.weights.files import read_description

TOKEN_TABLE = "embeddings.token_embedding.weight"
# What an embedding was made for, by the width of its vectors
ENCODERS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}

Tensors = dict[str, torch.Tensor]


class ClipSkipError(AxbakeError):
    """A text encoder is not to be shortened, or has not as many layers as are to be left out."""


def change_text_encoder(
    plain: Path, embeddings: list[Path], *, title: str, clip_skip: int, shortened: bool, weights: Path
) -> None:
    """Write the text encoder *plain* with *embeddings*, and without its last layers (`axbake.weights.importing`)."""
    description = read_description(plain)
    if clip_skip > 1 and not shortened:
        raise ClipSkipError(
            f"clip_skip: {clip_skip}, wanted 1: the text encoder of {title} ends before its last layer as it is, and"
            " AUTOMATIC1111's web UI draws the same with any clip skip. Set 1 in the table."
        )
    layers = _layers_left(description.config["num_hidden_layers"], clip_skip=clip_skip)
    tensors = _with_embeddings(_without_last_layers(load_file(plain), layers), embeddings)
    config = description.config | {"num_hidden_layers": layers, "vocab_size": len(tensors[TOKEN_TABLE])}
    save_file(tensors, weights, metadata=replace(description, config=config).as_metadata())


def _layers_left(layers: int, *, clip_skip: int) -> int:
    left = layers - (clip_skip - 1)
    if left < 1:
        raise ClipSkipError(
            f"clip_skip: {clip_skip} leaves out {clip_skip - 1} layers of {layers}; at least one must stay. Set a lower"
            " number in the table."
        )
    return left


def _without_last_layers(tensors: Tensors, layers: int) -> Tensors:
    """*tensors* without those of the layers behind the first *layers*."""
    numbers = {name: re.match(r"encoder\.layers\.(\d+)\.", name) for name in tensors}
    return {name: tensors[name] for name, number in numbers.items() if number is None or int(number[1]) < layers}


def _with_embeddings(tensors: Tensors, embeddings: list[Path]) -> Tensors:
    """*tensors* with the vectors of *embeddings* as rows behind those of the token table."""
    table = tensors[TOKEN_TABLE]
    rows, width = table.shape
    vectors = [_fitting(read_embedding(path), path, rows=rows, width=width).to(table.dtype) for path in embeddings]
    return tensors | {TOKEN_TABLE: torch.cat([table, *vectors])}


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
