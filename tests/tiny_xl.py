"""Stable Diffusion XL and what was distilled from it: real networks at tiny sizes, seeded, in the files that users have."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from axbake.networks.modules import VaeDecoder, VaeEncoder
from resources.demo import to_single_file
from tests.tiny import ROOT, SEED, WIDTH, _unsettle, vae_name

WIDTHS = {"text_encoder": WIDTH, "text_encoder_2": 2 * WIDTH}  # channels of a token, side by side in the UNet's context
POOLED = 48  # channels of the pooled prompt
SIZES = 6 * 256
UNET_WIDTHS = (WIDTH, WIDTH, 2 * WIDTH)
END = 49407


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    dtype: torch.dtype
    family: str
    prediction_type: str = "epsilon"

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def text_config(name: str, projection_dim: int) -> CLIPTextConfig:
    """Config of the text encoder called *name*, one of `WIDTHS`."""
    width, second = WIDTHS[name], name == "text_encoder_2"
    return CLIPTextConfig(
        vocab_size=END + 1,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3 if second else 2,
        num_attention_heads=1,
        projection_dim=projection_dim,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=END - 1,
        eos_token_id=END,
        pad_token_id=0 if second else END,
        attn_implementation="eager",
    )


CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # as ComfyUI calls the text encoders


def _model(
    family: str, dtype: torch.dtype, *, prediction_type: str = "epsilon", layers_per_block: int = 2, **unet_options: Any
) -> Networks:
    torch.manual_seed(SEED)
    made = {
        "text_encoder": CLIPTextModel(text_config("text_encoder", WIDTH)),
        "text_encoder_2": CLIPTextModelWithProjection(text_config("text_encoder_2", POOLED)),
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=UNET_WIDTHS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=layers_per_block,
            cross_attention_dim=sum(WIDTHS.values()),
            attention_head_dim=[max(1, width // 64) for width in UNET_WIDTHS],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=POOLED + SIZES,
            **unet_options,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(WIDTH,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=32,
            sample_size=64,
            scaling_factor=0.13025,
        ),
    }
    for network in made.values():
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(**made, dtype=dtype, family=family, prediction_type=prediction_type)


def sdxl(dtype: torch.dtype = torch.float16, **options: Any) -> Networks:
    """Stable Diffusion XL: a transformer in the middle too."""
    return _model("sdxl", dtype, transformer_layers_per_block=[1, 1, 2], **options)


def ssd1b(dtype: torch.dtype = torch.float16, **options: Any) -> Networks:
    """SSD-1B: none in the middle, and less deep ones on the way up."""
    depths = {"transformer_layers_per_block": [1, 2, [1, 1]]}
    depths["reverse_transformer_layers_per_block"] = [[1, 1, 2], [2, 1, 1], 1]
    return _model("ssd1b", dtype, mid_block_type="UNetMidBlock2D", **depths, **options)


def vega(dtype: torch.dtype = torch.float16, **options: Any) -> Networks:
    """Segmind-Vega: the same, flatter yet."""
    depths = {"transformer_layers_per_block": [1, 1, [1, 1]]}
    depths["reverse_transformer_layers_per_block"] = [[1, 1, 2], [1, 1, 1], 1]
    return _model("vega", dtype, mid_block_type="UNetMidBlock2D", **depths, **options)


def koala(dtype: torch.dtype = torch.float16, **options: Any) -> Networks:
    """KOALA 1B: one resnet a level down."""
    return _model("koala", dtype, layers_per_block=1, transformer_layers_per_block=[1, 1, 2], **options)


def koala_700m(dtype: torch.dtype = torch.float16, **options: Any) -> Networks:
    """KOALA 700M: without a middle, too."""
    depths = {"transformer_layers_per_block": [1, 1, 2], "layers_per_block": 1}
    return _model("koala_700m", dtype, mid_block_type=None, **depths, **options)


def lcm_ssd1b(dtype: torch.dtype = torch.float16) -> Networks:
    """SSD-1B whose UNet takes the guidance scale."""
    return ssd1b(dtype, time_cond_proj_dim=256)


#: Name of a family -> a function that makes networks of it
FAMILIES: dict[str, Callable[..., Networks]] = {
    "sdxl": sdxl,
    "ssd1b": ssd1b,
    "vega": vega,
    "koala": koala,
    "koala_700m": koala_700m,
}
#: Name of a UNet's structure -> a function that makes its networks
VARIANTS: dict[str, Callable[..., Networks]] = FAMILIES | {"lcm_ssd1b": lcm_ssd1b}


def unet_name(name: str) -> str:
    """LDM's name of a UNet's tensor, as sgm's `openaimodel.py` numbers them."""
    if name.startswith("time_embedding.cond_proj."):
        return name
    if m := re.fullmatch(r"add_embedding\.linear_(\d)\.(.+)", name):
        return f"label_emb.0.{2 * (int(m[1]) - 1)}.{m[2]}"
    if name.startswith("up_blocks.0.upsamplers.0."):
        return f"output_blocks.2.2.{name.removeprefix('up_blocks.0.upsamplers.0.')}"
    return to_single_file.unet_name(name)


