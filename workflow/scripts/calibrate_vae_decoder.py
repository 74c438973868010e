"""Pack the final latents of the calibration prompts."""

from axbake.calibration import calibrate_vae_decoder
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    calibrate_vae_decoder(input.trajectories, input.weights, archive=output.archive)
