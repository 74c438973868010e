"""Stable Diffusion's UNet: its builds, and its time embedding, which graphs take as a row that the host computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axbake.errors import AxbakeError
from axbake.networks.architecture import SDXS, unet_variant
from axbake.networks.component import Interface, Module, Naming, Tensor
from axbake.networks.names import DIFFUSERS_UNET_MARKER, LDM_UNET_MARKER, unet_renamer
from axbake.networks.sampling import Sampling
from axbake.runtime.tokenizer import TOKENS
from axbake.runtime.values import Latents

if TYPE_CHECKING:
    import numpy as np
    import torch

NAMINGS = (Naming(LDM_UNET_MARKER, unet_renamer), Naming(DIFFUSERS_UNET_MARKER, unet_renamer))
FOLDER, PREFIX = "unet", "unet."
TOLD = (
    "attention_head_dim",
    "num_attention_heads",
    "norm_num_groups",
    "norm_eps",
    "act_fn",
    "flip_sin_to_cos",
    "freq_shift",
)
WITHOUT: dict[str, tuple] = {
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
COLUMNS = ("height", "width", "prompt_chunks", "program")
# The UNet's time input in AXERA-TECH/sd1.5-lcm.axera and yuyun2000/sd15-to-ax8850-deploy: the name that the row had inside
# their graphs before they cut it out.
TIME_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"
# The same in Mojo24x7/SD1.5_AXM1-AX8850_Euler, whose UNets make the row themselves. Its programs take for it the first input
# with a t in its name, so the order of the inputs counts.
TIMESTEP_INPUT = "t"
SAMPLE, CONTEXT = "sample", "encoder_hidden_states"  # the others
EXAMPLE_TIMESTEP = 500  # in the middle of the noise levels
TIMESTEP_PROGRAMS = ("euler",)  # that give the UNet a timestep, and no row


class TimeEmbeddingError(AxbakeError):
    """A UNet does not have the expected time embedding, or its program cannot provide the input."""


def build(config: Mapping) -> Module:
    """diffusers' `UNet2DConditionModel`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


def inputs(*, program: str, **size: int) -> dict[str, str]:
    """Sample, tokens, and the time in the form and under the name that *program* has."""
    if program in TIMESTEP_PROGRAMS:
        return {SAMPLE: "float32", TIMESTEP_INPUT: "int32", CONTEXT: "float32"}
    return {SAMPLE: "float32", CONTEXT: "float32", TIME_INPUT: "float32"}


def unet_interface(
    config: Mapping, latents: Latents, *, height: int, width: int, prompt_chunks: int, program: str
) -> Interface:
    """What the whole UNet takes and gives.

    Args:
        height, width: image pixels.
        prompt_chunks: chunks of tokens that it takes at once. Published on-board programs give one.

    Raises:
        TimeEmbeddingError: it takes the guidance scale in its time embedding, which a timestep does not bring.
    """
    shapes = {
        SAMPLE: (1, config["in_channels"], *latents.shape(height, width)[2:]),
        CONTEXT: (1, prompt_chunks * TOKENS, config["cross_attention_dim"]),
        TIME_INPUT: (1, row_width(config)),
        TIMESTEP_INPUT: (1,),
    }
    taken = inputs(program=program)
    if TIMESTEP_INPUT in taken and config.get("time_cond_proj_dim"):
        raise TimeEmbeddingError(
            f"unet: takes the guidance scale in its time embedding, which program: {program} does not provide. Use "
            "program: axera."
        )
    return Interface({name: Tensor(shapes[name], dtype) for name, dtype in taken.items()}, ("out_sample",))


def row_width(config: Mapping) -> int:
    """Channels of the time embedding: diffusers' is four times as wide as the first level."""
    return 4 * config["block_out_channels"][0]


def cut(network: Module, face: Interface) -> Module:
    """The whole network; without its time embedding, unless it is to take the timestep."""
    from axbake.networks.modules import CutUnet, WholeUnet

    return WholeUnet(network) if TIMESTEP_INPUT in face.inputs else CutUnet(network)


