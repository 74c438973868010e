"""Pack the pictures of the calibration prompts."""

from axbake.calibration import calibrate_vae_encoder
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    calibrate_vae_encoder(input.pictures, archive=output.archive)
