"""Anima's text conditioner: T5's token ids, in a table of its own, attend to the states of Qwen3. The board's host runs it.

Its authors call it the LLM adapter, and keep it in the transformer's file; diffusers calls it `AnimaTextConditioner`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axbake.networks.component import Interface, Module, Naming, Rename, Shapes, Tensor
from axbake.networks.cosmos import TOKENS
from axbake.networks.mmdit import depth_of

FOLDER, PREFIX = "text_conditioner", "text_conditioner."
STATES, KINDS, IDS, OWN_KINDS, CONTEXT = "states", "attention_mask", "t5_ids", "t5_mask", "prompt_embeds"
STARTS = ("embed.", "in_proj.", "blocks.", "out_proj.", "norm.")


def renamer(shapes: Shapes) -> Rename:
    """Its names, the same everywhere."""
    return lambda name: name if name.startswith(STARTS) else None


def lora_names(module: str) -> list[str]:
    """The name that LoRAs give a module: its authors'."""
    return [f"llm_adapter.{module}"]


NAMINGS = (Naming("embed.weight", renamer),)


def config(shapes: Shapes) -> dict:
    """Config of the conditioner."""
    words, target = shapes["embed.weight"]
    inner, source = shapes["blocks.0.cross_attn.k_proj.weight"]
    return {
        "_class_name": "AnimaTextConditioner",
        "source_dim": source,
        "target_dim": target,
        "model_dim": inner,
        "num_layers": depth_of(shapes, r"blocks\.(\d{1,3})\."),
        "num_attention_heads": inner // shapes["blocks.0.cross_attn.q_norm.weight"][0],
        "mlp_ratio": shapes["blocks.0.mlp.0.weight"][0] / inner,
        "target_vocab_size": words,
        "min_sequence_length": TOKENS,
    }


def build(config: Mapping) -> Module:
    """diffusers' `AnimaTextConditioner`, with the angles of its positions, which no file has."""
    import torch
    from diffusers import AnimaTextConditioner

    network = AnimaTextConditioner.from_config(config)
    with torch.device("cpu"):
        head = config["model_dim"] // config["num_attention_heads"]
        network.rotary_emb = type(network.rotary_emb)(head)
    return network


def inputs(**columns: int) -> dict[str, str]:
    """States of Qwen3, which of them count, T5's ids, and which of these count."""
    return {STATES: "float32", KINDS: "int64", IDS: "int64", OWN_KINDS: "int64"}


def interface(config: Mapping, **columns: int) -> Interface:
    """The same with shapes; tokens for the transformer out."""
    shapes = dict.fromkeys(inputs(), (1, TOKENS)) | {STATES: (1, TOKENS, config["source_dim"])}
    return Interface({name: Tensor(shapes[name], dtype) for name, dtype in inputs().items()}, (CONTEXT,))


def cut(network: Module, face: Interface) -> Module:
    """The whole, with its rotary tables made beforehand."""
    from axbake.networks.anima_text_modules import GraphOfConditioner

    return GraphOfConditioner(network)


def width(config: Mapping) -> int:
    """Channels of a token."""
    return config["target_dim"]


def states(network: Any, given: Any, kinds: Any, ids: Any, own: Any) -> tuple[Any, ...]:
    """The tokens; 0 where no token of T5 stands."""
    counted = given * kinds[..., None].to(given.dtype)
    return (network(counted, ids, target_attention_mask=own, source_attention_mask=kinds),)


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random states and ids of a short prompt, and the tokens that they become."""
    import torch

    given = torch.randn(face.inputs[STATES].shape, generator=generator)
    ids = torch.randint(0, config["target_vocab_size"], face.inputs[IDS].shape, generator=generator)
    counts = torch.arange(TOKENS)[None]
    kinds, own = (counts < 40).long(), (counts < 50).long()
    return {STATES: given, KINDS: kinds, IDS: ids, OWN_KINDS: own}, states(network, given, kinds, ids, own)[0]
