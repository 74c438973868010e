"""Prompts as AUTOMATIC1111's web UI reads them: weighted words, chunks of 75 tokens, textual-inversion embeddings.

What a prompt means is taken from github AUTOMATIC1111/stable-diffusion-webui: `modules/prompt_parser.py`
(`parse_prompt_attention`), `modules/sd_hijack_clip.py` (chunks), `modules/sd_emphasis.py` (`EmphasisOriginal`),
`modules/extra_networks.py` (`<lora:…>`), with the settings that it comes with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import BundleError
from .model import Session, only
from .tokenizer import TOKENS, ClipTokenizer
from .values import Conditioning

MOST = 10_000  # characters of a prompt; four chunks hold some 1,500
MOST_INPUTS = 4  # of a text encoder: states, mask, and ids and mask of its own
CHUNK = TOKENS - 2  # tokens of a prompt in one run of the text encoder, which adds start and end
BACKTRACK = 20  # tokens; a chunk that is full ends at a comma as near as this («comma padding backtrack»)
FACTORS = {"(": 1.1, "[": 1 / 1.1}  # of what stands in brackets without a number
OPENING = {")": "(", "]": "["}

SYNTAX = re.compile(
    r"""
      \\ (?P<literal> [()\[\]\\]? )     # a backslash before anything else is left out
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]? (?: \d+ \.? \d* | \. \d+ ) ) \s* \)
    | (?P<close> [)\]] )
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"(?:(?<!\s)\s+)?\bBREAK\b\s*")
EXTRA_NETWORK = re.compile(r"<\w+:[^>]+>")
LORA = re.compile(r"<(?:lora|lyco):(?P<name>[^:>]+)(?P<strengths>[^>]*)>")
EMBEDDING = re.compile(r"\bembedding:(?=\S)", re.IGNORECASE)  # ComfyUI's mark before an embedding's name
# ComfyUI also takes the folder that the file is in, and the file's ending: embedding:style/name.safetensors
EMBEDDING_FILE = re.compile(r"\b(embedding:)(?:[\w.-]+[/\\])*([\w.-]*\w)", re.IGNORECASE)

#: Web UIs' syntax that changes the prompt from step to step, or draws several: pattern -> what it is
NOT_READ = {
    re.compile(r"\[(?:[^\[\]:]*:)?[^\[\]:]*:\s*[\d.]+\s*\]"): "prompt editing, which axbake does not support",
    re.compile(r"\[[^\[\]]*\|[^\[\]]*\]"): "alternating words, which axbake does not support",
    re.compile(r"\bAND\b"): "a composition of prompts, which axbake does not support",
    re.compile(r"__[\w*/-]+__"): "a wildcard, which axbake does not support",
    re.compile(r"\{[^{}]*\|[^{}]*\}"): "a choice of words, which axbake does not support",
    re.compile(r"\{[^{}|]+\}"): "a weight in NovelAI's syntax",
    re.compile(r"[（［｛][^（）［］｛｝]*[）］｝]"): "in full-width brackets, which give no weight",
    re.compile(r"\)[+-]+"): "a weight in Compel's syntax",
    re.compile(r"::\s*-?\d[\d.]*|(?<!\S)--[a-z]+(?:\s+[\d.:]+)?"): "a parameter of Midjourney's",
}

#: Embeddings that prompts on the net name without a mark, as words: the stems of their files at Civitai, in small letters
WELL_KNOWN = {
    "bad-artist",
    "bad-artist-anime",
    "bad-hands-5",
    "bad-image-v2-39000",
    "bad-picture-chill-75v",
    "bad_pictures",
    "bad_prompt",
    "bad_prompt_version2",
    "baddream",
    "badhandv4",
    "cyberrealistic_negative",
    "easynegative",
    "easynegativev2",
    "fastnegativev2",
    "negative_hand-neg",
    "ng_deepnegative_v1_64t",
    "ng_deepnegative_v1_75t",
    "realisticvision-negative-embedding",
    "unrealisticdream",
    "verybadimagenegative_v1.3",
}


class States(NamedTuple):
    """What a text encoder makes of a chunk."""

    hidden: np.ndarray  # (1, T, W) float32: what the denoiser attends to; T is `TOKENS`
    projected: np.ndarray | None = None  # (1, T, P) float32: of each token, what it would give as the pooled prompt


