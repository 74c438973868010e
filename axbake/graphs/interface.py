"""What each component's graph takes and gives: names, shapes and types, in order.

The names are a contract with the programs that run on boards. A compiled model keeps the names of its graph, so they are
decided at the export, by the table's column `program`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from axbake.runtime.sampler import Time

TOKENS = 77  # that one run of CLIP's text encoder takes
# The UNet's time input in AXERA-TECH/sd1.5-lcm.axera and yuyun2000/sd15-to-ax8850-deploy: the name that the row had inside
# their graphs before they cut it out.
TIME_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"
# The same in Mojo24x7/SD1.5_AXM1-AX8850_Euler, whose UNets make the row themselves. Its programs take for it the first input
# with a t in its name, so the order of the inputs counts.
TIMESTEP_INPUT = "t"
PROGRAMS = {
    "axera": "AXERA-TECH/sd1.5-lcm.axera",
    "m5stack": "yuyun2000/sd15-to-ax8850-deploy, M5Stack/SD1.5-LLM8850",
    "euler": "Mojo24x7/SD1.5_AXM1-AX8850_Euler",
}


@dataclass(frozen=True)
class Tensor:
    """Shape and NumPy type of an input."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Interface:
    """Inputs of a graph by name, in order, and its output."""

    inputs: dict[str, Tensor]
    output: str


def interface(
    component: str,
    config: dict,
    *,
    height: int | None = None,
    width: int | None = None,
    prompt_chunks: int = 1,
    program: str = "axera",
) -> Interface:
    """Interface of *component*.

    Args:
        config: of the network, in diffusers' form.
        height, width: image pixels, multiples of 8; the text encoder has none.
        prompt_chunks: chunks of 77 tokens that the UNet takes at once. Published on-board programs give one.
        program: of `PROGRAMS`: whose names.
    """
    if component == "text_encoder":
        return Interface({"input_ids": Tensor((1, TOKENS), "int64")}, "last_hidden_state")
    assert height and width, f"{component}: a picture size is needed"
    image, latent = Tensor((1, 3, height, width), "float32"), Tensor((1, 4, height // 8, width // 8), "float32")
    if component == "vae_encoder":
        return Interface({"image_sample": image}, "latent_sample")
    if component == "vae_decoder":
        return Interface({decoder_input(program): latent}, "sample")
    text = Tensor((1, prompt_chunks * TOKENS, config["cross_attention_dim"]), "float32")
    if program == "euler":
        return Interface(
            {"sample": latent, TIMESTEP_INPUT: Tensor((1,), "int32"), "encoder_hidden_states": text}, "out_sample"
        )
    row = 4 * config["block_out_channels"][0]  # diffusers' time embedding is four times as wide as the first level
    return Interface(
        {"sample": latent, "encoder_hidden_states": text, TIME_INPUT: Tensor((1, row), "float32")}, "out_sample"
    )


def decoder_input(program: str) -> str:
    """What *program* calls the latent that the VAE decoder takes."""
    return "latent" if program == "m5stack" else "x"


def takes_timestep(inputs: Iterable[str]) -> bool:
    """Whether a UNet of these inputs makes the time embedding itself."""
    return TIMESTEP_INPUT in inputs


def unet_feed(inputs: Iterable[str], latent: np.ndarray, text: np.ndarray, time: Time) -> dict[str, np.ndarray]:
    """What a UNet of these *inputs* is given: the scaled *latent*, an embedded prompt, and the time in the form that it takes."""
    timed = {TIMESTEP_INPUT: time.value((1,))} if takes_timestep(inputs) else {TIME_INPUT: time.value(time.row.shape)}
    return {"sample": latent, "encoder_hidden_states": text, **timed}
