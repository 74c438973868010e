"""Draw the reference's picture with the compiled models."""

from axbake.jobs import job
from axbake.simulation import simulate

with job(snakemake) as (settings, input, output):
    simulate(
        text_encoder=input.text_encoder,
        unet=input.unet,
        vae_encoder=input.vae_encoder,
        vae_decoder=input.vae_decoder,
        vae_encoder_weights=input.vae_encoder_weights,
        schedule=input.schedule,
        reference=input.reference,
        trajectory=input.trajectory,
        image=output.image,
        distance=output.distance,
        **vars(settings),
    )
