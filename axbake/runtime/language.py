"""Prompts for text encoders that are language models: put into a sentence, cut into tokens, and filled up to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .errors import BundleError
from .reading import shown

PLACE = "{prompt}"  # where a prompt goes in a template


@dataclass(frozen=True)
class LanguageFormat:
    """How a language model is given a prompt."""

    template: str  # with PLACE; special tokens are written as the tokenizer has them
    tokens: int  # that it is given: a prompt of fewer is filled up behind, one of more is cut off behind
    pad: str  # token that it is filled up with
    folder: str = "tokenizer"  # of a diffusers model, that its tokenizer is in


class LanguageTokenizer:
    """A prompt to a language model's token ids.

    Attributes:
        format: how it is given prompts.
    """

    def __init__(self, content: str, format: LanguageFormat) -> None:
        """
        Args:
            content: of a `tokenizer.json` of Hugging Face's tokenizers.

        Raises:
            BundleError: it is none, or lacks the token to fill up with.
        """
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # `tokenizers` has no class of its own
            raise BundleError(f"tokenizer.json: {shown(error)}; wanted one of Hugging Face's tokenizers.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.format = format
        pad = self._tokenizer.token_to_id(format.pad)
        if pad is None:
            raise BundleError(
                f"tokenizer.json: no token {format.pad!r}; wanted the tokenizer of the model's own text encoder."
            )
        self.pad: int = pad

    def count(self, prompt: str) -> int:
        """How many tokens *prompt* has within its template, before it is cut off."""
        return len(self._encoding(prompt).ids)

    def arrays(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """What a text encoder takes: ids, and a mask that is 1 for each that is not filled up with; (1, T) int64 both."""
        ids = self._encoding(prompt).ids[: self.format.tokens]
        rest = self.format.tokens - len(ids)
        mask = [1] * len(ids) + [0] * rest
        return np.array([ids + [self.pad] * rest], np.int64), np.array([mask], np.int64)

    def cut_off(self, prompt: str) -> str:
        """The end of *prompt* that is not taken; mostly empty."""
        offsets = self._encoding(prompt).offsets[self.format.tokens :]
        before = self.format.template.index(PLACE)
        places = [start - before for start, end in offsets if end > start]
        return prompt[max(0, places[0]) :].strip() if places else ""

    def _encoding(self, prompt: str) -> Any:
        return self._tokenizer.encode(self.format.template.replace(PLACE, prompt))


def language_tokenizers(listing: Mapping[str, Any]) -> dict[str, LanguageTokenizer]:
    """Those of an `embeddings.json`, by text encoder.

    Raises:
        BundleError, and ValueError, TypeError, KeyError or AttributeError: damaged.
    """
    return {
        name: LanguageTokenizer(entry["tokenizer"], LanguageFormat(**entry["format"]))
        for name, entry in listing.get("language", {}).items()
    }


def listed(contents: Mapping[str, str], formats: Mapping[str, LanguageFormat]) -> dict[str, Any]:
    """The entry `language` of an `embeddings.json`.

    Args:
        contents: of each text encoder's `tokenizer.json`.
    """
    return {name: {"format": asdict(formats[name]), "tokenizer": text} for name, text in contents.items()}


def length(tokenizers: Mapping[str, LanguageTokenizer], encoders: Sequence[str]) -> int:
    """How many tokens those of *encoders* that are language models give."""
    return sum(tokenizers[name].format.tokens for name in encoders if name in tokenizers)
