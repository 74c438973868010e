"""All that can be known before a compile, at once: of a model, when its graphs are there, and of one build, before it starts."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from axbake.errors import AxbakeError
from axbake.networks.card_layers import CardLayers
from axbake.networks.component import DECODER
from axbake.preflight.estimate import (
    Estimate,
    check_card,
    check_host,
    estimate,
    estimate_findings,
    free_disk,
    host_memory,
    tile_estimates,
)
from axbake.preflight.findings import Finding, show
from axbake.preflight.graph import Graph, UnreadableGraph, read_graph
from axbake.preflight.language import language_findings
from axbake.preflight.operators import check_operators
from axbake.preflight.samples import check_samples
from axbake.preflight.structure import check_structure

logger = logging.getLogger(__name__)


class PreflightError(AxbakeError):
    """A compile would fail."""


def preflight(
    *,
    model: str,
    toolchain: str,
    addresses: list[str],
    roles: Mapping[str, str],
    graphs: list[Path],
    tensors: list[Path],
    verdict: Path,
    language_weights: Sequence[Path] = (),
    layers: Mapping[str, CardLayers] = MappingProxyType({}),
) -> None:
    """Check the graphs of *model*, and write what was found to *verdict*, as JSON; the log and the screen get a table.

    Samples are not looked at: they come much later, and `check_build` reads them before a compile starts.

    Args:
        toolchain: by which the estimates go: `emulator`, or a real one.
        addresses: of *graphs*; *roles*: of their components, by address.
        tensors: of the graphs, beside them.
        language_weights, layers: of its language models on the card the `weights/{component}.safetensors`, and by component what
            is built of them.

    Raises:
        PreflightError: the table, if an error is in it. Nothing is written then.
    """
    findings: list[Finding] = []
    read: dict[str, Graph] = {}
    for name, path in zip(addresses, graphs, strict=True):
        try:
            read[name] = read_graph(path)
        except UnreadableGraph as error:
            findings.append(Finding(name, "graph", "error", str(error)))
    estimates = {name: estimate(roles[name], graph, toolchain) for name, graph in read.items()}
    for name, graph in read.items():
        findings += graph_findings(name, graph, toolchain, estimates[name], verdict.parent)
    findings += check_card(
        estimates, {name: tile_estimates(graph) for name, graph in read.items() if roles[name] == DECODER}
    )
    for (name, card), weights in zip(layers.items(), language_weights, strict=True):
        findings += language_findings(name, weights, card)
    decide(findings)
    logger.info("%s: %s", model, show(findings))
    content = {
        "model": model,
        "toolchain": toolchain,
        "findings": [asdict(finding) for finding in findings],
        "components": {name: _describe(graph, estimates[name]) for name, graph in read.items()},
    }
    verdict.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def graph_findings(component: str, graph: Graph, toolchain: str, found: Estimate, place: Path) -> Iterator[Finding]:
    """What is to be said of one graph, and of the host that compiles it in *place*."""
    yield from check_operators(component, graph)
    yield from check_structure(component, graph)
    yield from check_host(component, graph, found, memory=host_memory(), free=free_disk(place))
    yield from estimate_findings(component, graph, toolchain, found)


def check_build(
    component: str,
    role: str,
    graph: Path,
    archive: Path,
    config: Mapping[str, Any],
    *,
    toolchain: str,
    place: Path,
) -> None:
    """Check all that one compile needs, its samples included; the log gets the table.

    Args:
        archive: calibration samples.
        config: Pulsar2's.
        place: directory in which it is to be compiled.

    Raises:
        PreflightError: the table, if an error is in it.
        UnreadableGraph: *graph* is none.
    """
    read = read_graph(graph)
    found = estimate(role, read, toolchain)
    findings = [
        *graph_findings(component, read, toolchain, found, place),
        *check_samples(component, read, config, archive),
    ]
    decide(findings)
    logger.debug("%s: %s", component, show(findings))


def decide(findings: list[Finding]) -> None:
    """Raise PreflightError, which tells all of *findings*, if one of them is an error."""
    if any(finding.level == "error" for finding in findings):
        raise PreflightError(f"{show(findings)}\naxbake compiles nothing until these errors are fixed.")


def _describe(graph: Graph, found: Estimate) -> dict:
    """What the graph holds, and what its compile is estimated to take."""
    return {
        "opset": max(entry.version for entry in graph.model.opset_import),
        "operators": dict(sorted(Counter(node.op_type for node in graph.model.graph.node).items())),
        "float_bytes": graph.float_bytes,
        "quantised_bytes": graph.quantised_bytes,
        "largest_tensor_bytes": graph.largest_tensor,
        "macs": graph.macs,
        "estimate": asdict(found),
    }
