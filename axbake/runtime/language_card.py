"""A text encoder that is a language model, on a card: one axmodel a layer, as Pulsar2's `llm_build` makes them.

The host reads the token table, and takes the states between layers that the denoiser wants. What a layer takes and gives is as
public programs have it that run such files (github AXERA-TECH/ax-llm, `src/runner/LLM.hpp`; `infer_func.py` of
AXERA-TECH/gemma-3-270m.axera and others), all bfloat16 but for the positions:

    K_cache, V_cache (1, 1, W)  of tokens before; in the group of a prompt's beginning one row, which does not count
    indices (1, T) uint32       positions of the tokens, by which queries and keys are turned
    input (1, T, W)             the tokens' states
    mask (1, T, T)              added to the scores: 0 for what a token attends to, else -65536
    K_cache_out, V_cache_out    of these tokens; encoders need none of them
    output (1, T, W)            the states after the layer

A file holds several groups of shapes: group 0 makes one token after the other, group 1 reads a prompt at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bfloat16 import BITS, from_bits, to_bits
from .errors import BundleError
from .model import Session
from .reading import read_object, shown

FILE = "language.json"  # beside the token table and the layers; stands for the model as its first file
TABLE = "embed_tokens.bin"
GROUP = 1  # of shapes, that reads a prompt's first tokens at once
HIDDEN = np.float32(-65536)  # what the mask adds where a token is not to be seen
IDS, KINDS, STATES = "input_ids", "attention_mask", "prompt_embeds"
CACHES = ("K_cache", "V_cache")
ALIKE = (*CACHES, "indices", "mask")  # inputs that all layers have alike
MOST = 1 << 20  # of tokens, channels, layers, as a damaged file may claim


@dataclass(frozen=True)
class Described:
    """What a `language.json` says."""

    tokens: int  # of a prompt
    drop: int  # tokens in front whose states are not taken
    width: int  # channels of a state
    vocabulary: int
    layers: int
    states: tuple[int, ...]  # which are taken, side by side; 0: before the first layer
    epsilon: float  # of the last norm
    norm: tuple[float, ...] = ()  # weights of the last norm, where the state after the last layer is taken normed

    def __post_init__(self) -> None:
        numbers = [self.tokens, self.width, self.vocabulary, self.layers]
        if not all(0 < number <= MOST for number in numbers) or not 0 <= self.drop < self.tokens:
            raise ValueError(f"tokens, drop, width, vocabulary, layers: {(self.drop, *numbers)}")
        if not self.states or not all(0 < state <= self.layers for state in self.states):
            raise ValueError(f"states: {self.states}; wanted some from 1 to {self.layers}")
        if len(self.norm) not in (0, self.width):
            raise ValueError(f"norm: {len(self.norm)} numbers; wanted {self.width}, or none")


class LanguageModel(Session):
    """A language model whose layers are models of their own: token ids and their kinds in, states out."""

    def __init__(self, name: str, described: Described, table: np.ndarray, layers: Session) -> None:
        """
        Args:
            name: of the component.
            table: (vocabulary, width) uint16: bits of bfloat16.
            layers: all of them, from what the first takes to the states that are taken.
        """
        width, tokens = described.width, described.tokens
        ids = ((1, tokens), np.dtype(np.int64))
        taken = (1, tokens - described.drop, width * len(described.states))
        super().__init__(
            name, {IDS: ids, KINDS: ids}, {STATES: (taken, np.dtype(np.float32))}, None, layers.provider, component=name
        )
        self._described, self._table, self._layers = described, table, layers

    def leave(self) -> None:
        """Give a card's memory back, if the layers have some."""
        leave = getattr(self._layers, "leave", None)
        if leave:
            leave()

    def _compute_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
        made = self._layers.run_all([self._taken(feed) for feed in feeds])
        return [[self._given(states)] for states in made]

    def _taken(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the layers take."""
        ids, tokens = feed[IDS], self._described.tokens
        if not 0 <= int(ids.min()) <= int(ids.max()) < self._described.vocabulary:
            raise BundleError(
                f"{self.name}: token ids from {ids.min()} to {ids.max()}; wanted 0 to {self._described.vocabulary - 1}. Use the"
                " tokenizer of the model's own text encoder."
            )
        seen = np.tri(tokens, dtype=bool) & (feed[KINDS][0] == 1)
        given = {
            "indices": np.arange(tokens, dtype=np.uint32)[None],
            "mask": to_bits(np.where(seen, np.float32(0), HIDDEN))[None],
            state_name(0): np.asarray(self._table[ids[0]])[None],
        }
        return given | {name: np.zeros(self._layers.inputs[name][0], BITS) for name in CACHES}

    def _given(self, made: dict[str, np.ndarray]) -> np.ndarray:
        """The states that are taken, side by side: (1, T, sum of widths) float32."""
        how = self._described
        states = {number: from_bits(made[state_name(number)]) for number in how.states}
        if how.norm and how.layers in states:
            last = states[how.layers]
            scale = np.sqrt(np.mean(last * last, axis=-1, keepdims=True, dtype=np.float32) + np.float32(how.epsilon))
            states[how.layers] = last / scale * np.array(how.norm, np.float32)
        return np.concatenate([states[number] for number in how.states], axis=-1)[:, how.drop :]


def state_name(number: int) -> str:
    """Of the states before layer *number*, among all layers."""
    return f"hidden_states_{number}"


def tensor_name(layer: int, own: str) -> str:
    """What a tensor of the layer numbered *layer* is called among all layers."""
    ends = {"input": state_name(layer), "output": state_name(layer + 1)}
    return ends.get(own, own if own in ALIKE else f"{own}_{layer}")


def is_language_model(paths: Sequence[Path]) -> bool:
    """Whether *paths* are the files of a language model in layers."""
    return len(paths) > 1 and Path(paths[0]).name == FILE


def open_language_model(
    paths: Sequence[Path],
    open_layers: Callable[..., Session],
) -> LanguageModel:
    """The language model of a `language.json`, its token table and its layers, which *paths* are in that order.

    Args:
        open_layers: (paths, names of the states that are taken) -> the layers as one.

    Raises:
        BundleError: a file is not there, or not of this model.
    """
    place, table, *layers = map(Path, paths)
    described = read_described(place)
    size = described.vocabulary * described.width * BITS.itemsize
    if not table.is_file() or table.stat().st_size != size:
        found = f"{table.stat().st_size} bytes" if table.is_file() else "not there"
        raise BundleError(f"{table}: {found}; wanted {size} bytes, a row for each token. Copy the bundle again.")
    if len(layers) != described.layers:
        raise BundleError(
            f"{place}: {described.layers} layers, but {len(layers)} files of layers. Make the bundle again."
        )
    opened = open_layers(layers, [state_name(number) for number in described.states])
    name = place.parent.name
    wanted: dict[str, Any] = {
        "indices": ((1, described.tokens), np.dtype(np.uint32)),
        "mask": ((1, described.tokens, described.tokens), BITS),
        state_name(0): ((1, described.tokens, described.width), BITS),
    }
    if {tensor: opened.inputs.get(tensor) for tensor in wanted} != wanted or set(opened.inputs) != {*wanted, *CACHES}:
        raise BundleError(
            f"{name}: its layers take {shown(opened.inputs)}; wanted {shown(wanted)}, and {', '.join(CACHES)}. Take all files"
            " from one bake."
        )
    rows = np.memmap(table, BITS, "r", shape=(described.vocabulary, described.width))
    return LanguageModel(name, described, rows, opened)


def read_described(path: Path) -> Described:
    """What the `language.json` *path* says.

    Raises:
        BundleError: it is damaged.
    """
    said = read_object(path)
    try:
        numbers = {name: int(said[name]) for name in ("tokens", "drop", "width", "vocabulary", "layers")}
        norm = tuple(float(number) for number in said["norm"])
        return Described(**numbers, states=tuple(map(int, said["states"])), epsilon=float(said["epsilon"]), norm=norm)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{path}: {type(error).__name__}: {shown(error)}. Make the bundle again.") from error
