"""The autoencoders that Stable Diffusion draws with, whatever the UNet: AutoencoderKL, and AutoencoderTiny (TAESD)."""

from collections.abc import Callable, Mapping
from typing import Any

from axbake.networks import names
from axbake.networks.architecture import vae_decoder_architecture, vae_encoder_architecture
from axbake.networks.component import DECODER, ENCODER, Component, Files, Graph, Interface, Module, Naming, Tensor
from axbake.runtime.values import Latents

FOLDER, PREFIX, LDM = "vae", "vae.", "first_stage_model."
TOLD = ("norm_num_groups", "act_fn", "scaling_factor")
WITHOUT: dict[str, tuple] = {
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None, 0),  # AutoencoderTiny's is 0
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
LATENTS = Latents(channels=4, factor=8)  # the scale is in the network's config
PIXELS = 3  # channels of a picture
# What programs call the latent that the decoder takes; all others say x.
DECODER_INPUTS = {"m5stack": "latent"}


def autoencoder(config: Mapping) -> Any:
    """diffusers' autoencoder of *config*, which names its class; both halves."""
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


def build_encoder(config: Mapping) -> Module:
    """Its half that makes latents."""
    from axbake.networks.modules import VaeEncoder

    return VaeEncoder(autoencoder(config))


def build_decoder(config: Mapping) -> Module:
    """Its half that makes pictures."""
    from axbake.networks.modules import VaeDecoder

    return VaeDecoder(autoencoder(config))


def encoder_inputs(**size: int) -> dict[str, str]:
    """Pixels; names as published programs have them."""
    return {"image_sample": "float32"}


def encoder_interface(config: Mapping, *, height: int, width: int) -> Interface:
    """Pixels in, means and log-variances of the latent out."""
    pixels = (1, PIXELS, height, width)
    return Interface({name: Tensor(pixels, dtype) for name, dtype in encoder_inputs().items()}, ("latent_sample",))


def decoder_inputs(*, program: str, **size: int) -> dict[str, str]:
    """A latent, by the name that *program* has for it."""
    return {DECODER_INPUTS.get(program, "x"): "float32"}


def decoder_interface(config: Mapping, *, height: int, width: int, program: str) -> Interface:
    """A latent in, pixels out."""
    _, _, *sides = LATENTS.shape(height, width)
    latent = 1, config["latent_channels"], *sides
    return Interface(
        {name: Tensor(latent, dtype) for name, dtype in decoder_inputs(program=program).items()}, ("sample",)
    )


def whole(network: Module, face: Interface) -> Module:
    """The half as it is."""
    return network


def encoder_example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """A random picture, and what the network makes of it."""
    import torch

    ((name, pixels),) = face.inputs.items()
    drawn = torch.rand(pixels.shape, generator=generator) * 2 - 1
    return {name: drawn}, network(drawn)


def decoder_example(network: Module, face: Interface, config: Mapping, generator: Any) -> tuple[dict[str, Any], Any]:
    """A random latent, and what the network makes of it."""
    import torch

    ((name, latent),) = face.inputs.items()
    drawn = torch.randn(latent.shape, generator=generator)
    return {name: drawn}, network(drawn)


def _ldm_name(config: Mapping) -> Callable[[str], str]:
    levels = len(config["block_out_channels"])
    return lambda name: LDM + names.ldm_vae_name(name, levels)


VAE_ENCODER = Component(
    name="vae_encoder",
    role=ENCODER,
    files=Files(
        namings=(
            Naming("encoder.conv_in.weight", names.vae_encoder_renamer),
            Naming("encoder.layers.0.weight", names.tiny_vae_encoder_renamer),
        ),
        architecture=vae_encoder_architecture,
        folder=FOLDER,
        prefix=PREFIX,
        told=TOLD,
        without=WITHOUT,
        ldm_name=_ldm_name,
    ),
    build=build_encoder,
    graphs=(Graph("vae_encoder", encoder_inputs, encoder_interface, whole),),
    columns=("height", "width"),
    example=encoder_example,
)
VAE_DECODER = Component(
    name="vae_decoder",
    role=DECODER,
    files=Files(
        namings=(
            Naming("decoder.conv_in.weight", names.vae_decoder_renamer),
            Naming("decoder.layers.0.weight", names.tiny_vae_decoder_renamer),
        ),
        architecture=vae_decoder_architecture,
        folder=FOLDER,
        prefix=PREFIX,
        told=TOLD,
        without=WITHOUT,
        ldm_name=_ldm_name,
    ),
    build=build_decoder,
    graphs=(Graph("vae_decoder", decoder_inputs, decoder_interface, whole),),
    columns=("height", "width", "program"),
    example=decoder_example,
)
