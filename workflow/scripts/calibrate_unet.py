"""Pack samples of the UNet's inputs, spread over prompts, steps and branches."""

from axbake.calibration import calibrate_unet
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    calibrate_unet(input.trajectories, input.schedule, archive=output.archive, **vars(settings))
