"""Prompts for text encoders that are language models: put into a sentence, cut into tokens, and filled up to one length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
    side: str = "right"  # where it is filled up: "left": before the prompt
    multiple: int = 1  # a prompt is first filled up behind to a multiple of so many tokens, which count as its own
    drop: int = 0  # tokens of the template's beginning, whose states are not taken
    masked: bool = False  # whether the denoiser masks the tokens that are filled up
    chunked: bool = False  # whether a row's `prompt_chunks` says how many times the tokens there are
    chunks: int = 1  # the row's
    negative: str = ""  # template of negative prompts; empty: the same
    mark: str = ""  # with which a prompt is taken as it is, without a template; empty: none is
    own: bool = True  # whether the tokenizer adds its special tokens; else the template has them all

    def of(self, chunks: int) -> LanguageFormat:
        """The same for a row with so many `prompt_chunks`."""
        if not self.chunked:
            return self
        return replace(self, tokens=self.drop + self.taken * chunks, chunks=chunks)

    @property
    def taken(self) -> int:
        """How many tokens the denoiser is given."""
        return self.tokens - self.drop


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
        self.format = format
        pad = self._tokenizer.token_to_id(format.pad)
        if pad is None:
            raise BundleError(
                f"tokenizer.json: no token {format.pad!r}; wanted the tokenizer of the model's own text encoder."
            )
        self.pad: int = pad

    def count(self, prompt: str) -> int:
        """How many tokens *prompt* has within its template, before it is cut off."""
        return len(self._encoding(prompt, self._template(prompt)).ids)

    def arrays(self, prompt: str, *, negative: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What a text encoder takes: ids and a mask, (1, T) int64 both.

        Args:
            negative: whether it is a negative prompt.

        The mask is 1 for the prompt's own tokens, 2 for those that fill it up to a multiple, 0 for all others.
        """
        ids = self._encoding(prompt, self._template(prompt, negative=negative), cut=True).ids
        own = min(self.format.tokens, max(1, -(-len(ids) // self.format.multiple)) * self.format.multiple)
        own = own if self.format.multiple > 1 else len(ids)
        rest = self.format.tokens - own
        kinds = [1] * len(ids) + [2] * (own - len(ids))
        filled = ids + [self.pad] * (own - len(ids))
        if self.format.side == "left":
            filled, kinds = [self.pad] * rest + filled, [0] * rest + kinds
        else:
            filled, kinds = filled + [self.pad] * rest, kinds + [0] * rest
        return np.array([filled], np.int64), np.array([kinds], np.int64)

    def cut_off(self, prompt: str) -> str:
        """The end of *prompt* that is not taken; mostly empty."""
        if self.count(prompt) <= self.format.tokens:
            return ""
        template = self._template(prompt)
        taken = max((end for _, end in self._encoding(prompt, template, cut=True).offsets), default=0)
        return prompt[max(0, taken - template.index(PLACE)) :].strip()

    def _template(self, prompt: str, *, negative: bool = False) -> str:
        if self.format.mark and self.format.mark in prompt:
            return PLACE
        return self.format.negative if negative and self.format.negative else self.format.template

    def _encoding(self, prompt: str, template: str, *, cut: bool = False) -> Any:
        """Tokens of *prompt* in its template; *cut*: no more than are taken, a last one that the model adds among them."""
        if cut:
            self._tokenizer.enable_truncation(self.format.tokens)
        else:
            self._tokenizer.no_truncation()
        return self._tokenizer.encode(template.replace(PLACE, prompt), add_special_tokens=self.format.own)


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