class Embedded(NamedTuple):
    """What the denoiser takes of a prompt."""

    tokens: np.ndarray  # (1, T × chunks, W) float32; W is the width of all text encoders together
    pooled: np.ndarray | None = None  # (1, P) float32, where the conditioning has one
    mask: np.ndarray | None = None  # (1, T) float32: 1 for tokens that count, where the denoiser takes a mask
    #: (1, L, V) float32: of the prompt's own tokens, what a language model gave to a conditioner, which made the tokens of it
    states: np.ndarray | None = None


#: (1, T) int64 ids of a chunk, or ids and mask of a language model's prompt -> what a text encoder makes of them
Encode = Callable[..., States]
Span = tuple[str, float]  # text, and the weight of its tokens


class _Token(NamedTuple):
    id: int
    weight: float
    place: int  # in the prompt's plain text


@dataclass(frozen=True)
class Chunk:
    """What one run of the text encoder takes of a prompt."""

    ids: np.ndarray  # (1, T) int64: start, up to T - 2 tokens, end, padding
    tokens: int  # before the padding
    weights: np.ndarray  # (T,) float32; 1 where no token of the prompt stands


def parse_attention(prompt: str) -> list[list[Span]]:
    r"""The texts of *prompt* with their weights, in sections that BREAK parts.

    `(a)` weighs 1.1, `(a:1.3)` 1.3, `[a]` 1/1.1; brackets in brackets multiply; one that is not closed reaches to the end. A
    backslash makes the next bracket, or backslash, an ordinary character. Neighbours of one weight are one text. BREAK
    in brackets parts the prompt too: AUTOMATIC1111 multiplies its mark, and then reads it as a word.
    """
    spans: list[list] = []  # text, weight; the text of a BREAK is None
    opened: dict[str, list[int]] = {"(": [], "[": []}  # of each open bracket, where in `spans` it stands

    def multiply(first: int, factor: float) -> None:
        for span in spans[first:]:
            span[1] *= factor

    for match in SYNTAX.finditer(prompt):
        kind = match.lastgroup
        if kind == "literal":
            spans.append([match["literal"], 1.0])
        elif kind == "open":
            opened[match["open"]].append(len(spans))
        elif kind == "weight" and opened["("]:
            multiply(opened["("].pop(), float(match["weight"]))
        elif kind == "close" and opened[OPENING[match["close"]]]:
            bracket = OPENING[match["close"]]
            multiply(opened[bracket].pop(), FACTORS[bracket])
        else:
            first, *others = BREAK.split(match[0])
            spans.append([first, 1.0])
            for text in others:
                spans += [[None, 1.0], [text, 1.0]]
    for bracket, places in opened.items():
        for first in places:
            multiply(first, FACTORS[bracket])
    return _sections(spans)


def _sections(spans: list[list]) -> list[list[Span]]:
    """*spans* parted at each BREAK, neighbours of one weight joined, then without empty texts."""
    sections: list[list[Span]] = [[]]
    for text, weight in spans:
        section = sections[-1]
        if text is None:
            sections.append([])
        elif section and section[-1][1] == weight:
            section[-1] = (section[-1][0] + text, weight)
        else:
            section.append((text, weight))
    return [[span for span in section if span[0]] for section in sections]


def chunk_prompt(prompt: str, tokenizer: ClipTokenizer) -> list[Chunk]:
    """*prompt* in as many chunks as it needs, one at least.

    BREAK ends a chunk. One that is full ends after its last comma, if no more than 20 tokens follow it there. An embedding
    is never parted; it stands where its name does, and its vectors have the weight of the name.
    """
    rows, _ = _rows(prompt, tokenizer)
    return [_chunk(row, tokenizer) for row in rows]


def _chunk(row: list[_Token], tokenizer: ClipTokenizer) -> Chunk:
    ids = [tokenizer.start, *(token.id for token in row), tokenizer.end]
    weights = [1.0, *(token.weight for token in row), 1.0]
    rest = TOKENS - len(ids)
    padded, weighted = ids + [tokenizer.pad] * rest, weights + [1.0] * rest
    return Chunk(np.array([padded], np.int64), len(ids), np.array(weighted, np.float32))


