"""Write timesteps, time embedding rows and update coefficients of a scheduler."""

from axbake.jobs import job
from axbake.schedule import derive_schedule
from axbake.weights import prediction_type

with job(snakemake) as (settings, input, output):
    derive_schedule(
        weights=input.unet,
        prediction_type=prediction_type(input.unet),
        schedule=output.schedule,
        **vars(settings),
    )
