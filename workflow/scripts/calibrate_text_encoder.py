"""Pack the token ids of the calibration prompts."""

from axbake.calibration import calibrate_text_encoder
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    calibrate_text_encoder(archive=output.archive, **vars(settings))
