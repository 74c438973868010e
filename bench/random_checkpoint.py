"""Write a single-file checkpoint of a published architecture with seeded random weights.

    python bench/random_checkpoint.py checkpoints/random.safetensors [sd15 | sd21 | bk-sdm-tiny | sdxs | sdxl | ssd-1b | vega |
                                                                      anima]

sd15: 1.06 G parameters in fp16 under LDM names, 2.1 GB, a Civitai checkpoint in all but its pictures, which are noise. sdxs has
an AutoencoderTiny, under diffusers' names. sdxl: 3.47 G parameters, 6.9 GB. anima: 2.83 G parameters under diffusers' names,
5.7 GB, with tokenizers beside it that make a token of every letter.
"""

import argparse
import json
import math
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import torch
from safetensors.torch import save_file

from axbake.families import FAMILIES
from axbake.networks.architecture import CONFIGS
from axbake.networks.component import TEXT
from axbake.weights.networks import wanted_shapes
from tests.tiny_anima import save_tokenizers

#: The others are of Stable Diffusion 1.x
FAMILY_OF = {"sd21": "sd2", "sdxl": "sdxl", "ssd-1b": "ssd1b", "vega": "vega", "anima": "anima"}
CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
TINY_VAE = {"_class_name": "AutoencoderTiny", "act_fn": "relu", "scaling_factor": 1.0}
NARROW = {"block_out_channels": [320, 640, 1280], "layers_per_block": 1, "mid_block_type": None}
OPEN_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
XL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [PLAIN.format("Down"), *[CROSS.format("Down")] * 2],
    "up_block_types": [*[CROSS.format("Up")] * 2, PLAIN.format("Up")],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DISTILLED = XL | {"mid_block_type": "UNetMidBlock2D"}
DEPTHS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
SSD_1B = DISTILLED | dict(zip(DEPTHS, ([1, [2, 2], [4, 4]], [[4, 4, 10], [2, 1, 1], 1]), strict=True))
VEGA = DISTILLED | dict(zip(DEPTHS, ([1, [1, 1], [2, 2]], [[2, 2, 2], [1, 1, 1], 1]), strict=True))
COSMOS = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "patch_size": [1, 2, 2],
    "rope_scale": [1.0, 4.0, 4.0],
    "extra_pos_embed_type": None,
}
FILM_VAE = {
    "_class_name": "AutoencoderKLQwenImage",
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
#: Name -> component -> its config, or what differs of it from Stable Diffusion 1.5's
MODELS: dict[str, dict[str, dict]] = {
    "sd15": {},
    "sd21": {
        "text_encoder": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
        },
        "unet": {"cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": [5, 10, 20, 20]},
    },
    "bk-sdm-tiny": {
        "unet": {
            **NARROW,
            "down_block_types": [CROSS.format("Down")] * 3,
            "up_block_types": [CROSS.format("Up")] * 3,
        }
    },
    "sdxs": {
        "unet": {
            **NARROW,
            "down_block_types": [PLAIN.format("Down"), *[CROSS.format("Down")] * 2],
            "up_block_types": [*[CROSS.format("Up")] * 2, PLAIN.format("Up")],
        },
        "vae_encoder": TINY_VAE,
        "vae_decoder": TINY_VAE,
    },
    "sdxl": {"text_encoder_2": OPEN_CLIP_G, "unet": XL},
    "ssd-1b": {"text_encoder_2": OPEN_CLIP_G, "unet": SSD_1B},
    "vega": {"text_encoder_2": OPEN_CLIP_G, "unet": VEGA},
    "anima": {
        "text_encoder": {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "final_norm": True,
        },
        "text_conditioner": {
            "source_dim": 1024,
            "target_dim": 1024,
            "model_dim": 1024,
            "num_layers": 6,
            "num_attention_heads": 16,
            "target_vocab_size": 32128,
        },
        "transformer": COSMOS,
        "vae_encoder": FILM_VAE,
        "vae_decoder": FILM_VAE,
    },
}


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values of variance 1 / fan-in, so that activations keep their size; norms near 1, biases near 0."""
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (0.02 * values + float(name.endswith("weight"))).to(torch.float16)
    return (values / math.sqrt(math.prod(shape[1:]))).to(torch.float16)


def write_random_checkpoint(path: Path, *, model: str = "sd15", seed: int = 0) -> None:
    """Write the checkpoint to *path*; the same seed gives the same bytes, also of a component that several models have."""
    tensors: dict[str, torch.Tensor] = {}
    for component in FAMILIES[FAMILY_OF.get(model, "sd1")].components:
        folder = "text_encoder" if component.role == TEXT else component.files.folder
        config = MODELS[model].get(component.name, {})
        if component.files.ldm_name:
            config = json.loads((CONFIGS / folder / "config.json").read_text()) | config
            ldm_name = component.files.ldm_name(config)
        else:
            ldm_name = component.files.prefix.__add__
        generator = torch.Generator().manual_seed(seed + zlib.crc32(component.name.encode()))
        for name, shape in sorted(wanted_shapes(component.build, config).items()):
            new = ldm_name(name)
            parts = [tensors[new]] if new in tensors else []  # open_clip's query, key and value are one
            tensors[new] = torch.cat([*parts, random_tensor(name, shape, generator)])
    if model == "sd21":
        tensors["v_pred"] = torch.empty(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    if model == "anima":
        save_tokenizers(path.parent)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("model", nargs="?", choices=MODELS, default="sd15")
    options = arguments.parse_args()
    write_random_checkpoint(options.checkpoint, model=options.model)


if __name__ == "__main__":
    main()
