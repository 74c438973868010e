"""What each component's graph takes and gives: names, shapes and types, in order.

The names are a contract with the programs that run on boards: those of AXERA-TECH/sd1.5-lcm.axera.
"""

from dataclasses import dataclass

TOKENS = 77  # that one run of CLIP's text encoder takes
# The UNet's time input in AXERA-TECH/sd1.5-lcm.axera and yuyun2000/sd15-to-ax8850-deploy: the name that the row had inside
# their graphs before they cut it out.
TIME_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"


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
    component: str, config: dict, *, height: int | None = None, width: int | None = None, prompt_chunks: int = 1
) -> Interface:
    """Interface of *component*.

    Args:
        config: of the network, in diffusers' form.
        height, width: image pixels, multiples of 8; the text encoder has none.
        prompt_chunks: chunks of 77 tokens that the UNet takes at once. Published on-board programs give one.
    """
    if component == "text_encoder":
        return Interface({"input_ids": Tensor((1, TOKENS), "int64")}, "last_hidden_state")
    assert height and width, f"{component}: a picture size is needed"
    image, latent = Tensor((1, 3, height, width), "float32"), Tensor((1, 4, height // 8, width // 8), "float32")
    if component == "vae_encoder":
        return Interface({"image_sample": image}, "latent_sample")
    if component == "vae_decoder":
        return Interface({"x": latent}, "sample")
    row = 4 * config["block_out_channels"][0]  # diffusers' time embedding is four times as wide as the first level
    return Interface(
        {
            "sample": latent,
            "encoder_hidden_states": Tensor((1, prompt_chunks * TOKENS, config["cross_attention_dim"]), "float32"),
            TIME_INPUT: Tensor((1, row), "float32"),
        },
        "out_sample",
    )
