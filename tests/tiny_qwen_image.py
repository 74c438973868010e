"""Qwen-Image: real networks at tiny sizes, seeded, in the files that users have."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from axbake.networks.qwen_image_vae_modules import FrameDecoder, FrameEncoder
from tests.tiny import SEED, _unsettle
from tests.tiny_anima import original_vae_tensors, qwen_image_vae
from tests.tiny_flux2 import tokenizer

LAYERS = 28  # of the language model, all of which are run
LANGUAGE_WIDTH, HEADS = 256, 2  # of 128 channels each, as in the published model


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: Qwen2_5_VLForConditionalGeneration
    transformer: QwenImageTransformer2DModel
    vae: AutoencoderKLQwenImage
    dtype: torch.dtype
    family: str = "qwen_image"
    prediction_type: str = "flow_prediction"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        if name == "text_encoder":
            return self.text_encoder.model.language_model
        halves = {"vae_encoder": FrameEncoder, "vae_decoder": FrameDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def vision_language_model() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with its vision part."""
    text = {
        "vocab_size": tokenizer().get_vocab_size(),
        "hidden_size": LANGUAGE_WIDTH,
        "intermediate_size": LANGUAGE_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": LANGUAGE_WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def whole(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """Qwen-Image."""
    torch.manual_seed(SEED)
    made = {
        "text_encoder": vision_language_model(),
        "vae": qwen_image_vae(),
        "transformer": QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=30,
            attention_head_dim=32,
            num_attention_heads=1,
            joint_attention_dim=LANGUAGE_WIDTH,
            axes_dims_rope=(4, 14, 14),
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {"qwen_image": whole}


def text_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """The text encoder's tensors as ComfyUI's files have them: under older names, the vision part among them."""
    found = networks.text_encoder.state_dict()
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in found.items()
    }


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors as ComfyUI saves a whole model; the transformer's names are diffusers'."""
    tensors = {f"model.diffusion_model.{n}": t for n, t in networks.transformer.state_dict().items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in original_vae_tensors(networks.vae).items()}
    return tensors | {f"text_encoders.qwen25_7b.transformer.{n}": t for n, t in text_tensors(networks).items()}


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = ("transformer", "vae", "text_encoder")
    return {f"{part}.{name}": t for part in parts for name, t in getattr(networks, part).state_dict().items()}


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {"ldm": ldm_tensors, "diffusers": diffusers_tensors}


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    return {name: tensor.to(networks.dtype).clone().contiguous() for name, tensor in LAYOUTS[layout](networks).items()}


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs, and their tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata={"format": "pt"})
    tokenizer().save(str(path.parent / "tokenizer.json"))
    return path


def save_split(networks: Networks, folder: Path) -> Path:
    """*networks* as ComfyUI's files of one network each, and their tokenizer."""
    whole_file = single_file_tensors(networks)
    starts = {"transformer": "model.diffusion_model.", "vae": "vae."}
    starts |= {"text_encoder": "text_encoders.qwen25_7b.transformer."}
    folder.mkdir()
    for name, start in starts.items():
        own = {key.removeprefix(start): tensor for key, tensor in whole_file.items() if key.startswith(start)}
        save_file(own, folder / f"{name}.safetensors")
    (folder / "tokenizer").mkdir()
    tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def save_folder(networks: Networks, folder: Path) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    for name in ("transformer", "vae", "text_encoder"):
        network = getattr(networks, name)
        plain = type(network)(network.config) if "text" in name else type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift_terminal": 0.02}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "QwenImagePipeline", "transformer": ["diffusers", "QwenImageTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
