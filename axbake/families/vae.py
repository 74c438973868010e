"""The autoencoders that Stable Diffusion draws with, whatever the UNet: AutoencoderKL, and AutoencoderTiny (TAESD)."""

from axbake.families import architecture, names
from axbake.families.family import Component, Layout

VAE = {
    "vae_encoder": Component(
        (
            Layout("encoder.conv_in.weight", names.vae_encoder_renamer),
            Layout("encoder.layers.0.weight", names.tiny_vae_encoder_renamer),
        ),
        architecture.vae_encoder_architecture,
        "vae",
    ),
    "vae_decoder": Component(
        (
            Layout("decoder.conv_in.weight", names.vae_decoder_renamer),
            Layout("decoder.layers.0.weight", names.tiny_vae_decoder_renamer),
        ),
        architecture.vae_decoder_architecture,
        "vae",
    ),
}
