"""Stable Diffusion XL's UNet: as `axbake.networks.unet`, and prompts and sizes are added to its time embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.networks import names, unet
from axbake.networks.architecture import xl_unet_architecture
from axbake.networks.component import Interface, Shapes
from axbake.networks.sampling import Sampling
from axbake.runtime.added import SIZE_CHANNELS, AddedEmbedding

if TYPE_CHECKING:
    import numpy as np

HEAD_WIDTH = 64  # channels of one attention head: 5, 10 and 20 heads
SIZES = 6  # numbers that say what a picture's size was
WITHOUT = unet.WITHOUT | {"addition_embed_type": ("text_time",), "addition_time_embed_dim": (SIZE_CHANNELS,)}
COLUMNS = ("height", "width", "prompt_chunks")
LDM = "model.diffusion_model."
EXAMPLE_SIZE = 1024.0  # pixels; each of the sizes in an example


def config(shapes: Shapes) -> dict:
    """Config of the UNet."""
    return xl_unet_architecture(shapes, heads=lambda channels: max(1, channels // HEAD_WIDTH))


def ldm_name(config: Mapping) -> Callable[[str], str]:
    """LDM's names of the UNet."""
    crossed = config["up_block_types"][0].startswith("CrossAttn")
    return lambda name: LDM + names.ldm_unet_name(name, crossed=crossed)


def lora_names(module: str) -> list[str]:
    """Names that LoRAs give a module: as `axbake.networks.names.unet_lora_names`, with LDM's of this UNet."""
    ldm = names.ldm_unet_name(f"{module}.weight", crossed=True).removesuffix(".weight")
    return [*names.unet_lora_names(module), ldm]


def pooled_width(config: Mapping) -> int:
    """Channels of the pooled prompt that it takes."""
    return config["projection_class_embeddings_input_dim"] - SIZES * SIZE_CHANNELS


def time_rows(weights: Path, timesteps: np.ndarray, *, guidance_scale: float) -> np.ndarray:
    """Rows of *timesteps* as `axbake.networks.unet.time_rows` gives them, without SiLU: prompts are added before it."""
    return unet.time_rows(weights, timesteps, guidance_scale=guidance_scale, activated=False)


def added_embedding(weights: Path) -> AddedEmbedding:
    """What prompts and sizes add to the rows, from `weights/{component}.safetensors` of the UNet."""
    from axbake.weights.files import read_tensor

    arrays = {
        f"{kind}_{number}": read_tensor(weights, f"add_embedding.linear_{number}.{kind}").float().numpy()
        for number in (1, 2)
        for kind in ("weight", "bias")
    }
    return AddedEmbedding(**arrays)


def example(network: Any, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """Random latent, tokens and pooled prompt at a timestep in the middle, and what the whole network makes of them."""
    import torch

    latent = torch.randn(face.inputs[unet.SAMPLE].shape, generator=generator)
    context = torch.randn(face.inputs[unet.CONTEXT].shape, generator=generator)
    pooled = torch.randn((1, pooled_width(config)), generator=generator)
    added = {"text_embeds": pooled, "time_ids": torch.full((1, SIZES), EXAMPLE_SIZE)}
    time = torch.tensor([unet.EXAMPLE_TIMESTEP], dtype=torch.int32)
    embedding = network.time_embedding(network.get_time_embed(latent, time))
    embedding = embedding + network.get_aug_embed(embedding, context, added)
    output = network(latent, time, context, added_cond_kwargs=added, return_dict=False)[0]
    row = torch.nn.functional.silu(embedding)
    return {unet.SAMPLE: latent, unet.CONTEXT: context, unet.TIME_INPUT: row}, output


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How it is run; what was distilled to few steps has the same structure, so the row says how many."""
    return Sampling(prediction_type, zero_terminal_snr, guidance_embedded="time_cond_proj_dim" in config)
