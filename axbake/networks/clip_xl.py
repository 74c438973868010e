"""The two text encoders of Stable Diffusion XL: CLIP ViT-L/14, and OpenCLIP ViT-bigG/14 with its projection.

Both give their last but one hidden state, without the final norm (Podell et al. 2023; sgm's `FrozenCLIPEmbedder`, layer 11, and
`FrozenOpenCLIPEmbedder2`, layer penultimate). Files name both alike, so the narrower network is the first.
"""

from collections.abc import Mapping
from typing import Any

from axbake.networks import architecture, clip, names
from axbake.networks.component import Interface, Module, Naming, Shapes, Tensor
from axbake.runtime.tokenizer import TOKENS

FOLDER, PREFIX = "text_encoder_2", "text_encoder_2.text_model."
BESIDE = {"text_projection.weight": "text_encoder_2."}
NAMINGS = (
    Naming("text_model.embeddings.token_embedding.weight", names.projected_clip_renamer),
    Naming("transformer.resblocks.0.ln_1.weight", names.whole_open_clip_renamer, turned=("text_projection.weight",)),
)
END, PAD = 49407, 0  # <|endoftext|>, with which CLIP fills up; "!", with which open_clip does
TOKEN_TABLE = "embeddings.token_embedding.weight"
HIDDEN, PROJECTED = "hidden_states", "text_embeds"


def config(shapes: Shapes) -> dict:
    """Config of the first."""
    return architecture.text_architecture(shapes, hidden_act="quick_gelu", pad_token_id=END)


def projected_config(shapes: Shapes) -> dict:
    """Config of the second."""
    return architecture.projected_text_architecture(shapes, hidden_act="gelu", pad_token_id=PAD)


def is_narrowest(network: Shapes, every: list[Shapes]) -> bool:
    """Whether a text encoder is the first, of *every* one in a file."""
    return _width(network) == min(map(_width, every))


def is_widest(network: Shapes, every: list[Shapes]) -> bool:
    """Whether it is the second."""
    return _width(network) == max(map(_width, every))


def _width(network: Shapes) -> int:
    return network[TOKEN_TABLE][1] if len(network.get(TOKEN_TABLE, ())) > 1 else 0


def build_projected(config: Mapping) -> Module:
    """transformers' `CLIPTextModel`, with the projection of `CLIPTextModelWithProjection` as a part of its own."""
    import torch

    network = clip.build(config)
    network.text_projection = torch.nn.Linear(config["hidden_size"], config["projection_dim"], bias=False)
    return network


def pooled_width(config: Mapping) -> int:
    """Channels of the pooled prompt that the second gives."""
    return config["projection_dim"]


def interface(config: Mapping) -> Interface:
    """Token ids in, the last but one hidden state out."""
    return Interface({name: Tensor((1, TOKENS), dtype) for name, dtype in clip.inputs().items()}, (HIDDEN,))


def projected_interface(config: Mapping) -> Interface:
    """The same, and what each token would give as the pooled prompt: the end token's is it."""
    return Interface(interface(config).inputs, (HIDDEN, PROJECTED))


def cut(network: Module, face: Interface) -> Module:
    """The network up to its last but one hidden state, with a mask that can be quantised."""
    from axbake.networks.modules import PenultimateTextEncoder

    return PenultimateTextEncoder(network, TOKENS)


def states(network: Module, ids: Any) -> tuple[Any, ...]:
    """The last but one hidden state; of the second text encoder what each token would give as the pooled prompt, too."""
    made = network(ids, output_hidden_states=True)
    hidden = made.hidden_states[-2]
    if not hasattr(network, "text_projection"):
        return (hidden,)
    return hidden, network.text_projection(made.last_hidden_state)


def example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random token ids, and what the network gives with its own causal mask."""
    ids = clip.random_ids(face, config, generator)
    return ids, states(network, *ids.values())
