"""What of Z-Image's transformer depends on the prompt alone, as a text encoder that takes a language model's states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axbake.networks import z_image
from axbake.networks.component import Interface, Module, Naming, Rename, Shapes, Tensor
from axbake.networks.mmdit import depth_of

STATES, KINDS, TOKENS = "states", "attention_mask", "prompt_embeds"
PARTS = ("cap_embedder.", "context_refiner.", "cap_pad_token")
REFINER = r"context_refiner\.(\d{1,3})\."


def renamer(shapes: Shapes) -> Rename:
    """The authors' names or diffusers', to diffusers', of this part."""
    whole = z_image.renamer(shapes)

    def rename(name: str) -> str | tuple[str, ...] | None:
        return whole(name) if name.startswith(PARTS) else None

    return rename


NAMINGS = tuple(Naming(naming.marker, renamer) for naming in z_image.NAMINGS)


def config(shapes: Shapes) -> dict:
    """What decides its shapes."""
    inner, states = shapes["cap_embedder.1.weight"]
    head = shapes["context_refiner.0.attention.norm_q.weight"][0]
    return {
        "_class_name": "ZImageConditioner",
        "dim": inner,
        "n_heads": inner // head,
        "n_refiner_layers": depth_of(shapes, REFINER),
        "cap_feat_dim": states,
        "axes_dims": [head * width // sum(z_image.AXES) for width in z_image.AXES],
    }


def build(config: Mapping) -> Module:
    """Its modules, of diffusers' classes."""
    import torch
    from diffusers.models.normalization import RMSNorm
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

    from axbake.networks.z_image_modules import Conditioner

    inner, heads, states = config["dim"], config["n_heads"], config["cap_feat_dim"]
    embedder = torch.nn.Sequential(RMSNorm(states, eps=1e-5), torch.nn.Linear(states, inner))
    blocks = [
        ZImageTransformerBlock(number, inner, heads, heads, 1e-5, True, modulation=False)
        for number in range(config["n_refiner_layers"])
    ]
    token = torch.nn.Parameter(torch.zeros((1, inner)))
    return Conditioner(embedder, torch.nn.ModuleList(blocks), token, config["axes_dims"])


def inputs(**columns: int) -> dict[str, str]:
    """States of the language model, and kinds of their tokens."""
    return {STATES: "float32", KINDS: "int64"}


def interface(config: Mapping, *, prompt_chunks: int) -> Interface:
    """States and kinds in, tokens out."""
    tokens = z_image.CHUNK * prompt_chunks
    shapes = {STATES: (1, tokens, config["cap_feat_dim"]), KINDS: (1, tokens)}
    return Interface({name: Tensor(shapes[name], dtype) for name, dtype in inputs().items()}, (TOKENS,))


def cut(network: Module, face: Interface) -> Module:
    """The whole, for prompts of one length."""
    from axbake.networks.rotary import WithTables

    return WithTables(network, face.inputs[KINDS].shape[1])


def width(config: Mapping) -> int:
    """Channels of a token."""
    return config["dim"]


def states(network: Module, given: Any, kinds: Any) -> tuple[Any, ...]:
    """The tokens."""
    return (network(given, kinds),)


def example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random states of a short prompt, and the tokens that they become."""
    import torch

    given = torch.randn(face.inputs[STATES].shape, generator=generator)
    kinds = torch.zeros(face.inputs[KINDS].shape, dtype=torch.int64)
    kinds[:, -64:-10], kinds[:, -10:] = 1, 2
    return {STATES: given, KINDS: kinds}, network(given, kinds)
