"""LoRA files for tiny models, in the layouts that trainers write."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from resources.demo.to_single_file import unet_name
from tests.tiny import Networks

RANK, ALPHA = 4, 2.0
FIRST = "down_blocks.0.attentions.0"
#: Modules that every tiny model with a mid block has: matrices, 1×1 and 3×3 convolutions
MODULES = {
    "unet": (
        f"{FIRST}.proj_in",
        f"{FIRST}.transformer_blocks.0.attn1.to_q",
        f"{FIRST}.transformer_blocks.0.attn1.to_out.0",
        f"{FIRST}.transformer_blocks.0.attn2.to_k",
        f"{FIRST}.transformer_blocks.0.ff.net.0.proj",
        f"{FIRST}.transformer_blocks.0.ff.net.2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
        "mid_block.resnets.0.conv1",
        "mid_block.resnets.0.time_emb_proj",
        "down_blocks.1.downsamplers.0.conv",
    ),
    "text_encoder": (
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.1.self_attn.out_proj",
        "encoder.layers.1.mlp.fc1",
    ),
}
Pairs = Mapping[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]  # component, module -> down, up


def pairs(networks: Networks, components: tuple[str, ...] = tuple(MODULES), *, attention: bool = False) -> Pairs:
    """Random factors for MODULES, or for those of attention alone, large enough to change every picture."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for component in components:
        network = networks.component(component)
        for module in MODULES[component]:
            if attention and ".attn" not in module and "self_attn" not in module:
                continue
            rows, columns, *kernel = network.get_submodule(module).weight.shape
            down = torch.randn((RANK, columns, *kernel), generator=generator) * 0.1
            up = torch.randn((rows, RANK, *[1] * len(kernel)), generator=generator) * 0.1
            found[component, module] = down, up
    return found


def kohya(pairs: Pairs, *, text_encoder: str = "lora_te", names: Callable[[str], str] = lambda name: name) -> dict:
    """sd-scripts' names. *names*: of the UNet's modules."""
    tensors = {}
    for (component, module), (down, up) in pairs.items():
        start = f"lora_unet_{names(module)}" if component == "unet" else f"{text_encoder}_text_model_{module}"
        name = start.replace(".", "_")
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    return tensors


def ldm(pairs: Pairs) -> dict:
    """sd-scripts' prefixes with LDM's module names."""
    return kohya(pairs, names=lambda name: unet_name(f"{name}.weight").removesuffix(".weight"))


def peft(pairs: Pairs) -> dict:
    """What diffusers writes today, without PEFT's config."""
    tensors = {}
    for (component, module), (down, up) in pairs.items():
        name = f"{component}.{'text_model.' if component == 'text_encoder' else ''}{module}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def attention_processors(pairs: Pairs) -> dict:
    """What diffusers wrote up to 0.20: attention alone, without alpha."""
    tensors = {}
    for (component, module), factors in pairs.items():
        place, _, projection = module.removesuffix(".0").rpartition(".")
        name = f"{place}.processor.{projection}"
        if component == "text_encoder":
            name = f"text_model.{place}.to_{projection.removesuffix('_proj')}"
        for end, tensor in zip(("down", "up"), factors, strict=True):
            tensors[f"{component}.{name}_lora.{end}.weight"] = tensor
    return tensors


def diffusers(pairs: Pairs) -> dict:
    """What diffusers wrote from 0.21 to 0.24."""
    ends = {"unet": "lora.{}.weight", "text_encoder": "lora_linear_layer.{}.weight"}
    return {
        f"{component}.{'text_model.' if component == 'text_encoder' else ''}{module}.{ends[component].format(end)}": tensor
        for (component, module), factors in pairs.items()
        for end, tensor in zip(("down", "up"), factors, strict=True)
    }


def lycoris_wrapper(pairs: Pairs) -> dict:
    """What LyCORIS' own wrapper writes: one network, whatever it is."""
    return {name.replace("lora_unet_", "lycoris_"): tensor for name, tensor in kohya(pairs).items()}


def diffusion_model(pairs: Pairs) -> dict:
    """What ComfyUI writes: LDM's names with their dots."""
    tensors = {}
    for (_, module), (down, up) in pairs.items():
        name = f"diffusion_model.{unet_name(f'{module}.weight').removesuffix('.weight')}"
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    return tensors


LAYOUTS: dict[str, Callable[[Pairs], dict]] = {
    "kohya": kohya,
    "kohya, te1": lambda pairs: kohya(pairs, text_encoder="lora_te1"),
    "ldm": ldm,
    "peft": peft,
    "diffusers": diffusers,
    "attention processors": attention_processors,
    "bare attention processors": lambda pairs: {
        name.removeprefix("unet."): tensor for name, tensor in attention_processors(pairs).items()
    },
    "lycoris wrapper": lycoris_wrapper,
    "diffusion model": diffusion_model,
}
#: Layouts that diffusers does not read for Stable Diffusion 1.x -> one that it reads the same LoRA in
SAME_FOR_DIFFUSERS = {
    "ldm": "kohya",
    "lycoris wrapper": "kohya",
    "diffusion model": "kohya",
    "bare attention processors": "attention processors",
}
UNET_ALONE = ("bare attention processors", "lycoris wrapper", "diffusion model")


def save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A LoRA's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path
