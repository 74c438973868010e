"""FLUX.1: real networks at tiny sizes, seeded, in the files that users have."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, T5EncoderModel

from axbake.networks.modules import VaeDecoder, VaeEncoder
from tests.tiny import ROOT, SEED, _unsettle
from tests.tiny_sd3 import t5, t5_tokenizer
from tests.tiny_xl import text_config
from tests.tiny_z_image import flux_vae, ldm_vae_tensors

CONTEXT = 4096  # channels of T5's tokens


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    dtype: torch.dtype
    family: str = "flux1"
    prediction_type: str = "flow_prediction"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def dev(dtype: torch.dtype = torch.bfloat16, *, guidance_embeds: bool = True) -> Networks:
    """FLUX.1 dev: a block for each of its sixteen graphs."""
    torch.manual_seed(SEED)
    clip = text_config("text_encoder", 32)
    made = {
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": t5(),
        "vae": flux_vae(),
        "transformer": FluxTransformer2DModel(
            in_channels=64,
            num_layers=4,
            num_single_layers=12,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=CONTEXT,
            pooled_projection_dim=clip.hidden_size,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 14, 14),
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype)


def schnell(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """FLUX.1 schnell, which does not take the guidance scale."""
    return dev(dtype, guidance_embeds=False)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {"flux1": dev}


def original_tensors(transformer: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under its authors' names (github black-forest-labs/flux, `model.py`)."""
    found, tensors = transformer.state_dict(), {}
    ends = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    for ours, theirs in (("timestep", "time_in"), ("guidance", "guidance_in"), ("text", "vector_in")):
        for number, layer in ((1, "in"), (2, "out")):
            ends[f"time_text_embed.{ours}_embedder.linear_{number}"] = f"{theirs}.{layer}_layer"
    for ours, theirs in ends.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in found:
                tensors[f"{theirs}.{kind}"] = found[f"{ours}.{kind}"]
    for kind in ("weight", "bias"):
        scale, shift = found[f"norm_out.linear.{kind}"].chunk(2)
        tensors[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for number in range(transformer.config.num_layers):
        old, new = f"transformer_blocks.{number}", f"double_blocks.{number}"
        for side, parts, out, norm, modulation, feed in (
            ("img", "to_{}", "to_out.0", "norm_{}", "norm1", "ff"),
            ("txt", "add_{}_proj", "to_add_out", "norm_added_{}", "norm1_context", "ff_context"),
        ):
            for kind in ("weight", "bias"):
                joined = [found[f"{old}.attn.{parts.format(letter)}.{kind}"] for letter in "qkv"]
                tensors[f"{new}.{side}_attn.qkv.{kind}"] = torch.cat(joined)
                named = {f"attn.{out}": f"{side}_attn.proj", f"{modulation}.linear": f"{side}_mod.lin"}
                named |= {f"{feed}.net.0.proj": f"{side}_mlp.0", f"{feed}.net.2": f"{side}_mlp.2"}
                tensors |= {f"{new}.{theirs}.{kind}": found[f"{old}.{ours}.{kind}"] for ours, theirs in named.items()}
            for letter, name in (("q", "query"), ("k", "key")):
                tensors[f"{new}.{side}_attn.norm.{name}_norm.scale"] = found[f"{old}.attn.{norm.format(letter)}.weight"]
    for number in range(transformer.config.num_single_layers):
        old, new = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        for kind in ("weight", "bias"):
            joined = [found[f"{old}.attn.to_{letter}.{kind}"] for letter in "qkv"] + [found[f"{old}.proj_mlp.{kind}"]]
            tensors[f"{new}.linear1.{kind}"] = torch.cat(joined)
            tensors[f"{new}.linear2.{kind}"] = found[f"{old}.proj_out.{kind}"]
            tensors[f"{new}.modulation.lin.{kind}"] = found[f"{old}.norm.linear.{kind}"]
        for letter, name in (("q", "query"), ("k", "key")):
            tensors[f"{new}.norm.{name}_norm.scale"] = found[f"{old}.attn.norm_{letter}.weight"]
    return tensors


def _texts(networks: Networks) -> dict[str, torch.Tensor]:
    clip = {
        re.sub(r"^(?!text_model\.)", "text_model.", name): t for name, t in networks.text_encoder.state_dict().items()
    }
    parts = {"clip_l": clip, "t5xxl": networks.text_encoder_2.state_dict()}
    return {f"text_encoders.{part}.transformer.{name}": t for part, own in parts.items() for name, t in own.items()}


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors as ComfyUI saves a whole model."""
    tensors = {f"model.diffusion_model.{n}": t for n, t in original_tensors(networks.transformer).items()}
    return tensors | {f"vae.{name}": t for name, t in ldm_vae_tensors(networks.vae).items()} | _texts(networks)


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = ("transformer", "vae", "text_encoder_2")
    named = {f"{part}.{name}": t for part in parts for name, t in getattr(networks, part).state_dict().items()}
    clip = networks.text_encoder.state_dict()
    return named | {f"text_encoder.text_model.{name.removeprefix('text_model.')}": t for name, t in clip.items()}


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {"ldm": ldm_tensors, "diffusers": diffusers_tensors}


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    return {name: tensor.to(networks.dtype).clone().contiguous() for name, tensor in LAYOUTS[layout](networks).items()}


def save_tokenizer(folder: Path) -> None:
    """T5's tokenizer, in the folder that diffusers has for it."""
    (folder / "tokenizer_2").mkdir(exist_ok=True)
    t5_tokenizer().save(str(folder / "tokenizer_2" / "tokenizer.json"))


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs, and T5's tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata={"format": "pt"})
    save_tokenizer(path.parent)
    return path


def save_split(networks: Networks, folder: Path) -> Path:
    """*networks* as ComfyUI's files of one network each, and T5's tokenizer."""
    whole = single_file_tensors(networks)
    starts = {"transformer": "model.diffusion_model.", "vae": "vae."}
    starts |= {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    }
    folder.mkdir()
    for name, start in starts.items():
        own = {key.removeprefix(start): tensor for key, tensor in whole.items() if key.startswith(start)}
        save_file(own, folder / f"{name}.safetensors")
    save_tokenizer(folder)
    return folder


def save_folder(networks: Networks, folder: Path) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(networks, name)
        plain = type(network)(network.config) if "text" in name else type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name)
    shutil.copytree(ROOT / "resources" / "clip", folder / "tokenizer")
    save_tokenizer(folder)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    index["text_encoder_2"] = ["transformers", "T5EncoderModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
