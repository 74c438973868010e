"""Say what a checkpoint is, and what in it is not used."""

from axbake.checkpoint import describe_checkpoint
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    describe_checkpoint(input.checkpoint, sha256=settings.sha256, description=output.description)
