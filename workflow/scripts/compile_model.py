"""Compile one component's graph with the toolchain of config."""

from axbake.jobs import job
from axbake.pulsar2 import compile_model

with job(snakemake) as (settings, input, output):
    compile_model(
        graph=input.graph, config=input.config, axmodel=output.axmodel, record=output.record, **vars(settings)
    )
