"""Compare an ONNX graph with its network in torch."""

from axbake.jobs import job
from axbake.parity import check_parity

with job(snakemake) as (settings, input, output):
    check_parity(input.weights, input.graph, parity=output.parity, **vars(settings))