def ids_for(chunk: Chunk, tokenizer: ClipTokenizer, encoder: str) -> np.ndarray:
    """The ids of *chunk*, (1, T) int64, filled up as the text encoder called *encoder* was trained."""
    ids = chunk.ids.copy()
    ids[:, chunk.tokens :] = tokenizer.pads.get(encoder, tokenizer.pad)
    return ids


def _rows(prompt: str, tokenizer: ClipTokenizer) -> tuple[list[list[_Token]], str]:
    """The tokens of each chunk of *prompt*, and the plain text that they have places in."""
    rows: list[list[_Token]] = []
    row: list[_Token] = []
    comma: int | None = None  # where in `row` the last comma stands
    plain = ""

    def close() -> None:
        nonlocal row, comma
        rows.append(row)
        row, comma = [], None

    for number, section in enumerate(parse_attention(_without_marks(prompt))):
        if number:
            close()
            plain += " BREAK "
        for text, weight in section:
            for ids, offset in tokenizer.words(text):
                if ids == (tokenizer.comma,):
                    comma = len(row)
                elif len(row) == CHUNK and comma is not None and CHUNK - comma <= BACKTRACK:
                    behind = row[comma + 1 :]
                    del row[comma + 1 :]
                    close()
                    row = behind
                if len(row) + len(ids) > CHUNK:
                    close()
                row += [_Token(id, weight, len(plain) + offset) for id in ids]
            plain += text
    if row or not rows:
        close()
    return rows, plain


def count_tokens(prompt: str, tokenizer: ClipTokenizer) -> int:
    """How many tokens *prompt* has in all its chunks, without their starts and ends; of a language model, in its template."""
    if tokenizer.language_only:
        return max(one.count(language_text(prompt, tokenizer)) for one in tokenizer.language.values())
    rows, _ = _rows(prompt, tokenizer)
    return sum(map(len, rows))


def _without_marks(prompt: str) -> str:
    """*prompt* without what is not part of its text: `<lora:name:weight>`, and the mark of `embedding:name`."""
    return EMBEDDING.sub("", _with_bare_names(EXTRA_NETWORK.sub("", prompt)))


def _with_bare_names(prompt: str) -> str:
    """*prompt* with `embedding:name` for `embedding:folder/name.ending`."""
    return EMBEDDING_FILE.sub(lambda m: m[1] + re.sub(r"\.(safetensors|pt|bin)$", "", m[2]), prompt)


def without_lora_marks(prompt: str) -> str:
    """*prompt* without `<lora:name:strength>`, for who knows already what LoRAs the model has."""
    return LORA.sub("", prompt)


def cut_off(prompt: str, tokenizer: ClipTokenizer, *, chunks: int) -> str:
    """The end of *prompt* that *chunks* chunks do not hold, without its brackets; mostly empty."""
    rows, plain = _rows(prompt, tokenizer)
    places = [row[0].place for row in rows[chunks:] if row]
    return plain[places[0] :].strip() if places else ""


def embeddings_in(prompt: str, tokenizer: ClipTokenizer) -> set[str]:
    """Names of the tokenizer's embeddings that stand in *prompt*."""
    found = {ids for ids, _ in tokenizer.words(_without_marks(prompt))}
    return {name for name, ids in tokenizer.embeddings.items() if tuple(ids) in found}


def prompt_warnings(prompt: str, tokenizer: ClipTokenizer, *, chunks: int) -> list[str]:
    """What of *prompt* does not count, or does not mean what its writer thinks; a sentence each, mostly none."""
    cut = [
        f"longer than {one.format.tokens} tokens; its end is cut off for {name}: {end}"
        for name, one in tokenizer.language.items()
        if (end := one.cut_off(language_text(prompt, tokenizer)))
    ]
    if tokenizer.language_only:
        return [f"{mark} is not applied and is removed from the prompt" for mark in EXTRA_NETWORK.findall(prompt)] + cut
    return [
        *(
            f"{mark} is removed from the prompt: a compiled model has its LoRAs in its weights"
            for mark in (found[0] for found in LORA.finditer(prompt))
        ),
        *(
            f"{mark} is not applied and is removed from the prompt"
            for mark in EXTRA_NETWORK.findall(without_lora_marks(prompt))
        ),
        *(
            f"{name} looks like an embedding, but the model does not have it "
            f"({', '.join(tokenizer.embeddings) or 'it has none'}): it is read as ordinary text. Add its file to the "
            "table's column embeddings."
            for name in _missing_embeddings(prompt, tokenizer)
        ),
        *(
            f"{found[0]} is {what}: it is read as words"
            for pattern, what in NOT_READ.items()
            for found in pattern.finditer(prompt)
        ),
        *(
            f"longer than {CHUNK * chunks} tokens (prompt_chunks: {chunks}); this end of it is cut off: {end}"
            for end in [cut_off(prompt, tokenizer, chunks=chunks)]
            if end
        ),
        *cut,
    ]


