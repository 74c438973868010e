"""Trace one component of a model into an ONNX graph of fixed shapes."""

from axbake.export import export_onnx
from axbake.jobs import job

with job(snakemake) as (settings, input, output):
    export_onnx(input.weights, graph=output.graph, **vars(settings))
