"""Lumina-Image 2: real networks at tiny sizes, seeded, in the files that users have."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, Lumina2Transformer2DModel
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model

from axbake.networks.lumina_modules import Conditioner
from axbake.networks.modules import VaeDecoder, VaeEncoder
from tests.tiny import SEED, _unsettle
from tests.tiny_z_image import flux_vae, ldm_vae_tensors

LAYERS, HEAD = 26, 256  # of the language model, of which all but the last are run
LANGUAGE_WIDTH = 32


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: Gemma2Model
    transformer: Lumina2Transformer2DModel
    vae: AutoencoderKL
    dtype: torch.dtype
    family: str = "lumina2"
    prediction_type: str = "flow_prediction"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        if name == "text_conditioner":
            return Conditioner.of(self.transformer)
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def tokenizer() -> Tokenizer:
    """A tokenizer that begins each text with a token, as Gemma's does; every letter is a token."""
    letters = [chr(code) for code in range(32, 127)]
    made = Tokenizer(models.WordLevel({"<unk>": 0} | {letter: n for n, letter in enumerate(letters, 1)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<pad>", "<bos>")])
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))]
    )
    return made


def lumina(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """Lumina-Image 2."""
    torch.manual_seed(SEED)
    made = {
        "text_encoder": Gemma2Model(
            Gemma2Config(
                vocab_size=tokenizer().get_vocab_size(),
                hidden_size=LANGUAGE_WIDTH,
                intermediate_size=2 * LANGUAGE_WIDTH,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=HEAD,
                query_pre_attn_scalar=HEAD,
                pad_token_id=0,
                attn_implementation="eager",
            )
        ),
        "vae": flux_vae(),
        "transformer": Lumina2Transformer2DModel(
            hidden_size=72,
            num_layers=4,
            num_refiner_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            axes_dim_rope=(8, 8, 8),
            cap_feat_dim=LANGUAGE_WIDTH,
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {"lumina2": lumina}


def original_tensors(transformer: Lumina2Transformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under its authors' names, with a norm that none uses."""
    found, tensors = transformer.state_dict(), {}
    ends = {
        "time_caption_embed.caption_embedder.": "cap_embedder.",
        "time_caption_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
        "time_caption_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
        "norm_out.linear_1.": "final_layer.adaLN_modulation.1.",
        "norm_out.linear_2.": "final_layer.linear.",
        ".attn.to_out.0.": ".attention.out.",
        ".attn.norm_q.": ".attention.q_norm.",
        ".attn.norm_k.": ".attention.k_norm.",
        ".norm1.linear.": ".adaLN_modulation.1.",
        ".norm1.norm.": ".attention_norm1.",
        ".norm1.": ".attention_norm1.",
        ".norm2.": ".attention_norm2.",
    }
    for name, tensor in found.items():
        if ".attn.to_q." in name:
            parts = [found[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            tensors[name.replace("attn.to_q", "attention.qkv")] = torch.cat(parts)
        elif ".attn.to_k." not in name and ".attn.to_v." not in name:
            new = re.sub(r"\.feed_forward\.linear_(\d)\.", r".feed_forward.w\1.", name)
            for ours, theirs in ends.items():
                new = new.replace(ours, theirs)
            tensors[new] = tensor
    return tensors | {"norm_final.weight": torch.ones(transformer.config.hidden_size)}


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors as ComfyUI saves a whole model."""
    tensors = {f"model.diffusion_model.{n}": t for n, t in original_tensors(networks.transformer).items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in ldm_vae_tensors(networks.vae).items()}
    texts = networks.text_encoder.state_dict()
    return tensors | {f"text_encoders.gemma2_2b.transformer.model.{name}": t for name, t in texts.items()}


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
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "Lumina2Pipeline", "transformer": ["diffusers", "Lumina2Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
