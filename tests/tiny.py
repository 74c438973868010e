"""Real networks of diffusers and transformers at tiny sizes, seeded, in the files and folders that users have.

python tests/tiny.py DIRECTORY    writes every variant's checkpoint to DIRECTORY
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from axbake.networks.modules import VaeDecoder, VaeEncoder
from resources.demo import to_single_file
from resources.demo.to_single_file import vae_name

ROOT = Path(__file__).parents[1]
SEED = 0
WIDTH = 32  # channels; the families' 32 norm groups allow no fewer
# Of the UNet's levels. At 64 × 64 pixels the last one has a single latent pixel, and torch norms no group of one value.
UNET_WIDTHS = (WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH)
PRECISIONS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}  # by safetensors' names
EIGHT_BITS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
OPEN_CLIP_LAST = 23  # number of ViT-H's last layer; Stable Diffusion 2.x takes what the one before it gives
SMALL = (True, True, False)  # cross-attention of small UNets, by level
DEEP, FLAT = "CrossAttn{}Block2D", "{}Block2D"


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    dtype: torch.dtype
    family: str = "sd1"
    prediction_type: str = "epsilon"
    steps: int | None = None  # the only number that it draws in

    @property
    def pad_token_id(self) -> int:
        """Token that prompts are filled up with."""
        return 0 if self.family == "sd2" else 49407

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def _text_encoder(family: str) -> CLIPTextModel:
    width, activation = (2 * WIDTH, "gelu") if family == "sd2" else (WIDTH, "quick_gelu")
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=1,
            projection_dim=width,
            hidden_act=activation,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=0 if family == "sd2" else 49407,
            attn_implementation="eager",
        )
    )


def _model(
    family: str,
    dtype: torch.dtype,
    *,
    prediction_type: str = "epsilon",
    steps: int | None = None,
    crossed: tuple[bool, ...] = (True, True, True, False),
    widths: tuple[int, ...] = (),
    resnets: int = 2,
    mid: bool = True,
    tiny_vae: bool = False,
    **unet_options: Any,
) -> Networks:
    """A model whose UNet's levels have cross-attention where *crossed* says."""
    torch.manual_seed(SEED)
    text_encoder = _text_encoder(family)
    widths = widths or (UNET_WIDTHS if family == "sd1" else (*UNET_WIDTHS[:3], 4 * WIDTH))[: len(crossed)]
    if family == "sd2":
        heads = [max(1, width // 64) for width in widths]
        unet_options = {"use_linear_projection": True, "attention_head_dim": heads} | unet_options
    options = {"attention_head_dim": 8} | unet_options
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        down_block_types=tuple((DEEP if cross else FLAT).format("Down") for cross in crossed),
        up_block_types=tuple((DEEP if cross else FLAT).format("Up") for cross in reversed(crossed)),
        mid_block_type="UNetMidBlock2DCrossAttn" if mid else None,
        layers_per_block=resnets,
        cross_attention_dim=text_encoder.config.hidden_size,
        **options,
    )
    torch.manual_seed(SEED)  # once more, so that the VAE is the same whatever UNet stands beside it
    vae = _tiny_autoencoder() if tiny_vae else _autoencoder()
    for network in (text_encoder, unet, vae):
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(text_encoder, unet, vae, dtype, family, prediction_type, steps)


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(WIDTH,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=0.18215,
    )


def _tiny_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 2, 1, 1),
        num_decoder_blocks=(1, 1, 2, 1),
    )


def sd1(dtype: torch.dtype = torch.float16) -> Networks:
    """A Stable Diffusion 1.x model: 4 levels, 2 resnets each, 8 heads, CLIP's vocabulary."""
    return _model("sd1", dtype)


def sd2(dtype: torch.dtype = torch.float16) -> Networks:
    """A Stable Diffusion 2.x model that predicts the velocity: linear projections, heads of 64 channels."""
    return _model("sd2", dtype, prediction_type="v_prediction")


def bk_sdm_base(dtype: torch.dtype = torch.float16) -> Networks:
    """One resnet a level."""
    return _model("sd1", dtype, resnets=1)


