"""Ids that textual-inversion embeddings have in the token table: `embeddings.json`."""

import json
from collections.abc import Sequence
from pathlib import Path

from axbake.checkpoints.embeddings import EmbeddingError, embedding_sizes
from axbake.runtime.tokenizer import VOCABULARY
from axbake.weights.files import read_description


def list_embeddings(
    text_encoders: Sequence[Path], embeddings: list[Path], *, names: list[str], encoders: Sequence[str], listing: Path
) -> None:
    """Write which ids *embeddings* have in the token table that `axbake.weights.text_encoder` makes.

    Args:
        text_encoders: `weights/{component}.safetensors`, which say what prompts are filled up with.
        names: by which prompts call the embeddings, one a file; those inside a LoRA have names of their own.
        encoders: what files call the vectors for each text encoder; an empty one: there is one text encoder.
        listing: JSON to write: `embeddings`, name -> ids of its vectors, in order; `pad_token_id`, of the first text encoder;
            `pad_token_ids`, of each by component, where there are several.

    Raises:
        EmbeddingError: as `read_embeddings`; two of one name, or one with more vectors for one text encoder than for another.
    """
    ids: dict[str, list[int]] = {}
    first = VOCABULARY
    for given, path in zip(names, embeddings, strict=True):
        found, *others = (embedding_sizes(path, encoder=encoder) for encoder in encoders)
        for own, (count, _) in found.items():
            name = own or given
            if any(other.get(own, [0])[0] != count for other in others):
                raise EmbeddingError(
                    f"{path}: {name} has {count} vectors for one text encoder and a different number for another; "
                    "wanted the same number."
                )
            if name.lower() in map(str.lower, ids):  # capitals do not count in prompts
                raise EmbeddingError(f"{path}: there is another embedding with the name {name}. Leave out one of them.")
            ids[name] = list(range(first, first + count))
            first += count
    described = map(read_description, text_encoders)
    pads = {one.component: one.config["pad_token_id"] for one in described}
    content = {"pad_token_id": next(iter(pads.values())), "embeddings": ids}
    content |= {"pad_token_ids": pads} if len(pads) > 1 else {}
    listing.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
