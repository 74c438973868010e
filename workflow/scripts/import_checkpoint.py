"""Take one component out of a checkpoint, under diffusers' names."""

from axbake.checkpoint import import_checkpoint
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    import_checkpoint(input.checkpoint, component=settings.component, weights=output.weights)
