"""FLUX.2's autoencoder: 32 channels, of which four pixels are one token of the transformer, normalised by measured statistics.

Both halves have the packing and the statistics (`bn`, those of a batch norm) within, so all else sees latents of 128 channels
with a mean of 0 and a deviation of 1.
"""

from collections.abc import Mapping
from typing import Any

from axbake.networks import autoencoder, names
from axbake.networks.architecture import vae_decoder_architecture, vae_encoder_architecture
from axbake.networks.component import Files, Interface, Module, Naming, Rename, Shapes, Tensor
from axbake.runtime.values import Latents

CHANNELS, PATCH = 32, 2
LATENTS = Latents(channels=CHANNELS * PATCH**2, factor=8 * PATCH)
STATISTICS = ("bn.running_mean", "bn.running_var")


def _with_statistics(rename: Rename, half: str, convolution: str) -> Rename:
    """*rename*, which knows the statistics too, and the authors' place of the convolution between half and latent."""

    def renamed(name: str) -> str | tuple[str, ...] | None:
        within = f"{half}.{convolution}."
        if name in STATISTICS:
            return name
        return name.removeprefix(f"{half}.") if name.startswith(within) else rename(name)

    return renamed


def encoder_renamer(shapes: Shapes) -> Rename:
    """Names of the encoder half, the authors' or diffusers', to diffusers'."""
    return _with_statistics(names.vae_encoder_renamer(shapes), "encoder", "quant_conv")


def decoder_renamer(shapes: Shapes) -> Rename:
    """The same of the decoder half."""
    return _with_statistics(names.vae_decoder_renamer(shapes), "decoder", "post_quant_conv")


def encoder_config(shapes: Shapes) -> dict:
    """Config of the `AutoencoderKLFlux2` whose encoder half this is."""
    return _config(vae_encoder_architecture(shapes))


def decoder_config(shapes: Shapes) -> dict:
    """The same of the decoder half."""
    return _config(vae_decoder_architecture(shapes))


def _config(config: Mapping) -> dict:
    kept = (
        *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
        *("layers_per_block", "act_fn", "latent_channels", "norm_num_groups"),
    )
    own = {"_class_name": "AutoencoderKLFlux2", "batch_norm_eps": 1e-4, "patch_size": [PATCH, PATCH]}
    return {name: config[name] for name in kept} | own


def network(config: Mapping) -> Any:
    """diffusers' `AutoencoderKLFlux2`, both halves."""
    from axbake.networks.flux2_vae_modules import Statistics

    vae = autoencoder.autoencoder(config)
    vae.bn = Statistics(vae.bn)
    return vae


def build_encoder(config: Mapping) -> Module:
    """Its half that makes latents."""
    from axbake.networks.flux2_vae_modules import Flux2Encoder

    return Flux2Encoder(network(config))


def build_decoder(config: Mapping) -> Module:
    """Its half that makes pictures."""
    from axbake.networks.flux2_vae_modules import Flux2Decoder

    return Flux2Decoder(network(config))


def decoder_interface(config: Mapping, *, height: int, width: int, program: str) -> Interface:
    """A latent in, pixels out."""
    latent = LATENTS.shape(height, width)
    inputs = autoencoder.decoder_inputs(program=program)
    return Interface({name: Tensor(latent, dtype) for name, dtype in inputs.items()}, ("sample",))


MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight")
FILES = {
    half: Files(
        namings=(Naming(mark, renamer),),
        architecture=config,
        folder=autoencoder.FOLDER,
        prefix=autoencoder.PREFIX,
        told=("norm_num_groups", "act_fn", "batch_norm_eps"),
    )
    for half, mark, renamer, config in (
        ("encoder", MARKS[0], encoder_renamer, encoder_config),
        ("decoder", MARKS[1], decoder_renamer, decoder_config),
    )
}
