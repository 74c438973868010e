"""Ids that textual-inversion embeddings have in the token table: `embeddings.json`."""

import json
from collections.abc import Sequence
from pathlib import Path

from axbake.checkpoints.embeddings import EmbeddingError, read_embeddings
from axbake.runtime.tokenizer import VOCABULARY
from axbake.weights.files import read_description


def list_embeddings(text_encoders: Sequence[Path], embeddings: list[Path], *, names: list[str], listing: Path) -> None:
    """Write which ids *embeddings* have in the token table that `axbake.weights.text_encoder` makes.

    Args:
        text_encoders: `weights/{component}.safetensors`, which say what prompts are filled up with.
        names: by which prompts call the embeddings, one a file; those inside a LoRA have names of their own.
        listing: JSON to write: `embeddings`, name -> ids of its vectors, in order; `pad_token_id`, of the first text encoder;
            `pad_token_ids`, of each by component, where there are several.

    Raises:
        EmbeddingError: as `read_embeddings`; two of one name.
    """
    ids: dict[str, list[int]] = {}
    first = VOCABULARY
    for given, path in zip(names, embeddings, strict=True):
        for own, vectors in read_embeddings(path).items():
            name = own or given
            if name.lower() in map(str.lower, ids):  # capitals do not count in prompts
                raise EmbeddingError(f"{path}: there is another embedding of the name {name}. Leave one of them out.")
            ids[name] = list(range(first, first + len(vectors)))
            first += len(vectors)
    described = map(read_description, text_encoders)
    pads = {one.component: one.config["pad_token_id"] for one in described}
    content = {"pad_token_id": next(iter(pads.values())), "embeddings": ids}
    content |= {"pad_token_ids": pads} if len(pads) > 1 else {}
    listing.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