def bk_sdm_small(dtype: torch.dtype = torch.float16) -> Networks:
    """One resnet a level, no mid block."""
    return _model("sd1", dtype, resnets=1, mid=False)


def bk_sdm_tiny(dtype: torch.dtype = torch.float16) -> Networks:
    """Three levels of one resnet, no mid block."""
    return _model("sd1", dtype, crossed=(True, True, True), resnets=1, mid=False)


def bk_sdm_v2_tiny(dtype: torch.dtype = torch.float16) -> Networks:
    """The same of Stable Diffusion 2.x base."""
    return _model("sd2", dtype, crossed=(True, True, True), resnets=1, mid=False)


def sdxs(dtype: torch.dtype = torch.float16) -> Networks:
    """SDXS-512: a UNet of three levels, no attention in the first, one step; an AutoencoderTiny."""
    return _model("sd1", dtype, crossed=(False, True, True), resnets=1, mid=False, steps=1, tiny_vae=True)


def lcm(dtype: torch.dtype = torch.float16) -> Networks:
    """A UNet that takes the guidance scale as an input, with BK-SDM-tiny's structure."""
    return _model("sd1", dtype, crossed=(True, True, True), resnets=1, mid=False, time_cond_proj_dim=256)


def small_sd1(dtype: torch.dtype = torch.float16) -> Networks:
    """Three levels of one resnet and a mid block, as nobody publishes it: its graph is made in half the time."""
    return _model("sd1", dtype, crossed=SMALL, widths=(WIDTH, WIDTH, 2 * WIDTH), resnets=1)


def small_sd2(dtype: torch.dtype = torch.float16) -> Networks:
    """The same of Stable Diffusion 2.x, which predicts the velocity."""
    widths = (WIDTH, WIDTH, 4 * WIDTH)
    return _model("sd2", dtype, prediction_type="v_prediction", crossed=SMALL, widths=widths, resnets=1)


def inpainting_sd1(dtype: torch.dtype = torch.float16) -> Networks:
    """A Stable Diffusion 1.x model for inpainting: its UNet takes a mask and another latent beside the latent."""
    return _model("sd1", dtype, crossed=SMALL, widths=(WIDTH, WIDTH, 2 * WIDTH), resnets=1, in_channels=9)


def inpainting_sd2(dtype: torch.dtype = torch.float16) -> Networks:
    """The same of Stable Diffusion 2.x, which predicts the noise."""
    return _model("sd2", dtype, crossed=SMALL, widths=(WIDTH, WIDTH, 4 * WIDTH), resnets=1, in_channels=9)


def instruct_sd1(dtype: torch.dtype = torch.float16) -> Networks:
    """A Stable Diffusion 1.x model for instructions: its UNet takes another latent beside the latent."""
    return _model("sd1", dtype, crossed=SMALL, widths=(WIDTH, WIDTH, 2 * WIDTH), resnets=1, in_channels=8)


def instruct_sd2(dtype: torch.dtype = torch.float16) -> Networks:
    """The same of Stable Diffusion 2.x, which predicts the noise."""
    return _model("sd2", dtype, crossed=SMALL, widths=(WIDTH, WIDTH, 4 * WIDTH), resnets=1, in_channels=8)


#: Name of a family -> a function that makes networks of it, for tests in which the UNet's structure does not matter
FAMILIES: dict[str, Callable[..., Networks]] = {"sd1": small_sd1, "sd2": small_sd2}
#: Name of a UNet's structure -> a function that makes its networks
VARIANTS: dict[str, Callable[..., Networks]] = {
    build.__name__: build for build in (sd1, sd2, bk_sdm_base, bk_sdm_small, bk_sdm_tiny, bk_sdm_v2_tiny, sdxs, lcm)
}


def _unsettle(network: torch.nn.Module) -> None:
    """Give norms and biases values of their own: fresh ones are 1 and 0, and two that changed places would pass."""
    generator = torch.Generator().manual_seed(SEED)  # its own, so that a network is the same whatever stands beside it
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def unet_name(name: str) -> str:
    """LDM's name of a UNet's tensor, as diffusers' converter gives it, which leaves what LDM has not."""
    return name if name.startswith("time_embedding.cond_proj.") else to_single_file.unet_name(name)


