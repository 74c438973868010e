"""Write the page of a model."""

from axbake.jobs import job
from axbake.report import write_report

with job(snakemake) as (settings, input, output):
    write_report(
        checkpoint=input.checkpoint,
        settings=input.drawn,
        reference=input.reference,
        simulation=input.simulation,
        distance=input.distance,
        parities=input.parities,
        records=input.records,
        benchmarks=input.benchmarks,
        page=output.page,
        **vars(settings),
    )
