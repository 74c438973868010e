"""T5's encoder (Raffel et al. 2020, version 1.1) as a text encoder that the board's host runs, in one graph or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axbake.networks.component import Interface, Module, Naming, Rename, Shapes, SliceError, Tensor
from axbake.networks.dividing import cuts
from axbake.networks.mmdit import depth_of

IDS, STATES = "input_ids", "prompt_embeds"
BLOCKS = r"encoder\.block\.(\d{1,3})\."
FIRST = "encoder.block.0.layer."
BIAS = f"{FIRST}0.SelfAttention.relative_attention_bias.weight"
STARTS = ("shared.weight", "encoder.block.", "encoder.final_layer_norm.")


def renamer(shapes: Shapes) -> Rename:
    """transformers' names, which stay, without a second name of the token table."""
    return lambda name: name if name.startswith(STARTS) else None


NAMINGS = (Naming(f"{FIRST}0.SelfAttention.q.weight", renamer),)


def config(shapes: Shapes) -> dict:
    """Config of a `T5EncoderModel`."""
    vocabulary, inner = shapes["shared.weight"]
    buckets, heads = shapes[BIAS]
    return {
        "_class_name": "T5EncoderModel",
        "vocab_size": vocabulary,
        "d_model": inner,
        "d_kv": shapes[f"{FIRST}0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{FIRST}1.DenseReluDense.wi_0.weight"][0],
        "num_layers": depth_of(shapes, BLOCKS),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def build(config: Mapping) -> Module:
    """transformers' `T5EncoderModel`; its token table stands in one place."""
    import torch
    from transformers import T5Config, T5EncoderModel

    options = {name: value for name, value in config.items() if name != "_class_name"}
    network = T5EncoderModel(T5Config(**options, attn_implementation="eager"))
    network.encoder.embed_tokens = torch.nn.Identity()
    return network


def width(config: Mapping) -> int:
    """Channels of a token."""
    return config["d_model"]


def weights(config: Mapping) -> list[int]:
    """Number of weights of each block, with those of the token table and of the last norm."""
    inner, attended = config["d_model"], config["d_kv"] * config["num_heads"]
    sizes = [4 * inner * attended + 3 * inner * config["d_ff"] + 2 * inner] * config["num_layers"]
    sizes[0] += config["vocab_size"] * inner + config["relative_attention_num_buckets"] * config["num_heads"]
    sizes[-1] += inner
    return sizes


def states(network: Any, ids: Any, kinds: Any) -> tuple[Any, ...]:
    """The last hidden state, (1, T, W). Tokens that fill up count as all others, as in diffusers' pipelines."""
    return (network.encoder(inputs_embeds=network.shared(ids)).last_hidden_state,)


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random token ids, and the states."""
    import torch

    ids = torch.randint(0, config["vocab_size"], face.inputs[IDS].shape, generator=generator)
    return {IDS: ids}, states(network, ids, None)[0]


@dataclass(frozen=True)
class T5Slice:
    """One graph of a T5 encoder, as `axbake.networks.component.Graph` has it: number *number* of *count*."""

    name: str
    number: int
    count: int
    tokens: int  # of a prompt

    def inputs(self, **columns: int) -> dict[str, str]:
        """NumPy's type of what the first takes."""
        return {IDS: "int64"}

    def interface(self, config: Mapping) -> Interface:
        """What it takes and gives: token ids or the hidden tensor before block k, `hidden_states_{k}`.

        Raises:
            SliceError: the network has fewer blocks than graphs.
        """
        begin, end = self.bounds(config)
        hidden = Tensor((1, self.tokens, config["d_model"]), "float32")
        taken = {f"hidden_states_{begin}": hidden} if begin else {IDS: Tensor((1, self.tokens), "int64")}
        return Interface(taken, (STATES if self.number + 1 == self.count else f"hidden_states_{end}",))

    def cut(self, network: Module, face: Interface) -> Module:
        """The slice as a module."""
        from axbake.networks.t5_modules import SlicedT5

        return SlicedT5(network, *self.bounds(network.config.to_dict()), tokens=self.tokens)

    def bounds(self, config: Mapping) -> tuple[int, int]:
        """Numbers of its first block and of the first behind it."""
        sizes = weights(config)
        if len(sizes) < self.count:
            raise SliceError(f"{self.name}: a T5 of {len(sizes)} blocks; wanted {self.count} or more.")
        ends = (0, *cuts(sizes, self.count), len(sizes))
        return ends[self.number], ends[self.number + 1]


def slices(count: int, *, tokens: int) -> tuple[T5Slice, ...]:
    """*count* graphs."""
    return tuple(T5Slice(f"blocks_{number}", number, count, tokens) for number in range(count))
