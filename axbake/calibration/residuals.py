"""Ranges of residual sums: where U16 must lose, before anything is compiled.

What a transformer or a UNet adds to block after block is one tensor that all blocks share, and in some models a few of its
channels grow to thousands of times what the others are (Sun et al. 2024, "Massive Activations in Large Language Models"). A
quantiser has one step for all of them.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from axbake.calibration.denoiser_samples import DenoiserSamples, TakenInputs, Which, load_samples
from axbake.calibration.observation import chain_inputs, run_chain
from axbake.emulator.graph import Graph, load_graph
from axbake.emulator.ranges import Probe, measured

logger = logging.getLogger(__name__)
#: Operators that hand values on as they are
PASSING = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Concat"}
ENOUGH = 40  # dB of a median value in U16, below which a sum is called too wide
STEPS = 2**16 - 1  # of U16


def residual_sums(graph: Graph) -> dict[str, str]:
    """The tensors that nodes `Add` give and later nodes `Add` take again, or the graph gives -> the nodes' names, in order."""
    makers = {output: node for node in graph.nodes for output in node.output}

    def sums_behind(name: str) -> Iterator[onnx.NodeProto]:
        """Sums that *name* is, or is put together of."""
        node = makers.get(name)
        if node is not None and _is_sum(node, graph):
            yield node
        elif node is not None and node.op_type in PASSING:
            for given in node.input:
                yield from sums_behind(given)

    found = {node.name for spec in graph.outputs for node in sums_behind(spec.name)}
    for node in graph.nodes:
        before = [one.name for given in node.input for one in sums_behind(given)] if _is_sum(node, graph) else []
        found |= {node.name, *before} if before else set()
    return {node.output[0]: node.name for node in graph.nodes if node.name in found}


def _is_sum(node: onnx.NodeProto, graph: Graph) -> bool:
    return node.op_type == "Add" and not any(given in graph.constants for given in node.input)


def measure_residuals(
    graphs: Sequence[Path],
    tensors: Sequence[Path],
    trajectories: Path,
    schedule: Path,
    *,
    component: str,
    residuals: Path,
) -> None:
    """Run the float denoiser on a first and a last step, and keep how wide its residual sums are.

    Args:
        graphs, tensors: its graphs in order, and the files of their weights beside them.
        trajectories: `calibration/trajectories.npz`.
        residuals: JSON to write. `sums`, by graph and tensor: the `layer` that makes it, its `low`est and `high`est value,
            `median` of the absolute values, where it is smaller, `peak_over_median`, and `u16_db`: how far above the rounding
            error of U16 a median value is; None where more than half is 0. `wide`: those below `enough`.
    """
    recorded = load_samples(trajectories, schedule, TakenInputs.of(chain_inputs(graphs)))
    inputs = [recorded.inputs(which) for which in _ends(recorded)]
    found = widths_of_sums(graphs, inputs)
    wide = [name for name, one in found.items() if one["u16_db"] is not None and one["u16_db"] < ENOUGH]
    if wide:
        widest = min(wide, key=lambda name: found[name]["u16_db"])
        logger.warning(
            "%d of %d residual sums of the %s are too wide for U16: the largest value of %s is %.0f times its median, which U16"
            " keeps to %.0f dB. To keep them in float32, set op_type Add to data_type FP32 in the config's"
            " pulsar2/%s/quant/layer_configs.",
            len(wide),
            len(found),
            component,
            widest,
            found[widest]["peak_over_median"],
            found[widest]["u16_db"],
            component,
        )
    content = {"component": component, "samples": len(inputs), "sums": found, "wide": wide, "enough": ENOUGH}
    residuals.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def widths_of_sums(graphs: Sequence[Path], samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """How wide each residual sum of a chain of *graphs* is on *samples*, by graph and tensor, as `measure_residuals` keeps it."""
    found: dict[str, dict[str, Any]] = {}

    def measure(number: int, feeds: list[dict[str, np.ndarray]], outputs: list[str]) -> list[dict[str, np.ndarray]]:
        graph = load_graph(graphs[number])
        layers = residual_sums(graph)
        if not layers and not outputs:
            return [{}] * len(feeds)
        given = list(measured(graph, feeds, {name: _copied(name) for name in layers}, outputs))
        for place, (name, layer) in enumerate(layers.items()):
            found[f"{graphs[number].stem}/{name}"] = {"layer": layer} | _widths([arrays[place] for arrays in given])
        return [dict(zip(outputs, arrays[len(layers) :], strict=True)) for arrays in given]

    run_chain(graphs, samples, measure)
    return found


def _ends(recorded: DenoiserSamples) -> list[Which]:
    """The first prompt's first step and last step, with the prompt."""
    return [(0, step, 0) for step in dict.fromkeys((recorded.steps[0], recorded.steps[-1]))]


def _copied(name: str) -> Probe:
    """The tensor itself, in whatever shape."""
    value = helper.make_tensor_value_info(f"{name}/copy", onnx.TensorProto.FLOAT, None)
    return Probe(nodes=(helper.make_node("Identity", [name], [f"{name}/copy"]),), outputs=(value,))


def _widths(values: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Of one sum over the samples."""
    low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
    median = min(float(np.median(np.abs(one))) for one in values)
    span = max(high, 0) - min(low, 0)
    kept = 20 * math.log10(median * STEPS * math.sqrt(12) / span) if median and span else None
    return {
        "low": low,
        "high": high,
        "median": median,
        "peak_over_median": max(-low, high) / median if median else None,
        "u16_db": None if kept is None else round(kept, 1),
    }
