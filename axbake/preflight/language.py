"""What a language model in layers takes: of the card while it reads a prompt, of the board's host, and of whoever builds it."""

import math
from collections.abc import Iterator
from pathlib import Path

from axbake.networks.card_layers import CardLayers
from axbake.preflight.estimate import CARD_MIB, MIB_OF_MB, MUCH
from axbake.preflight.findings import Finding
from axbake.weights.files import read_description, read_shapes

#: Bytes of a layer's file for each of its weights: 120 MB are published of Qwen3-4B's layers, of 101 million weights each
#: (M5Stack's page of that model on its LLM-8850)
BYTES_A_WEIGHT = 120e6 / 101e6


def language_findings(component: str, weights: Path, card: CardLayers) -> Iterator[Finding]:
    """What to expect of the language model *component* on the card.

    Args:
        weights: `weights/{component}.safetensors`.
    """
    config = read_description(weights).config
    shapes = read_shapes(weights)
    sizes = [sum(math.prod(shapes[n]) for n in shapes if n.startswith(f"layers.{k}.")) for k in range(card.count)]
    table = 2 * math.prod(shapes["embed_tokens.weight"])
    need = sum(sizes) * BYTES_A_WEIGHT / 1e6 * MIB_OF_MB
    beside = "" if need <= MUCH * CARD_MIB else "; part of the layers then stream"
    yield Finding(
        component,
        "card",
        "note" if not beside else "warning",
        f"{card.count} layers, about {need:.0f} of {CARD_MIB} MiB of CMM while they read a new prompt{beside}; they leave before"
        f" the denoiser comes. The board's host reads its token table of {table / 1e6:.0f} MB",
    )
    together = config["num_attention_heads"] * config["head_dim"]
    if together != config["hidden_size"]:
        yield Finding(
            component,
            "structure",
            "note",
            f"its heads have {together} channels together, a state {config['hidden_size']}: Pulsar2 5.2 and 6.0 were seen to"
            " build such a Qwen3, 7.0 to refuse another model for it",
        )
