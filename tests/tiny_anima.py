"""Anima: real networks at tiny sizes, seeded, in the files that users have."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

from axbake.networks import cosmos
from axbake.networks.qwen_image_vae_modules import FrameDecoder, FrameEncoder
from tests.tiny import SEED, _unsettle
from tests.tiny_flux2 import LANGUAGE_WIDTH, language_model, tokenizer
from tests.tiny_sd3 import t5_tokenizer

LAYERS = 28  # of the language model, all of which are run
TOKENS_WIDTH = 32  # of what the transformer takes


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: Qwen3ForCausalLM
    text_conditioner: AnimaTextConditioner
    transformer: CosmosTransformer3DModel
    vae: AutoencoderKLQwenImage
    dtype: torch.dtype
    family: str = "anima"
    prediction_type: str = "flow_prediction"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        if name == "text_encoder":
            return self.text_encoder.model
        halves = {"vae_encoder": FrameEncoder, "vae_decoder": FrameDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def qwen_image_vae() -> AutoencoderKLQwenImage:
    """Qwen-Image's autoencoder."""
    return AutoencoderKLQwenImage(base_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


def preview(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """Anima."""
    torch.manual_seed(SEED)
    made = {
        "text_encoder": language_model(LAYERS),
        "text_conditioner": AnimaTextConditioner(
            source_dim=LANGUAGE_WIDTH,
            target_dim=TOKENS_WIDTH,
            model_dim=TOKENS_WIDTH,
            num_layers=2,
            num_attention_heads=2,
            target_vocab_size=t5_tokenizer().get_vocab_size(),
        ),
        "vae": qwen_image_vae(),
        "transformer": cosmos.build(
            {
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 2,
                "attention_head_dim": 32,
                "num_layers": 4,
                "mlp_ratio": 4.0,
                "text_embed_dim": TOKENS_WIDTH,
                "adaln_lora_dim": 16,
                "patch_size": [1, 2, 2],
                "rope_scale": [1.0, 4.0, 4.0],
                "extra_pos_embed_type": None,
            }
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {"anima": preview}


def original_tensors(transformer: CosmosTransformer3DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under its authors' names, with the constants that their files have."""
    names = {"patch_embed.proj": "x_embedder.proj.1", "time_embed.norm": "t_embedding_norm"}
    names |= {f"time_embed.t_embedder.linear_{n}": f"t_embedder.1.linear_{n}" for n in (1, 2)}
    names |= {f"norm_out.linear_{n}": f"final_layer.adaln_modulation.{n}" for n in (1, 2)}
    names |= {"proj_out": "final_layer.linear"}
    parts = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "output_proj"}
    parts |= {"norm_q": "q_norm", "norm_k": "k_norm"}
    kinds = {"norm1": "self_attn", "norm2": "cross_attn", "norm3": "mlp"}
    tensors = {}
    for name, tensor in transformer.state_dict().items():
        stem = name.removesuffix(".weight")
        new = names.get(stem, re.sub(r"^transformer_blocks\.", "blocks.", stem))
        new = re.sub(r"\.(norm\d)\.linear_(\d)$", lambda m: f".adaln_modulation_{kinds[m[1]]}.{m[2]}", new)
        new = re.sub(r"\.attn1\.(.+)$", lambda m: f".self_attn.{parts[m[1]]}", new)
        new = re.sub(r"\.attn2\.(.+)$", lambda m: f".cross_attn.{parts[m[1]]}", new)
        tensors[f"{new.replace('ff.net.0.proj', 'mlp.layer1').replace('ff.net.2', 'mlp.layer2')}.weight"] = tensor
    return tensors | {"pos_embedder.seq": torch.arange(4.0)}


def original_vae_tensors(vae: AutoencoderKLQwenImage) -> dict[str, torch.Tensor]:
    """The autoencoder's tensors under its authors' names (github Wan-Video/Wan2.1, `wan/modules/vae.py`)."""
    level = vae.config.num_res_blocks + 2  # modules of a level of the decoder
    residual = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    residual |= {"conv_shortcut": "shortcut"}
    ends = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
    tensors = {}
    for name, tensor in vae.state_dict().items():
        stem, _, kind = name.rpartition(".")
        stem = {"quant_conv": "conv1", "post_quant_conv": "conv2"}.get(stem, stem)
        half, _, place = stem.partition(".")
        place = ends.get(place, place)
        place = place.replace("mid_block.attentions.0", "middle.1")
        place = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", place)
        place = place.replace("down_blocks", "downsamples")
        place = re.sub(
            r"up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)",
            lambda m: f"upsamples.{int(m[1]) * level + (int(m[3]) if m[2] == 'resnets' else level - 1)}",
            place,
        )
        place = re.sub(r"\.(norm[12]|conv[12]|conv_shortcut)$", lambda m: f".{residual[m[1]]}", place)
        tensors[".".join(part for part in (half, place, kind) if part)] = tensor
    return tensors


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors as ComfyUI saves a whole model."""
    start = "model.diffusion_model."
    tensors = {f"{start}{name}": t for name, t in original_tensors(networks.transformer).items()}
    tensors |= {f"{start}llm_adapter.{name}": t for name, t in networks.text_conditioner.state_dict().items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in original_vae_tensors(networks.vae).items()}
    texts = networks.text_encoder.state_dict()
    return tensors | {
        f"text_encoders.qwen3_06b.transformer.{name}": t for name, t in texts.items() if name != "lm_head.weight"
    }


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = ("transformer", "vae", "text_encoder", "text_conditioner")
    return {f"{part}.{name}": t for part in parts for name, t in getattr(networks, part).state_dict().items()}


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {"ldm": ldm_tensors, "diffusers": diffusers_tensors}


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    return {name: tensor.to(networks.dtype).clone().contiguous() for name, tensor in LAYOUTS[layout](networks).items()}


def save_tokenizers(folder: Path) -> None:
    """Both tokenizers, in the folders that diffusers has for them."""
    for name, made in (("tokenizer", tokenizer()), ("t5_tokenizer", t5_tokenizer())):
        (folder / name).mkdir(exist_ok=True)
        made.save(str(folder / name / "tokenizer.json"))


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs, and their tokenizers beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata={"format": "pt"})
    save_tokenizers(path.parent)
    return path


def save_split(networks: Networks, folder: Path) -> Path:
    """*networks* as ComfyUI's files of one network each, the conditioner in the transformer's, and their tokenizers."""
    whole = single_file_tensors(networks)
    starts = {"transformer": "model.diffusion_model.", "vae": "vae."}
    starts |= {"text_encoder": "text_encoders.qwen3_06b.transformer."}
    folder.mkdir()
    for name, start in starts.items():
        new = "net." if name == "transformer" else ""
        own = {new + key.removeprefix(start): tensor for key, tensor in whole.items() if key.startswith(start)}
        save_file(own, folder / f"{name}.safetensors")
    save_tokenizers(folder)
    return folder


def save_folder(networks: Networks, folder: Path) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    folder.mkdir()
    for name in ("text_conditioner", "vae"):
        network = getattr(networks, name)
        plain = type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name)
    text = type(networks.text_encoder.model)(networks.text_encoder.config)
    text.load_state_dict(networks.text_encoder.model.state_dict())
    text.to(networks.dtype).save_pretrained(folder / "text_encoder")
    plain = CosmosTransformer3DModel.from_config({**networks.transformer.config, "concat_padding_mask": True})
    plain.load_state_dict(networks.transformer.state_dict())
    plain.to(networks.dtype).save_pretrained(folder / "transformer")
    save_tokenizers(folder)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_blocks_class_name": "AnimaAutoBlocks", "transformer": ["diffusers", "CosmosTransformer3DModel", {}]}
    index["text_conditioner"] = ["diffusers", "AnimaTextConditioner", {}]
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    return folder
