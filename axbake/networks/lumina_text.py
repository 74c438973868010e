"""What of Lumina-Image 2's transformer depends on the prompt alone, as a text encoder that takes a language model's states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axbake.networks import lumina
from axbake.networks.component import Interface, Module, Naming, Rename, Shapes, Tensor
from axbake.networks.mmdit import depth_of

STATES, KINDS, TOKENS = "states", "attention_mask", "prompt_embeds"
EMBEDDER = "caption_embedder."
PARTS = (EMBEDDER, "context_refiner.")


def _of_part(rename: Rename) -> Rename:
    """Those of *rename*'s names that are of this part, without the module that they stand in."""

    def renamed(name: str) -> str | tuple[str, ...] | None:
        new = rename(name)
        several = (new,) if isinstance(new, str) else new or ()
        names = tuple(one.removeprefix(lumina.TIME) for one in several)
        if not names or not names[0].startswith(PARTS):
            return None
        return names if len(names) > 1 else names[0]

    return renamed


def renamer(shapes: Shapes) -> Rename:
    """The authors' names to diffusers', of this part."""
    return _of_part(lumina.renamer(shapes))


def diffusers_renamer(shapes: Shapes) -> Rename:
    """diffusers' names of this part."""
    return _of_part(lumina.diffusers_renamer(shapes))


NAMINGS = tuple(
    Naming(naming.marker, own) for naming, own in zip(lumina.NAMINGS, (renamer, diffusers_renamer), strict=True)
)


def lora_names(module: str) -> list[str]:
    """The name that LoRAs give a module besides its authors': diffusers'."""
    return [f"{lumina.TIME}{module}" if module.startswith(EMBEDDER) else module]


def lora_modules(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The authors' modules, as LoRAs change them."""
    whole = lumina.lora_modules(shapes)
    return {name: tuple(one.removeprefix(lumina.TIME) for one in several) for name, several in whole.items()}


def config(shapes: Shapes) -> dict:
    """What decides its shapes."""
    inner, states = shapes[f"{EMBEDDER}1.weight"]
    block = "context_refiner.0.attn."
    head = shapes[f"{block}norm_q.weight"][0]
    return {
        "_class_name": "Lumina2Conditioner",
        "hidden_size": inner,
        "num_attention_heads": inner // head,
        "num_kv_heads": shapes[f"{block}to_k.weight"][0] // head,
        "num_refiner_layers": depth_of(shapes, r"context_refiner\.(\d{1,3})\."),
        "cap_feat_dim": states,
    }


def build(config: Mapping) -> Module:
    """Its modules, of diffusers' classes."""
    import torch
    from diffusers.models.normalization import RMSNorm
    from diffusers.models.transformers.transformer_lumina2 import Lumina2TransformerBlock

    from axbake.networks.lumina_modules import Conditioner

    inner, states = config["hidden_size"], config["cap_feat_dim"]
    embedder = torch.nn.Sequential(RMSNorm(states, eps=1e-5), torch.nn.Linear(states, inner))
    heads = config["num_attention_heads"], config["num_kv_heads"]
    blocks = [
        Lumina2TransformerBlock(inner, *heads, lumina.MULTIPLE, None, 1e-5, modulation=False)
        for _ in range(config["num_refiner_layers"])
    ]
    return Conditioner(embedder, torch.nn.ModuleList(blocks))


def inputs(**columns: int) -> dict[str, str]:
    """States of the language model, and which of their tokens count."""
    return {STATES: "float32", KINDS: "int64"}


def interface(config: Mapping) -> Interface:
    """The same with shapes; tokens out."""
    shapes = {STATES: (1, lumina.TOKENS, config["cap_feat_dim"]), KINDS: (1, lumina.TOKENS)}
    return Interface({name: Tensor(shapes[name], dtype) for name, dtype in inputs().items()}, (TOKENS,))


def cut(network: Module, face: Interface) -> Module:
    """The whole, for prompts of one length."""
    from axbake.networks.rotary import WithTables

    return WithTables(network, face.inputs[KINDS].shape[1])


def width(config: Mapping) -> int:
    """Channels of a token."""
    return config["hidden_size"]


def states(network: Module, given: Any, kinds: Any) -> tuple[Any, ...]:
    """The tokens."""
    return (network(given, kinds),)


def example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random states of a short prompt, and the tokens that they become."""
    import torch

    given = torch.randn(face.inputs[STATES].shape, generator=generator)
    kinds = (torch.arange(lumina.TOKENS)[None] >= lumina.TOKENS - 50).long()
    return {STATES: given, KINDS: kinds}, network(given, kinds)
