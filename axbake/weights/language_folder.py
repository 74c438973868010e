"""A language model as a folder of Hugging Face's, cut off behind the last layer that is needed, for Pulsar2's `llm_build`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from axbake.networks.card_layers import PREFIX, CardLayers
from axbake.weights.files import read_description, read_shapes, read_tensor

TOKENS, NORM = "embed_tokens.weight", "norm.weight"


def write_folder(weights: Path, folder: Path, *, card: CardLayers, tokenizer: str) -> dict[str, Any]:
    """Write the first layers of a `weights/{component}.safetensors` to *folder*, in bfloat16; gives its `config.json`.

    There is a file for the tokens and the last norm, and one a layer, so that no more than these are in memory at once. A last
    norm that the component does not have is all ones: no layer has it.

    Args:
        tokenizer: content of its `tokenizer.json`.
    """
    shapes = read_shapes(weights)
    config = card.folder_config(read_description(weights).config) | {"num_hidden_layers": card.count}
    groups = [[TOKENS, NORM], *(sorted(n for n in shapes if n.startswith(f"layers.{k}.")) for k in range(card.count))]
    index: dict[str, str] = {}
    total = 0
    folder.mkdir()
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {f"{PREFIX}{name}": _stored(weights, shapes, name) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "config.json", config)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return config


def write_table(weights: Path, table: Path) -> None:
    """Write the rows of the token table one after the other, in bfloat16, as AXERA's tools write them."""
    rows = read_tensor(weights, TOKENS).to(torch.bfloat16).contiguous()
    with table.open("wb") as file:
        file.write(rows.view(torch.uint16).numpy().data)


def last_norm(weights: Path) -> tuple[float, ...]:
    """Weights of the last norm, float32; of a component without one, none."""
    return tuple(read_tensor(weights, NORM).float().tolist()) if NORM in read_shapes(weights) else ()


def _stored(weights: Path, shapes: Mapping[str, Any], name: str) -> torch.Tensor:
    if name == NORM and name not in shapes:
        return torch.ones(shapes[TOKENS][1], dtype=torch.bfloat16)
    return read_tensor(weights, name).to(torch.bfloat16).contiguous()


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
