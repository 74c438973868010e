"""Draw the reference picture with diffusers, in float32."""

from axbake.jobs import job
from axbake.reference import draw_reference

with job(snakemake) as (settings, input, output):
    draw_reference(
        text_encoder=input.text_encoder,
        unet=input.unet,
        vae_decoder=input.vae_decoder,
        image=output.image,
        trajectory=output.trajectory,
        settings=output.settings,
        **vars(settings),
    )
