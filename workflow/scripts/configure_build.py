"""Write Pulsar2's config of one component."""

from axbake.jobs import job
from axbake.pulsar2 import configure_build

with job(snakemake) as (settings, input, output):
    configure_build(dataset=str(input.archive), config=output.config, **vars(settings))
