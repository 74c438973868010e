"""CLIP's tokenizer, from the `vocab.json` and `merges.txt` of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from .errors import BundleError

TOKENS = 77  # that CLIP's text encoder takes, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"

#: What a prompt is split at before bytes are paired: clip/simple_tokenizer.py of OpenAI's CLIP.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Prompts to token ids, as transformers' `CLIPTokenizer` (version 5) gives them.

    Args:
        folder: holds `vocab.json` and `merges.txt`.
        pad_token_id: of the token that prompts are filled up with; None: the end token, as CLIP was trained. open_clip's
            text encoder of Stable Diffusion 2.x has 0.
    """

    def __init__(self, folder: Path, *, pad_token_id: int | None = None) -> None:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        missing = [path.name for path in (vocab, merges) if not path.is_file()]
        if missing:
            raise BundleError(f"{folder}: no {' and no '.join(missing)}; wanted CLIP's vocab.json and merges.txt.")
        self._tokenizer = _tokenizer(vocab, merges)
        self._end = _id(self._tokenizer, END)
        self._pad = self._end if pad_token_id is None else pad_token_id

    def encode(self, prompt: str) -> np.ndarray:
        """(1, 77) int64: start, the prompt's first 75 tokens, end; the rest filled up."""
        ids = self._tokenizer.encode(prompt).ids
        if len(ids) > TOKENS:
            ids = [*ids[: TOKENS - 1], self._end]
        return np.array([ids + [self._pad] * (TOKENS - len(ids))], dtype=np.int64)

    def cut_off(self, prompt: str) -> str:
        """The end of *prompt* that `encode` leaves out because 75 tokens do not hold it; mostly empty."""
        encoding = self._tokenizer.encode(prompt)
        if len(encoding.ids) <= TOKENS:
            return ""
        first, _ = encoding.offsets[TOKENS - 1]  # of the first token without room; the end token takes its place
        return prompt[first:].strip()


def _tokenizer(vocab: Path, merges: Path) -> Tokenizer:
    """The parts of CLIP's tokenizer, put together."""
    model = BPE.from_file(
        str(vocab), str(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, _id(tokenizer, END)), (START, _id(tokenizer, START)), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None  # `_tokenizer` adds both, wherever the vocabulary lacks them
    return number