def _missing_embeddings(prompt: str, tokenizer: ClipTokenizer) -> Iterator[str]:
    there = {name.lower() for name in tokenizer.embeddings}
    for match in re.finditer(rf"({EMBEDDING.pattern})?([\w.-]*\w)", _with_bare_names(prompt), re.IGNORECASE):
        mark, name = match[1], match[2]
        if name.lower() not in there and (mark or name.lower() in WELL_KNOWN):
            yield name


def embed_prompt(
    encoders: Sequence[Encode],
    tokenizer: ClipTokenizer,
    prompt: str,
    *,
    chunks: int,
    conditioning: Conditioning | None = None,
    negative: bool = False,
) -> Embedded:
    """What the denoiser takes of *prompt*.

    Weights count in each CLIP's states by themselves, as in AUTOMATIC1111's web UI, where each embedder of Stable Diffusion XL
    is wrapped on its own (`modules/sd_hijack.py`, `process_tokens` of `modules/sd_hijack_clip.py`). A language model is given
    the text without them; where there are no others, brackets are a part of the text.

    Args:
        encoders: in the conditioning's order.
        chunks: that the denoiser takes; a prompt of fewer is filled with empty ones, of more is cut off (`cut_off`).
        conditioning: how several encoders' states are joined; one encoder needs none.
        negative: whether it is a negative prompt, or the empty one, which some language models are given in another way.

    The pooled prompt is the first chunk's, at its first end token, without weights, as there (`modules/sd_hijack_clip.py`,
    `forward`).
    """
    if conditioning is None and len(encoders) != 1:
        raise BundleError(
            f"{len(encoders)} text encoders without a conditioning; wanted one that says how they are joined."
        )
    how = conditioning or Conditioning(("",))
    if len(how.encoders) != len(encoders):
        raise BundleError(f"{len(encoders)} text encoders; wanted those of {', '.join(how.encoders)}.")
    by_name = dict(zip(how.encoders, encoders))
    others = {*tokenizer.language, *filter(None, [how.conditioner])}
    clips = {name: one for name, one in by_name.items() if name not in others}
    contexts, pooled = _of_clips(clips, tokenizer, prompt, chunks, how) if clips else ([], None)
    if not tokenizer.language:
        return Embedded(np.concatenate(contexts, axis=1), pooled)
    behind = _of_language(by_name, tokenizer, language_text(prompt, tokenizer), how, negative=negative)
    before = [] if how.joined == "language" else contexts
    return behind._replace(tokens=np.concatenate([*before, behind.tokens], axis=1), pooled=pooled)


