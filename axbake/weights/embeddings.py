"""Ids that textual-inversion embeddings have in the token table: `embeddings.json`."""

import json
from pathlib import Path

from axbake.checkpoints.embeddings import VOCABULARY, read_embedding
from axbake.weights.files import read_description


def list_embeddings(text_encoder: Path, embeddings: list[Path], *, names: list[str], listing: Path) -> None:
    """Write which ids *embeddings* have in the token table that `axbake.weights.text_encoder` makes.

    Args:
        text_encoder: `weights/text_encoder.safetensors`, which says what prompts are filled up with.
        names: by which prompts call the embeddings, one a file.
        listing: JSON to write: `embeddings`, name -> ids of its vectors, in order; `pad_token_id`.
    """
    ids, first = {}, VOCABULARY
    for name, path in zip(names, embeddings, strict=True):
        count = len(read_embedding(path))
        ids[name] = list(range(first, first + count))
        first += count
    content = {"pad_token_id": read_description(text_encoder).config["pad_token_id"], "embeddings": ids}
    listing.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
