"""Write a single-file checkpoint of Stable Diffusion 1.5's architecture with seeded random weights.

    python bench/random_checkpoint.py checkpoints/random-sd15.safetensors

1.06 G parameters in fp16 under LDM names, 2.1 GB: a Civitai checkpoint in all but its pictures, which are noise.
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import torch
from safetensors.torch import save_file

from axbake.components import wanted_shapes
from axbake.families import COMPONENTS
from axbake.families.sd1 import CONFIGS
from resources.demo.to_single_file import unet_name, vae_name

CONFIG_OF = {"text_encoder": "text_encoder", "unet": "unet", "vae_encoder": "vae", "vae_decoder": "vae"}


def ldm_name(component: str, name: str) -> str:
    """LDM's name of a diffusers tensor of Stable Diffusion 1.x."""
    if component == "text_encoder":
        return f"cond_stage_model.transformer.text_model.{name}"
    return f"model.diffusion_model.{unet_name(name)}" if component == "unet" else f"first_stage_model.{vae_name(name)}"


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values of variance 1 / fan-in, so that activations keep their size; norms near 1, biases near 0."""
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (0.02 * values + float(name.endswith("weight"))).to(torch.float16)
    return (values / math.sqrt(math.prod(shape[1:]))).to(torch.float16)


def write_random_checkpoint(path: Path, *, seed: int = 0) -> None:
    """Write the checkpoint to *path*; the same seed gives the same bytes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for component in COMPONENTS:
        config = json.loads((CONFIGS / CONFIG_OF[component] / "config.json").read_text())
        for name, shape in sorted(wanted_shapes(component, config).items()):
            tensors[ldm_name(component, name)] = random_tensor(name, shape, generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_random_checkpoint(Path(sys.argv[1]))
