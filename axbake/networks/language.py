"""Language models as text encoders: only the layers whose states a denoiser takes, in one graph or several.

Their classes are those of transformers; files name their tensors alike, with one prefix or another. They run on the board's host
(`Component.host`), once for a prompt, so their graphs may have operators that the NPU lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axbake.networks.component import Interface, Module, Rename, Shape, Shapes, SliceError, Tensor
from axbake.networks.dividing import cuts
from axbake.networks.mmdit import depth_of
from axbake.runtime.language import LanguageFormat

IDS, MASK = "input_ids", "attention_mask"
STATES = "prompt_embeds"  # what the last graph gives
LAYER = r"layers\.(\d{1,3})\."


def layers_renamer(shapes: Shapes, *, layers: int, norm: bool = False) -> Rename:
    """transformers' names, which stay: of the token table, of the first *layers* layers, and with *norm* of the last norm."""
    ends = ("embed_tokens.weight", *(["norm.weight"] if norm else []))

    def rename(name: str) -> str | None:
        m = re.match(LAYER, name)
        return name if name in ends or (m and int(m[1]) < layers) else None

    return rename


def qwen3_config(shapes: Shapes) -> dict:
    """Config of a `Qwen3Model`; `final_norm`: whether it has the last norm, which states of layers before do not take."""
    head = shapes["layers.0.self_attn.q_norm.weight"][0]
    return _decoder_config(shapes, "Qwen3Model", head) | {
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "final_norm": "norm.weight" in shapes,
    }


def build_qwen3(config: Mapping) -> Module:
    """transformers' `Qwen3Model`, without its last norm if the config says so."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    network = Qwen3Model(_transformers_config(Qwen3Config, config, attn_implementation="eager"))
    if not config["final_norm"]:
        network.norm = torch.nn.Identity()
    return with_own_rotation(network)


QWEN2_HEAD = 128  # channels of a head of Qwen2.5-VL 7B, which its tensors' shapes do not tell


def qwen2_config(shapes: Shapes) -> dict:
    """Config of a `Qwen2Model`: of the text part of Qwen2.5-VL, whose places on three axes are one where no picture is."""
    return _decoder_config(shapes, "Qwen2Model", QWEN2_HEAD) | {"rms_norm_eps": 1e-6, "rope_theta": 1e6}


def build_qwen2(config: Mapping) -> Module:
    """transformers' `Qwen2Model`."""
    from transformers import Qwen2Config, Qwen2Model

    return with_own_rotation(Qwen2Model(_transformers_config(Qwen2Config, config, attn_implementation="eager")))


MISTRAL_HEAD = 128  # channels of a head of Mistral Small 3


def mistral_config(shapes: Shapes) -> dict:
    """Config of a `MistralModel`, of which the last norm is left out."""
    return _decoder_config(shapes, "MistralModel", MISTRAL_HEAD) | {
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e9,
    }


def build_mistral(config: Mapping) -> Module:
    """transformers' `MistralModel` without its last norm.

    What stands before a prompt attends to nothing: PyTorch's own attention gives 0 there, transformers' "eager" a mean.
    """
    import torch
    from transformers import MistralConfig, MistralModel

    network = MistralModel(_transformers_config(MistralConfig, config, attn_implementation="sdpa"))
    network.norm = torch.nn.Identity()
    return with_own_rotation(network)


