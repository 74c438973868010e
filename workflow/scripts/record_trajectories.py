"""Draw the latents of all calibration prompts, and keep what the UNet saw."""

from axbake.calibration import record_trajectories
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    record_trajectories(
        text_encoder=input.text_encoder,
        unet=input.unet,
        schedule=input.schedule,
        trajectories=output.trajectories,
        **vars(settings),
    )
