"""Calibration samples against a graph's inputs: names, types, shapes, finite values. All of them are read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from axbake.emulator.calibration_data import samples, sources
from axbake.emulator.config import build_config, check_input_names
from axbake.emulator.graph import tensor_spec
from axbake.errors import AxbakeError
from axbake.preflight.findings import Finding
from axbake.preflight.graph import Graph, is_fixed

OF_PROCESSORS = ("tensor_name", "tensor_format", "src_format")  # what decides how pictures are read


def check_samples(component: str, graph: Graph, config: Mapping[str, Any], archive: Path) -> Iterator[Finding]:
    """Read *archive* as Pulsar2's *config* says, the way the emulator does, and tell the first sample that does not fit."""
    if not all(is_fixed(graph.shapes.get(name, ("?",))) for name in graph.inputs):
        return  # which is an error of its own
    try:
        inputs = tuple(tensor_spec(value) for value in graph.inputs.values())
        build = build_config(_of_inputs(config, archive))
        check_input_names(build, tuple(spec.name for spec in inputs))
        count = sum(1 for _ in samples(sources(build, inputs)))
    except AxbakeError as error:
        yield Finding(component, "samples", "error", f"{error}. Make the calibration archive again.")
    else:
        yield Finding(component, "samples", "note", f"{count} samples fit the graph's inputs")


def _of_inputs(values: Mapping[str, Any], archive: Path) -> dict[str, Any]:
    """What of a build's config says how samples are read, and that they are in *archive*."""
    entries = values.get("quant", {}).get("input_configs", [])
    return {
        "input": "graph.onnx",
        "output_dir": "out",
        "model_type": "ONNX",
        "quant": {"input_configs": [{**entry, "calibration_dataset": str(archive)} for entry in entries]},
        "input_processors": [
            {name: entry[name] for name in OF_PROCESSORS if name in entry}
            for entry in values.get("input_processors", [])
        ],
    }