def open_clip_tensors(text_encoder: CLIPTextModelWithProjection) -> dict[str, torch.Tensor]:
    """open_clip's tensors of a text encoder, its projection transposed."""
    found = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    tensors = {
        "token_embedding.weight": found["embeddings.token_embedding.weight"],
        "positional_embedding": found["embeddings.position_embedding.weight"],
        "ln_final.weight": found["final_layer_norm.weight"],
        "ln_final.bias": found["final_layer_norm.bias"],
        "text_projection": found["text_projection.weight"].T,
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(text_encoder.config.num_hidden_layers):
        start, place = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [found[f"{start}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{place}.attn.in_proj_{kind}"] = torch.cat(parts)
            tensors |= {f"{place}.{new}.{kind}": found[f"{start}.{old}.{kind}"] for old, new in names.items()}
    return tensors


def _vae_and_unet(networks: Networks) -> dict[str, torch.Tensor]:
    tensors = {f"model.diffusion_model.{unet_name(name)}": t for name, t in networks.unet.state_dict().items()}
    for name, tensor in networks.vae.state_dict().items():
        ldm = vae_name(name)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", ldm)
        tensors[f"first_stage_model.{ldm}"] = tensor[..., None, None] if convolution else tensor
    return tensors


def _first_text(networks: Networks, start: str) -> dict[str, torch.Tensor]:
    tensors = networks.text_encoder.state_dict()
    return {f"{start}{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


def ldm_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under the names of Stability's own files."""
    second = open_clip_tensors(networks.text_encoder_2)
    return (
        _vae_and_unet(networks)
        | _first_text(networks, "conditioner.embedders.0.transformer.text_model.")
        | {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    )


def comfy_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors with both text encoders under transformers' names, and a projection of the first that nothing takes."""
    second = networks.text_encoder_2.state_dict()
    start = "text_encoders.clip_l.transformer."
    return (
        _vae_and_unet(networks)
        | _first_text(networks, f"{start}text_model.")
        | {f"{start}text_projection.weight": torch.eye(WIDTH)}
        | {f"text_encoders.clip_g.transformer.{name}": tensor for name, tensor in second.items()}
    )


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = {"unet": networks.unet, "vae": networks.vae, "text_encoder_2": networks.text_encoder_2}
    named = {f"{part}.{name}": t for part, network in parts.items() for name, t in network.state_dict().items()}
    return named | _first_text(networks, "text_encoder.text_model.")


def save_split(networks: Networks, folder: Path) -> Path:
    """*networks* as ComfyUI's files of one network each: UNet and VAE with LDM's names, text encoders with transformers'."""
    whole = comfy_tensors(networks)
    starts = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
    starts |= {name: f"text_encoders.{clip}.transformer." for name, clip in CLIPS.items()}
    folder.mkdir()
    for name, start in starts.items():
        own = {key.removeprefix(start): t.to(networks.dtype) for key, t in whole.items() if key.startswith(start)}
        save_file({key: tensor.clone().contiguous() for key, tensor in own.items()}, folder / f"{name}.safetensors")
    return folder


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {
    "ldm": ldm_tensors,
    "comfy": comfy_tensors,
    "diffusers": diffusers_tensors,
}


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    return {name: tensor.to(networks.dtype).clone().contiguous() for name, tensor in LAYOUTS[layout](networks).items()}


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata={"format": "pt"})
    return path


def save_folder(networks: Networks, folder: Path) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(networks, name)
        plain = type(network)(network.config) if "text" in name else type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name)
    shutil.copytree(ROOT / "resources" / "clip", folder / "tokenizer")
    scheduler = {"_class_name": "EulerDiscreteScheduler", "prediction_type": networks.prediction_type}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
