"""Z-Image: real networks at tiny sizes, seeded, in the files that users have."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

from axbake.networks.modules import VaeDecoder, VaeEncoder
from axbake.networks.z_image_modules import Conditioner
from tests.tiny import SEED, WIDTH, _unsettle, vae_name
from tests.tiny_flux2 import language_model, tokenizer

LAYERS = 36  # of the language model, of which all but the last are run
SCALE, SHIFT = 0.3611, 0.1159


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: Qwen3ForCausalLM
    transformer: ZImageTransformer2DModel
    vae: AutoencoderKL
    dtype: torch.dtype
    family: str = "z_image"
    prediction_type: str = "flow_prediction"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        if name == "text_encoder":
            return self.text_encoder.model
        if name == "text_conditioner":
            return Conditioner.of(self.transformer)
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def flux_vae() -> AutoencoderKL:
    """FLUX.1's autoencoder."""
    return AutoencoderKL(
        block_out_channels=(WIDTH,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def turbo(dtype: torch.dtype = torch.bfloat16) -> Networks:
    """Z-Image-Turbo."""
    torch.manual_seed(SEED)
    made = {
        "text_encoder": language_model(LAYERS),
        "vae": flux_vae(),
        "transformer": ZImageTransformer2DModel(
            dim=64,
            n_layers=6,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[8, 12, 12],
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {"z_image": turbo}


def original_tensors(transformer: ZImageTransformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under its authors' names."""
    found, tensors = transformer.state_dict(), {}
    for name, tensor in found.items():
        if ".attention.to_q." in name:
            parts = [found[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            tensors[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            new = name.replace("all_x_embedder.2-1.", "x_embedder.").replace("all_final_layer.2-1.", "final_layer.")
            new = new.replace(".attention.to_out.0.", ".attention.out.").replace(".norm_q.", ".q_norm.")
            tensors[new.replace(".norm_k.", ".k_norm.")] = tensor
    return tensors | {"norm_final.weight": torch.ones(transformer.dim)}


def ldm_vae_tensors(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The autoencoder's tensors under LDM's names."""
    tensors = {}
    for name, tensor in vae.state_dict().items():
        new = vae_name(name)
        convolution = ".attn_1." in new and new.endswith(".weight") and ".norm." not in new
        tensors[new] = tensor[..., None, None] if convolution else tensor
    return tensors


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors as ComfyUI saves a whole model."""
    tensors = {f"model.diffusion_model.{n}": t for n, t in original_tensors(networks.transformer).items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in ldm_vae_tensors(networks.vae).items()}
    texts = networks.text_encoder.state_dict()
    return tensors | {
        f"text_encoders.qwen3_4b.transformer.{name}": t for name, t in texts.items() if name != "lm_head.weight"
    }


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
    whole = single_file_tensors(networks)
    starts = {"transformer": "model.diffusion_model.", "vae": "vae."}
    starts |= {"text_encoder": "text_encoders.qwen3_4b.transformer."}
    folder.mkdir()
    for name, start in starts.items():
        own = {key.removeprefix(start): tensor for key, tensor in whole.items() if key.startswith(start)}
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
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "ZImagePipeline", "transformer": ["diffusers", "ZImageTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
