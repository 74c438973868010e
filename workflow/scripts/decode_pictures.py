"""Decode the final latents of the calibration prompts."""

from axbake.jobs import job
from axbake.trajectories import decode_pictures

with job(snakemake) as (settings, input, output):
    decode_pictures(input.trajectories, input.vae_decoder, pictures=output.pictures)
