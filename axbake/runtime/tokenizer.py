"""CLIP's tokenizer, from the `vocab.json` and `merges.txt` of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from .errors import BundleError
from .language import LanguageTokenizer, language_tokenizers
from .reading import read_object, shown

VOCABULARY = 49408  # tokens that CLIP knows: words and parts of words
MOST_ID = 2**31  # models take ids as int32
TOKENS = 77  # that CLIP's text encoder takes, start and end included
START, END, COMMA = "<|startoftext|>", "<|endoftext|>", ",</w>"

#: What a prompt is split at before bytes are paired: clip/simple_tokenizer.py of OpenAI's CLIP.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def load_tokenizer(folder: Path, listing: Path) -> ClipTokenizer:
    """The tokenizer of *folder* with the names and the padding of an `embeddings.json`.

    Raises:
        BundleError: the folder is not CLIP's, or the listing is damaged.
    """
    content = read_object(listing)
    embeddings, pads = content.get("embeddings"), content.get("pad_token_ids", {})
    pad = content.get("pad_token_id")
    only = pad is None and "language" in content
    if not (isinstance(embeddings, dict) and isinstance(pads, dict)) or not all(
        map(_are_ids, [*embeddings.values(), [*([] if only else [pad]), *pads.values()]])
    ):
        raise BundleError(
            f"{listing}: wanted a list of token ids for each of `embeddings`, and ids of padding. Copy the bundle again."
        )
    try:
        language = language_tokenizers(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(
            f"{listing}: language: {shown(error)}; wanted a tokenizer and a format for each text encoder. Copy the bundle again."
        ) from error
    tokenizer = ClipTokenizer(folder, embeddings, pad_token_id=pad, pads=pads)
    tokenizer.language, tokenizer.language_only = language, only
    return tokenizer


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(number, int) and 0 <= number < MOST_ID for number in value)


class ClipTokenizer:
    """Words to token ids, as transformers' `CLIPTokenizer` (version 5) gives them, and names of embeddings to theirs.

    Attributes:
        start, end, comma, pad: ids of the tokens; chunks are filled up with *pad*.
        pads: the same of each text encoder that has a padding of its own, by component.
        embeddings: name of each textual-inversion embedding -> ids of its vectors in the text encoder's token table.
        language: tokenizers of the text encoders that are language models, by component.
        language_only: whether there are no others, so that this one has nothing to read.
    """

    language: Mapping[str, LanguageTokenizer] = MappingProxyType({})
    language_only: bool = False

    def __init__(
        self,
        folder: Path,
        embeddings: Mapping[str, Sequence[int]] | None = None,
        *,
        pad_token_id: int | None = None,
        pads: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            folder: holds `vocab.json` and `merges.txt`.
            pad_token_id: of the token that chunks are filled up with; None: the end token, as CLIP was trained. open_clip's
                text encoder of Stable Diffusion 2.x has 0.
            pads: component -> the same of a text encoder; those that are not named have *pad_token_id*.
        """
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        missing = [path.name for path in (vocab, merges) if not path.is_file()]
        if missing:
            raise BundleError(f"{folder}: no {' and no '.join(missing)}; wanted CLIP's vocab.json and merges.txt.")
        self._tokenizer = _tokenizer(vocab, merges)
        self.start, self.end, self.comma = (_id(self._tokenizer, token) for token in (START, END, COMMA))
        self.pad = self.end if pad_token_id is None else pad_token_id
        self.pads = dict(pads or {})
        self.embeddings = dict(embeddings or {})
        spelt = {tuple(self._ids(name)): tuple(ids) for name, ids in self.embeddings.items()}
        # The longest first, so that a name which another begins with does not take its place.
        self._names = sorted(spelt.items(), key=lambda item: -len(item[0]))

    def words(self, text: str) -> list[tuple[tuple[int, ...], int]]:
        """The ids of *text* without start and end, each with the place of its first character.

        An embedding is where its name's tokens are, in any letters, as in AUTOMATIC1111's `textual_inversion.py`
        (`find_embedding_at_position`); its ids stay together.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = tuple(encoding.ids), encoding.offsets  # the library makes a new list at each look
        words, i = [], 0
        while i < len(ids):
            name, vectors = next(
                (pair for pair in self._names if ids[i : i + len(pair[0])] == pair[0]), ((ids[i],), (ids[i],))
            )
            words.append((vectors, offsets[i][0]))
            i += len(name)
        return words

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _tokenizer(vocab: Path, merges: Path) -> Tokenizer:
    """The parts of CLIP's tokenizer, put together."""
    try:
        model = BPE.from_file(
            str(vocab), str(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
        )
    except Exception as error:  # `tokenizers` has no class of its own
        raise BundleError(f"{vocab}, {merges}: {shown(error)}; wanted CLIP's. Copy the bundle again.") from error
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
    if number is None:  # start and end are added where the vocabulary lacks them; CLIP's has the comma
        raise BundleError(f"vocab.json: no token {token!r}; wanted CLIP's. Copy the bundle again.")
    return number
