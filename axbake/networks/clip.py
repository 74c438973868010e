"""CLIP's text encoders."""

from collections.abc import Mapping
from typing import Any

from axbake.networks.component import Interface, Module, Naming, Tensor
from axbake.networks.names import clip_renamer
from axbake.runtime.tokenizer import TOKENS

NAMING = Naming("embeddings.token_embedding.weight", clip_renamer)
FOLDER, PREFIX = "text_encoder", "text_encoder.text_model."
TOLD = ("hidden_act", "num_attention_heads", "layer_norm_eps")


def build(config: Mapping) -> Module:
    """transformers' `CLIPTextModel`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    # Only eager attention adds the mask as a tensor; the other kinds hide it in a fused operator.
    return CLIPTextModel(CLIPTextConfig(**config, attn_implementation="eager"))


def inputs() -> dict[str, str]:
    """Token ids; names as published programs have them."""
    return {"input_ids": "int64"}


def interface(config: Mapping) -> Interface:
    """Token ids in, the last hidden state out."""
    return Interface({name: Tensor((1, TOKENS), dtype) for name, dtype in inputs().items()}, ("last_hidden_state",))


def cut(network: Module, face: Interface) -> Module:
    """The whole network, with a mask that can be quantised."""
    from axbake.networks.modules import MaskedTextEncoder

    return MaskedTextEncoder(network, TOKENS)


def width(config: Mapping) -> int:
    """Channels of a token that it gives."""
    return config["hidden_size"]


def states(network: Module, ids: Any) -> tuple[Any, ...]:
    """The last hidden state."""
    return (network(ids).last_hidden_state,)


def example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random token ids, and the last hidden state that the network gives with its own causal mask."""
    ids = random_ids(face, config, generator)
    return ids, states(network, *ids.values())


def random_ids(face: Interface, config: Mapping, generator: Any) -> dict[str, Any]:
    """Random token ids for a text encoder of *config*, by the name of its input."""
    import torch

    ((name, ids),) = face.inputs.items()
    return {name: torch.randint(0, config["vocab_size"], ids.shape, generator=generator)}