def _decoder_config(shapes: Shapes, name: str, head: int) -> dict:
    """What the shapes tell of a decoder whose heads have *head* channels."""
    vocabulary, width = shapes["embed_tokens.weight"]
    layer = "layers.0."
    return {
        "_class_name": name,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{layer}mlp.gate_proj.weight"][0],
        "num_hidden_layers": depth_of(shapes, LAYER),
        "num_attention_heads": shapes[f"{layer}self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{layer}self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
    }


def _transformers_config(kind: Any, config: Mapping, **given: Any) -> Any:
    """transformers' config of the class *kind*, but for the entries that only axbake has."""
    options = {name: value for name, value in config.items() if name not in ("_class_name", "rope_theta", "final_norm")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    return kind(**options, rope_parameters=rope, **given)


GEMMA_HEAD = 256  # channels of a head of Gemma 2 2B, which its tensors' shapes do not tell


def gemma2_config(shapes: Shapes) -> dict:
    """Config of a `Gemma2Model`, of which the last norm is left out."""
    return _decoder_config(shapes, "Gemma2Model", GEMMA_HEAD) | {
        "query_pre_attn_scalar": GEMMA_HEAD,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
    }


def build_gemma2(config: Mapping) -> Module:
    """transformers' `Gemma2Model` without its last norm."""
    import torch
    from transformers import Gemma2Config, Gemma2Model

    network = Gemma2Model(_transformers_config(Gemma2Config, config, attn_implementation="eager"))
    network.norm = torch.nn.Identity()
    with torch.device("cpu"):
        network.embed_tokens.embed_scale = torch.tensor(network.embed_tokens.scalar_embed_scale)
    return with_own_rotation(network)


def with_own_rotation(network: Any) -> Module:
    """*network* with the angles of its rotary positions computed, which no file has."""
    import torch

    with torch.device("cpu"):
        network.rotary_emb = type(network.rotary_emb)(network.config)
    return network


def width(config: Mapping) -> int:
    """Channels of one of its states."""
    return config["hidden_size"]


def weights(config: Mapping) -> list[int]:
    """Number of weights of each layer, the token table with the first."""
    inner, head = config["hidden_size"], config["head_dim"]
    attention = 2 * inner * head * (config["num_attention_heads"] + config["num_key_value_heads"])
    sizes = [attention + 3 * inner * config["intermediate_size"]] * config["num_hidden_layers"]
    sizes[0] += config["vocab_size"] * inner
    return sizes


@dataclass(frozen=True)
class LanguageSlice:
    """One graph of a language model, as `axbake.networks.component.Graph` has it: number *number* of *count*.

    The hidden tensor before layer k is called `hidden_states_{k}`, as in transformers' `hidden_states`.
    """

    name: str
    number: int
    count: int
    form: LanguageFormat  # of the prompts that it takes
    states: tuple[int, ...]  # which of the hidden states are given, side by side

    def inputs(self, **columns: int) -> dict[str, str]:
        """NumPy's type of those that do not depend on the config."""
        return {IDS: "int64", MASK: "int64"}

    def interface(self, config: Mapping, *, prompt_chunks: int | None = None) -> Interface:
        """What it takes and gives.

        Args:
            prompt_chunks: of a row whose prompts can have several.

        Raises:
            SliceError: the network has fewer layers than graphs, or than states ask for.
            TypeError: *prompt_chunks* is missing, or of no use.
        """
        if (prompt_chunks is not None) != self.form.chunked:
            raise TypeError(f"{self.name}: prompt_chunks: {prompt_chunks}; chunked: {self.form.chunked}")
        begin, end = self.bounds(config)
        tokens = self.form.of(prompt_chunks or 1).tokens
        shape: Shape = (1, tokens, config["hidden_size"])
        ids = Tensor((1, tokens), "int64")
        before = [layer for layer in self.states if layer < begin]
        taken = {IDS: ids} if begin == 0 else {_name(begin): Tensor(shape, "float32")}
        taken |= {MASK: ids}
        if self.number + 1 == self.count:
            taken |= {_name(layer): Tensor(shape, "float32") for layer in before}
            return Interface(taken, (STATES,))
        inside = [_name(layer) for layer in self.states if begin <= layer < end and not (layer == begin and begin)]
        return Interface(taken, tuple(dict.fromkeys([*inside, _name(end)])))

    def cut(self, network: Module, face: Interface) -> Module:
        """The slice as a module."""
        from axbake.networks.language_modules import SlicedLanguageModel

        return SlicedLanguageModel(network, *self.bounds(network.config.to_dict()), face, self.states, self.form)

    def bounds(self, config: Mapping) -> tuple[int, int]:
        """Numbers of its first layer and of the first behind it."""
        sizes = weights(config)
        if len(sizes) < max(self.count, *self.states):
            raise SliceError(
                f"{self.name}: a language model of {len(sizes)} layers; wanted {max(self.count, *self.states)} or more."
            )
        ends = (0, *cuts(sizes, self.count), len(sizes))
        return ends[self.number], ends[self.number + 1]


def _name(layer: int) -> str:
    return f"hidden_states_{layer}"


def slices(name: str, count: int, *, form: LanguageFormat, states: Sequence[int]) -> tuple[LanguageSlice, ...]:
    """*count* graphs of the component called *name*, which is given prompts in *form*."""
    names = [name] if count == 1 else [f"layers_{number}" for number in range(count)]
    return tuple(LanguageSlice(one, number, count, form, tuple(states)) for number, one in enumerate(names))


def example_of(
    network: Any,
    face: Interface,
    config: Mapping,
    generator: Any,
    *,
    states: Sequence[int],
    drop: int = 0,
    side: str = "right",
) -> tuple[dict[str, Any], Any]:
    """Random token ids, of which a quarter is filled up on the *side*, and the states that the network itself gives."""
    import torch

    ids = torch.randint(0, config["vocab_size"], face.inputs[IDS].shape, generator=generator)
    mask = torch.ones_like(ids)
    quarter = ids.shape[1] // 4
    mask[:, slice(quarter) if side == "left" else slice(-quarter, None)] = 0
    return {IDS: ids, MASK: mask}, states_of(network, ids, mask, states=states, drop=drop)[0]


def states_of(network: Any, ids: Any, mask: Any, *, states: Sequence[int], drop: int = 0) -> tuple[Any, ...]:
    """The hidden states numbered *states*, side by side, without *drop* tokens in front: (1, T, sum of widths)."""
    import torch

    own = (mask == 1).to(mask.dtype)
    made = network(input_ids=ids, attention_mask=own, output_hidden_states=True, use_cache=False).hidden_states
    return (torch.cat([made[layer] for layer in states], dim=-1)[:, drop:],)