def _of_clips(
    encoders: Mapping[str, Encode], tokenizer: ClipTokenizer, prompt: str, chunks: int, conditioning: Conditioning
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """What CLIPs make of each chunk of *prompt*, (1, 77, W) each; and the pooled prompt, if the conditioning has one."""
    contexts, pooled = [], None
    for number, chunk in enumerate([*chunk_prompt(prompt, tokenizer), *[_chunk([], tokenizer)] * chunks][:chunks]):
        made = {name: encode(ids_for(chunk, tokenizer, name)) for name, encode in encoders.items()}
        states = [emphasise(one.hidden, chunk.weights) for one in made.values()]
        contexts.append(conditioning.of(list(encoders)).join(states))
        if number == 0 and conditioning.pooled:
            end = int((chunk.ids[0] == tokenizer.end).argmax())
            pooled = _pooled(made, conditioning.pooled.split(), end)
    return contexts, pooled


def _of_language(
    encoders: Mapping[str, Encode],
    tokenizer: ClipTokenizer,
    text: str,
    conditioning: Conditioning,
    *,
    negative: bool,
) -> Embedded:
    """What a language model makes of *text*, and a conditioner of that, if the conditioning has one."""
    (name,) = (one for one in tokenizer.language if one != conditioning.conditioner)
    language = tokenizer.language[name]
    ids, kinds = language.arrays(text, negative=negative)
    states, own = encoders[name](ids, kinds).hidden, kinds[:, language.format.drop :]
    mask = (own > 0).astype(np.float32) if language.format.masked else None
    if not conditioning.conditioner:
        return Embedded(states, mask=mask)
    second = tokenizer.language.get(conditioning.conditioner)
    own_arrays = second.arrays(text, negative=negative) if second else ()
    tokens = encoders[conditioning.conditioner](states, kinds, *own_arrays).hidden
    return Embedded(tokens, mask=mask, states=states[:, own[0] == 1])


def language_text(prompt: str, tokenizer: ClipTokenizer) -> str:
    """What a language model is given of *prompt*: without marks of LoRAs, and without weights if a CLIP reads them."""
    if tokenizer.language_only:
        return EXTRA_NETWORK.sub("", prompt).strip()
    sections = parse_attention(_without_marks(prompt))
    return " ".join("".join(text for text, _ in section).strip() for section in sections).strip()


def _pooled(made: dict[str, States], encoders: Sequence[str], end: int) -> np.ndarray:
    """(1, sum of P): the pooled prompts of *encoders* at the token *end*, side by side."""
    found = []
    for name in encoders:
        projected = made[name].projected
        if projected is None:
            raise BundleError(f"{name}: has no pooled prompt; wanted a second output.")
        found.append(projected[:, end])
    return np.concatenate(found, axis=1)


def emphasise(hidden: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """*hidden* times *weights*, scaled so that the mean of all its numbers is what it was.

    Args:
        hidden: (1, T, W) float32: of one chunk.
        weights: (T,) float32; where all are 1, *hidden* comes back as it is.
    """
    if (weights == 1).all():
        return hidden
    weighted = hidden * weights[None, :, None]
    mean, new_mean = hidden.mean(dtype=np.float64), weighted.mean(dtype=np.float64)
    return (weighted * (mean / new_mean)).astype(np.float32)


def encoder(text_encoder: Session) -> Encode:
    """A loaded text encoder as a function."""
    if not 1 <= len(text_encoder.inputs) <= MOST_INPUTS:
        only(text_encoder.inputs, f"{text_encoder.name}, inputs")
    if not 1 <= len(text_encoder.outputs) <= 2:
        raise BundleError(
            f"{text_encoder.name}: outputs {', '.join(text_encoder.outputs)}; wanted hidden states, and at most what a pooled"
            " prompt is taken from."
        )
    return lambda *arrays: States(*text_encoder.run(dict(zip(text_encoder.inputs, arrays))).values())


def chunks_of(denoiser: Session, tokenizer: ClipTokenizer, conditioning: Conditioning | None = None) -> int:
    """How many chunks of a prompt *denoiser* was compiled for; 1 where only a language model reads prompts."""
    if "encoder_hidden_states" not in denoiser.inputs:
        raise BundleError(
            f"{denoiser.name}: inputs {', '.join(denoiser.inputs)}; wanted encoder_hidden_states among them."
        )
    shape, _ = denoiser.inputs["encoder_hidden_states"]
    last = conditioning.conditioner if conditioning else ""
    known = [one.format.taken for name, one in tokenizer.language.items() if name != last]
    behind = tokenizer.language[last].format.taken if last in tokenizer.language else sum(known)
    alone = tokenizer.language_only or (conditioning is not None and conditioning.joined == "language")
    if len(shape) == 3 and (shape[1] == behind if alone else shape[1] > behind and (shape[1] - behind) % TOKENS == 0):
        of_language = max((one.format.chunks for one in tokenizer.language.values()), default=1)
        return of_language if alone else (shape[1] - behind) // TOKENS
    wanted = f"{behind}" if alone else f"{behind} and a multiple of {TOKENS}" if behind else f"a multiple of {TOKENS}"
    raise BundleError(f"{denoiser.name}: encoder_hidden_states of shape {shape}; wanted (1, {wanted}, W).")