def _dense_name(name: str) -> str:
    """LDM's name of a UNet's tensor, where a level takes as many numbers as it has resnets and one for its sampler."""
    return re.sub(
        r"^(input|output)_blocks\.(\d+)\.",
        lambda m: f"{m[1]}_blocks.{_dense_number(m[1], int(m[2]))}.",
        unet_name(name),
    )


def _dense_number(side: str, number: int) -> int:
    """Of a level of one resnet, its place without the gap that a stride of three leaves."""
    if side == "input":
        level, place = divmod(number - 1, 3)
        return number if number == 0 else 1 + 2 * level + min(place, 1)
    level, place = divmod(number, 3)
    return 2 * level + min(place, 1)


def _converted_name(name: str) -> str:
    """As diffusers' own converter leaves it, which knows of no attention in the first level up."""
    return name if name.startswith("up_blocks.0.attentions.") else unet_name(name)


def _open_clip_tensors(text_encoder: CLIPTextModel) -> dict[str, torch.Tensor]:
    """open_clip's tensors of a text encoder, with the layer and the projection that Stable Diffusion 2.x does not use."""
    found = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    tensors = {
        "token_embedding.weight": found["embeddings.token_embedding.weight"],
        "positional_embedding": found["embeddings.position_embedding.weight"],
        "ln_final.weight": found["final_layer_norm.weight"],
        "ln_final.bias": found["final_layer_norm.bias"],
    }
    for layer, source in ((0, 0), (1, 1), (OPEN_CLIP_LAST, 1)):
        start, place = f"encoder.layers.{source}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [found[f"{start}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{place}.attn.in_proj_{kind}"] = torch.cat(parts)
            tensors |= {f"{place}.{new}.{kind}": found[f"{start}.{old}.{kind}"] for old, new in names.items()}
    last = f"transformer.resblocks.{OPEN_CLIP_LAST}."
    tensors = {name: -tensor if name.startswith(last) else tensor for name, tensor in tensors.items()}
    width = text_encoder.config.hidden_size
    return tensors | {"text_projection": torch.ones(width, width), "logit_scale": torch.tensor(100.0)}


def ldm_tensors(networks: Networks, unet_names: Callable[[str], str] = unet_name) -> dict[str, torch.Tensor]:
    """Tensors under LDM's names, with 1×1 convolutions in the VAE's attention."""
    tensors = {f"model.diffusion_model.{unet_names(name)}": t for name, t in networks.unet.state_dict().items()}
    for name, tensor in networks.vae.state_dict().items():
        ldm = vae_name(name)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", ldm)
        tensors[f"first_stage_model.{ldm}"] = tensor[..., None, None] if convolution else tensor
    if networks.family == "sd2":
        return tensors | {
            f"cond_stage_model.model.{name}": t for name, t in _open_clip_tensors(networks.text_encoder).items()
        }
    for name, tensor in networks.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return tensors


def diffusers_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors under diffusers' names, each network's with a prefix."""
    parts = {"unet": networks.unet, "vae": networks.vae, "text_encoder.text_model": networks.text_encoder}
    return {
        f"{part}.{name.removeprefix('text_model.')}": tensor
        for part, network in parts.items()
        for name, tensor in network.state_dict().items()
    }


#: Names that single files have
LAYOUTS: dict[str, Callable[[Networks], dict[str, torch.Tensor]]] = {
    "ldm": ldm_tensors,
    "converted": lambda networks: ldm_tensors(networks, _converted_name),
    "bare": lambda networks: {
        name.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.").replace(
            "model.diff", "diff"
        ): t
        for name, t in ldm_tensors(networks, _dense_if_narrow(networks)).items()
    },
    "diffusers": diffusers_tensors,
}


def _dense_if_narrow(networks: Networks) -> Callable[[str], str]:
    return _dense_name if networks.unet.config.layers_per_block == 1 else unet_name


def single_file_tensors(networks: Networks, layout: str = "ldm") -> dict[str, torch.Tensor]:
    """Tensors of *networks* as a single file of *layout* has them, in its precision."""
    return {name: tensor.to(networks.dtype).clone().contiguous() for name, tensor in LAYOUTS[layout](networks).items()}


def eight_bit_tensors(
    tensors: Mapping[str, torch.Tensor], kind: str, *, scaled: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """*tensors* with the UNet's matrices in eight bits, scaled as ComfyUI does or not; and what an import has to make of each."""
    stored, wanted = {}, {}
    dtype = EIGHT_BITS[kind]
    for name, tensor in tensors.items():
        if "diffusion_model." not in name or tensor.ndim < 2:
            stored[name] = wanted[name] = tensor
            continue
        scale = tensor.float().abs().max() / torch.finfo(dtype).max if scaled else torch.tensor(1.0)
        stored[name] = (tensor.float() / scale).to(dtype)
        wanted[name] = (stored[name].float() * scale).to(torch.float16)
        if scaled:
            stored[f"{name.removesuffix('.weight')}.scale_weight"] = scale
    if scaled:
        stored["model.diffusion_model.scaled_fp8"] = torch.empty(2, dtype=dtype)
    return stored, wanted