def with_rows(network: Module) -> Module:
    """The network without its time embedding: (latent, tokens, row) -> prediction."""
    from axbake.networks.modules import CutUnet

    return CutUnet(network)


def width(config: Mapping) -> int:
    """Channels of a token that it takes."""
    return config["cross_attention_dim"]


def sampling(config: Mapping, prediction_type: str, *, zero_terminal_snr: bool) -> Sampling:
    """How a UNet of this structure is run."""
    if unet_variant(config).startswith(SDXS):
        return Sampling(prediction_type, zero_terminal_snr, steps=1, guided=False)
    return Sampling(prediction_type, zero_terminal_snr, guidance_embedded="time_cond_proj_dim" in config)


def time_rows(
    weights: Path,
    timesteps: np.ndarray,
    *,
    guidance_scale: float,
    activated: bool = True,
    prefix: str = "time_embedding.",
) -> np.ndarray:
    """Rows that the UNet's residual blocks take for *timesteps*, SiLU applied.

    The sinusoids are float32 as the model was trained with (in float64 they would differ by 6e-5 at timestep 999), the
    two linear layers float64, so that the order in which a CPU sums does not show in the result.

    Args:
        weights: `weights/{component}.safetensors` of the UNet; only the tensors of its time embedding are read.
        timesteps: (N,) noise levels, 0 to 999.
        guidance_scale: embedded in the rows of a UNet that takes it so (`cond_proj`); not used by others.
        activated: whether SiLU is applied.
        prefix: of the names of its time embedding's tensors.

    Returns:
        (N, C) float32.
    """
    import torch
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    tensors = _time_tensors(weights, prefix)
    channels, model_channels = tensors["linear_1.weight"].shape
    project = Timesteps(model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
    condition_channels = tensors["cond_proj.weight"].shape[1] if "cond_proj.weight" in tensors else None
    embed = TimestepEmbedding(model_channels, channels, cond_proj_dim=condition_channels).double()
    embed.load_state_dict(tensors)
    condition = guidance_embedding(guidance_scale, condition_channels).double() if condition_channels else None
    with torch.no_grad():
        rows = embed(project(torch.from_numpy(timesteps)).double(), condition)
        rows = torch.nn.functional.silu(rows) if activated else rows
    return rows.float().numpy()


def guidance_embedding(guidance_scale: float, channels: int) -> torch.Tensor:
    """What a UNet distilled for LCM takes of the guidance scale (Luo et al. 2023; diffusers' `get_guidance_scale_embedding`).

    Args:
        channels: of the embedding; even.

    Returns:
        (1, channels) float32: sines, then cosines, of 1000 × (guidance scale − 1), as diffusers' pipelines give it.
    """
    import torch

    half = channels // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor([[1000 * (guidance_scale - 1)]], dtype=torch.float32) * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def _time_tensors(weights: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of `TimestepEmbedding`, under its own names."""
    from safetensors import safe_open

    wanted = {f"linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    with safe_open(weights, "pt") as file:
        names = [name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        if set(names) - {"cond_proj.weight"} != wanted:
            raise TimeEmbeddingError(
                f"{weights}: {prefix.rstrip('.')} has {', '.join(sorted(names)) or 'no tensors'}; wanted "
                f"{', '.join(sorted(wanted))}, and at most cond_proj.weight."
            )
        return {name: file.get_tensor(prefix + name) for name in names}


def example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """A random latent and random tokens at a timestep in the middle, and what the network with its time embedding makes of it."""
    import torch

    latent = torch.randn(face.inputs[SAMPLE].shape, generator=generator)
    context = torch.randn(face.inputs[CONTEXT].shape, generator=generator)
    time = torch.tensor([EXAMPLE_TIMESTEP], dtype=torch.int32)
    row = torch.nn.functional.silu(network.time_embedding(network.get_time_embed(latent, time)))
    times = {TIME_INPUT: row, TIMESTEP_INPUT: time}
    (time_input,) = times.keys() & face.inputs.keys()
    output = network(latent, time, context, return_dict=False)[0]
    return {SAMPLE: latent, CONTEXT: context, time_input: times[time_input]}, output
