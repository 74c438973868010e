"""Real networks of diffusers and transformers at tiny sizes, seeded, in a single file of LDM names as users have them.

python tests/tiny.py DIRECTORY    writes every family's checkpoint to DIRECTORY
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from axbake.components import VaeDecoder, VaeEncoder
from resources.demo.to_single_file import unet_name, vae_name

SEED = 0
WIDTH = 32  # channels; the family's 32 norm groups allow no fewer
# Of the UNet's levels. At 64 × 64 pixels the last one has a single latent pixel, and torch norms no group of one value.
UNET_WIDTHS = (WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH)
PRECISIONS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}  # by safetensors' names


@dataclass(frozen=True)
class Networks:
    """The networks of one model, float32, their values rounded to the precision that the checkpoint stores."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    dtype: torch.dtype

    def component(self, name: str) -> Any:
        """The network that axbake calls *name*."""
        halves = {"vae_encoder": VaeEncoder, "vae_decoder": VaeDecoder}
        return halves[name](self.vae) if name in halves else getattr(self, name)


def sd1(dtype: torch.dtype = torch.float16) -> Networks:
    """A Stable Diffusion 1.x model: 4 levels, 2 resnets each, 8 heads, CLIP's vocabulary."""
    torch.manual_seed(SEED)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=1,
            projection_dim=WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            attn_implementation="eager",
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=UNET_WIDTHS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(WIDTH,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=0.18215,
    )
    for network in (text_encoder, unet, vae):
        _unsettle(network)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        network.eval().requires_grad_(False)
    return Networks(text_encoder, unet, vae, dtype)


#: Name of a family -> a function that makes its networks
FAMILIES: dict[str, Callable[..., Networks]] = {"sd1": sd1}


def _unsettle(network: torch.nn.Module) -> None:
    """Give norms and biases values of their own: fresh ones are 1 and 0, and two that changed places would pass."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def single_file_tensors(networks: Networks) -> dict[str, torch.Tensor]:
    """Tensors of *networks* as an LDM checkpoint has them: its names, its 1×1 convolutions in the VAE's attention."""
    tensors = {f"model.diffusion_model.{unet_name(name)}": t for name, t in networks.unet.state_dict().items()}
    for name, tensor in networks.vae.state_dict().items():
        ldm = vae_name(name)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", ldm)
        tensors[f"first_stage_model.{ldm}"] = tensor[..., None, None] if convolution else tensor
    for name, tensor in networks.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.to(networks.dtype).contiguous() for name, tensor in tensors.items()}


def leftovers() -> dict[str, torch.Tensor]:
    """What training leaves in checkpoints beside the networks."""
    return {
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(WIDTH, 4, 3, 3),
        "model_ema.decay": torch.tensor(0.9999),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "sqrt_one_minus_alphas_cumprod": torch.linspace(0, 1, 1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def save(networks: Networks, path: Path, *, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """*networks* as one safetensors file at *path*, with *extra* tensors beside theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_tensors(networks) | (extra or {}), path, metadata={"format": "pt"})
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for family, build in FAMILIES.items():
        save(build(), Path(sys.argv[1]) / f"{family}.safetensors")
