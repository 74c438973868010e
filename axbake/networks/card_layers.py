"""Which language models Pulsar2's `llm_build` compiles, layer by layer, and what it is given of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from axbake.runtime.language_card import FILE, TABLE

PREFIX = "model."  # of a language model's tensors in a folder of Hugging Face's


@dataclass(frozen=True)
class CardLayers:
    """A language model that `llm_build` is documented to take.

    AXERA's list («verified models», AXERA-TECH/pulsar2-docs, `appendix/build_llm.md`, Pulsar2 6.0) has Qwen3, Qwen2.5, Gemma 2,
    Llama 3.2, Phi 2 and 3, ChatGLM 3, MiniCPM 4 and others of their kind; no encoder such as T5 or CLIP.
    """

    folder_config: Callable[[Mapping[str, Any]], dict[str, Any]]  # the component's config -> what `config.json` says
    states: tuple[int, ...]  # of the hidden states, as transformers numbers them, that are taken side by side

    @property
    def count(self) -> int:
        """How many layers are built: those that the states need."""
        return max(self.states)


def qwen3_folder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a Qwen3, as its authors' folders have it; the tokens' numbers matter to no layer."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: config[name] for name in kept},
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_theta": round(config["rope_theta"]),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 40960,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
        "use_cache": True,
    }


def files_on_card(component: str, layers: CardLayers) -> list[str]:
    """Where the files of the language model *component* lie that its card runs, in the order in which they are opened."""
    names = [FILE, TABLE, *(f"layer_{number}.axmodel" for number in range(layers.count))]
    return [f"{component}/{name}" for name in names]