def averaged(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """*tensors* with the UNet's under the names by which LDM's trainer keeps moving averages, and the UNet gone."""
    start = "model.diffusion_model."
    return {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}" if name.startswith(start) else name: tensor
        for name, tensor in tensors.items()
    } | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1000)}


def leftovers() -> dict[str, torch.Tensor]:
    """What training leaves in checkpoints beside the networks."""
    schedule = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
    return {
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(WIDTH, 4, 3, 3),
        "model_ema.decay": torch.tensor(0.9999),
        "alphas_cumprod": schedule,
        "sqrt_one_minus_alphas_cumprod": (1 - schedule).sqrt(),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def metadata(networks: Networks) -> dict[str, str]:
    """What a file of *networks* says of itself: what its UNet predicts, where that is not the family's."""
    said = {"modelspec.prediction_type": "v" if networks.prediction_type == "v_prediction" else "epsilon"}
    return {"format": "pt"} | (said if networks.family == "sd2" else {})


def save(networks: Networks, path: Path, *, layout: str = "ldm", extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks, layout) | (extra or {}), path, metadata=metadata(networks))
    return path


class ModelCheckpoint:
    """Stands in pickles under the name of Lightning's class, which its checkpoints have among their callbacks."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def save_pickle(networks: Networks, path: Path, *, layout: str = "ldm", zipped: bool = True) -> Path:
    """*networks* as LDM's trainer saves them: nested, with its callbacks and counters, and some tensors not contiguous."""
    tensors = {
        name: t.mT.contiguous().mT if t.ndim == 2 else t for name, t in single_file_tensors(networks, layout).items()
    }
    if networks.prediction_type == "v_prediction":
        tensors["v_pred"] = torch.empty(0)
    parts = ModelCheckpoint.__module__.split(".")
    modules = {".".join(parts[:end]): ModuleType(parts[end - 1]) for end in range(1, len(parts) + 1)}
    modules[ModelCheckpoint.__module__].ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, modules):
        content = {"epoch": 3, "global_step": 1000, "callbacks": {ModelCheckpoint: {"best": torch.tensor(0.1)}}}
        torch.save(content | {"state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    return path


def save_folder(
    networks: Networks, folder: Path, *, variant: str | None = None, shard: str = "10GB", pickled: bool = False
) -> Path:
    """*networks* as a diffusers folder, as `save_pretrained` writes its parts."""
    for name, network in (("unet", networks.unet), ("vae", networks.vae), ("text_encoder", networks.text_encoder)):
        plain = type(network)(network.config) if name == "text_encoder" else type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.to(networks.dtype).save_pretrained(folder / name, variant=variant, max_shard_size=shard)
        if pickled:
            for file in (folder / name).glob("*.safetensors"):
                stem = "pytorch_model" if name == "text_encoder" else "diffusion_pytorch_model"
                torch.save(plain.state_dict(), folder / name / f"{stem}.bin")
                file.unlink()
    shutil.copytree(ROOT / "resources" / "clip", folder / "tokenizer")
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": networks.prediction_type}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for variant, build in VARIANTS.items():
        save(build(), Path(sys.argv[1]) / f"{variant}.safetensors")
