"""FLUX.1's autoencoder, which Z-Image and Lumina-Image 2 draw with too: 16 channels with a shift, without quant convolutions."""

from dataclasses import replace

from axbake.networks import architecture
from axbake.networks.autoencoder import VAE_DECODER, VAE_ENCODER, WITHOUT
from axbake.networks.component import Shapes
from axbake.runtime.values import Latents

SCALE, SHIFT = 0.3611, 0.1159
LATENTS = Latents(channels=16, factor=8, shift=SHIFT)
SCALED = {"scaling_factor": SCALE, "shift_factor": SHIFT}
TOLD = ("norm_num_groups", "act_fn")
WITHOUT_OTHERS = WITHOUT | {"shift_factor": (SHIFT,), "scaling_factor": (SCALE,)}


def encoder_config(shapes: Shapes) -> dict:
    """Config of the VAE whose encoder half this is."""
    return architecture.without_quant_conv(architecture.vae_encoder_architecture, shapes) | SCALED


def decoder_config(shapes: Shapes) -> dict:
    """The same of the decoder half."""
    return architecture.without_quant_conv(architecture.vae_decoder_architecture, shapes) | SCALED


ENCODER = replace(
    VAE_ENCODER, files=replace(VAE_ENCODER.files, architecture=encoder_config, told=TOLD, without=WITHOUT_OTHERS)
)
DECODER = replace(
    VAE_DECODER, files=replace(VAE_DECODER.files, architecture=decoder_config, told=TOLD, without=WITHOUT_OTHERS)
)
