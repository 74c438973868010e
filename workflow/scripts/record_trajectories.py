"""Draw the latents of all calibration prompts, and keep what the UNet saw."""

from axbake.jobs import job
from axbake.trajectories import record_trajectories

with job(snakemake) as (settings, input, output):
    record_trajectories(
        text_encoder=input.text_encoder,
        unet=input.unet,
        schedule=input.schedule,
        trajectories=output.trajectories,
        **vars(settings),
    )
