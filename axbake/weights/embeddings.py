"""Ids that textual-inversion embeddings have in the token table: `embeddings.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from axbake.checkpoints.embeddings import EmbeddingError, embedding_sizes
from axbake.errors import AxbakeError
from axbake.runtime.errors import BundleError
from axbake.runtime.language import LanguageFormat, LanguageTokenizer, listed
from axbake.runtime.tokenizer import VOCABULARY
from axbake.users_files import UnreadableFile, read_text
from axbake.weights.files import read_description

MOST_TOKENIZER_BYTES = 100_000_000  # Gemma's has 34 million


class TokenizerError(AxbakeError):
    """A language model's tokenizer cannot be used."""


def list_embeddings(
    text_encoders: Sequence[Path],
    embeddings: list[Path],
    tokenizers: Sequence[Path] = (),
    *,
    names: list[str],
    encoders: Sequence[str],
    listing: Path,
    formats: Mapping[str, LanguageFormat] = MappingProxyType({}),
) -> None:
    """Write which ids *embeddings* have in the token table that `axbake.weights.text_encoder` makes.

    Args:
        text_encoders: `weights/{component}.safetensors`, which say what prompts are filled up with.
        tokenizers: `tokenizer.json` of each text encoder that is a language model, in the order of their names.
        names: by which prompts call the embeddings, one a file; those inside a LoRA have names of their own.
        encoders: what files call the vectors for each text encoder; an empty one: there is one text encoder.
        listing: JSON to write: `embeddings`, name -> ids of its vectors, in order; `pad_token_id`, of the first text encoder
            that is a CLIP; `pad_token_ids`, of each by component, where there are several; `language`, of each that is a
            language model its tokenizer and how it is given prompts.
        formats: of the language models, by component.

    Raises:
        TokenizerError: a tokenizer cannot be read, or is another model's.
        EmbeddingError: as `read_embeddings`; two of one name, or one with more vectors for one text encoder than for another.
    """
    ids: dict[str, list[int]] = {}
    first = VOCABULARY
    for given, path in zip(names, embeddings, strict=True):
        if not encoders:
            raise EmbeddingError(f"{path}: this model's text encoder is a language model, which takes no embeddings.")
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
    described = [read_description(path) for path in text_encoders]
    pads = {one.component: one.config["pad_token_id"] for one in described if "pad_token_id" in one.config}
    content: dict[str, Any] = {"pad_token_id": next(iter(pads.values()), None), "embeddings": ids}
    content |= {"pad_token_ids": pads} if len(pads) > 1 else {}
    if formats:
        contents = {name: _read(path, formats[name]) for name, path in zip(sorted(formats), tokenizers, strict=True)}
        content |= {"language": listed(contents, formats)}
    listing.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path, form: LanguageFormat) -> str:
    """Content of the `tokenizer.json` *path*, once it was seen that it is one of such a model."""
    try:
        content = read_text(path, most_bytes=MOST_TOKENIZER_BYTES)
        LanguageTokenizer(content, form)
    except (UnreadableFile, BundleError) as error:
        said = str(error).removeprefix("tokenizer.json: ").removeprefix(f"{path}: ")
        raise TokenizerError(
            f"{path}: {said} Give the one of the model's own text encoder in the column tokenizer."
        ) from None
    return content
