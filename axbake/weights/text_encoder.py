"""The text encoder as prompts want it: with the vectors of textual-inversion embeddings, and without its last layers.

Vectors become rows of the token table, behind CLIP's own, so a compiled text encoder knows them by their ids.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from axbake.checkpoints.embeddings import check_vectors, read_embedding
from axbake.networks.clip_skip import layers_left
from axbake.weights.files import read_description

TOKEN_TABLE = "embeddings.token_embedding.weight"

Tensors = dict[str, torch.Tensor]


def change_text_encoder(
    plain: Path,
    embeddings: list[Path],
    *,
    encoder: str,
    title: str,
    clip_skip: int,
    shortened: bool,
    weights: Path,
) -> None:
    """Write the text encoder *plain* with *embeddings*, and without its last layers (`axbake.weights.importing`)."""
    description = read_description(plain)
    layers = layers_left(description.config["num_hidden_layers"], clip_skip, title=title, shortened=shortened)
    tensors = _with_embeddings(_without_last_layers(load_file(plain), layers), embeddings, encoder)
    config = description.config | {"num_hidden_layers": layers, "vocab_size": len(tensors[TOKEN_TABLE])}
    save_file(tensors, weights, metadata=replace(description, config=config).as_metadata())


def _without_last_layers(tensors: Tensors, layers: int) -> Tensors:
    """*tensors* without those of the layers behind the first *layers*."""
    numbers = {name: re.match(r"encoder\.layers\.(\d+)\.", name) for name in tensors}
    return {name: tensors[name] for name, number in numbers.items() if number is None or int(number[1]) < layers}


def _with_embeddings(tensors: Tensors, embeddings: list[Path], encoder: str) -> Tensors:
    """*tensors* with the vectors of *embeddings* as rows behind those of the token table."""
    table = tensors[TOKEN_TABLE]
    rows, width = table.shape
    vectors = []
    for path in embeddings:
        found = read_embedding(path, encoder=encoder)
        check_vectors(path, *found.shape, rows=rows, width=width)
        vectors.append(found.to(table.dtype))
    return tensors | {TOKEN_TABLE: torch.cat([table, *vectors])}
