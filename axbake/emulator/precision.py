"""Which data types each node is quantised to: `quant.layer_configs` resolved for a graph.

Priority as documented (AXERA-TECH/pulsar2-docs-en, `user_guides_advanced/advanced_build_guides.md`): layer name, then
operator type, then subgraph; here a subgraph that is the whole graph (`DEFAULT` to `DEFAULT`) ranks below any other. A
data type that an entry leaves out is taken from the entry of next lower priority, at last U8 with S8 weights. Two
entries of equal rank that want different types for one node are refused: which one Pulsar2 takes is not documented.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from axbake.emulator.config import ALL, LayerRule, Pulsar2ConfigError
from axbake.emulator.fields import nearest
from axbake.emulator.graph import Graph

ATTRIBUTES = ("data_type", "output_data_type", "weight_data_type")
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Precision:
    """Data types of one node."""

    data_type: str  # of the inputs that are activations
    output_data_type: str
    weight_data_type: str  # S8, FP32


def resolve_precision(graph: Graph, rules: tuple[LayerRule, ...]) -> tuple[Precision, ...]:
    """The data types of each node of *graph*, in its order."""
    faults = [fault for rule in rules for fault in _unknown_names(graph, rule)]
    if faults:
        raise Pulsar2ConfigError("\n".join(faults))
    subgraphs = {rule.path: _between(graph, rule) for rule in rules if rule.start_tensors}
    found = []
    for index, node in enumerate(graph.nodes):
        ranked = [(rank, rule) for rule in rules if (rank := _rank(rule, node, index, subgraphs)) is not None]
        precision, clashes = _strongest(ranked, node)
        faults += clashes
        if node.op_type in CONVOLUTIONS and precision.data_type == "FP32":
            faults.append(f"{_title(node)}: data_type FP32 is not possible for {node.op_type}; use U16 or S16")
        found.append(precision)
    if faults:
        raise Pulsar2ConfigError("\n".join(faults))
    return tuple(found)


def unmatched_op_types(graph: Graph, rules: tuple[LayerRule, ...]) -> tuple[str, ...]:
    """ONNX operators that *rules* name and *graph* has none of; worth a line of the log, not an error."""
    present = {node.op_type for node in graph.nodes}
    return tuple(sorted({kind for rule in rules for kind in rule.op_types} - present))


def _title(node: NodeProto) -> str:
    return f"layer `{node.name or node.output[0]}`"


def _unknown_names(graph: Graph, rule: LayerRule) -> Iterable[str]:
    layers = tuple(node.name for node in graph.nodes if node.name)
    tensors = {spec.name for spec in graph.inputs} | {name for node in graph.nodes for name in node.output}
    for name in rule.layer_names:
        if name not in layers:
            yield f"{rule.path}: the graph has no layer `{name}`{_near(name, layers)}"
    for name in rule.op_types:
        if not onnx.defs.has(name):
            yield f"{rule.path}: `{name}` is no ONNX operator; Pulsar2 would pass over it in silence{_near(name, ())}"
    for name in (*rule.start_tensors, *rule.end_tensors):
        if name != ALL and name not in tensors:
            yield f"{rule.path}: the graph has no tensor `{name}`{_near(name, tuple(tensors))}"


def _near(name: str, known: tuple[str, ...]) -> str:
    """The nearest known name, but never the list of all: graphs have thousands."""
    hint = nearest(name, known)
    return hint if "did you mean" in hint else ""


def _rank(rule: LayerRule, node: NodeProto, index: int, subgraphs: dict[str, set[int]]) -> int | None:
    """Priority of *rule* for *node*, 3 the highest; None if it does not apply."""
    if node.name and node.name in rule.layer_names:
        return 3
    if node.op_type in rule.op_types:
        return 2
    if index not in subgraphs.get(rule.path, ()):
        return None
    return 0 if ALL in rule.start_tensors and ALL in rule.end_tensors else 1


def _strongest(ranked: list[tuple[int, LayerRule]], node: NodeProto) -> tuple[Precision, list[str]]:
    values: dict[str, str] = {}
    clashes = []
    for attribute in ATTRIBUTES:
        said = [(rank, rule.path, value) for rank, rule in ranked if (value := getattr(rule, attribute))]
        top = [entry for entry in said if entry[0] == max(said)[0]]
        if len({value for _, _, value in top}) > 1:
            wants = " and ".join(f"{path} {value}" for _, path, value in top)
            clashes.append(f"{_title(node)}: {attribute}: {wants} are of equal priority; keep one of them")
        if top:
            values[attribute] = top[0][2]
    data_type = values.get("data_type", "U8")
    # A layer that computes in float keeps float weights, unless it is said otherwise.
    weight = values.get("weight_data_type", "FP32" if data_type == "FP32" else "S8")
    return Precision(data_type, values.get("output_data_type", data_type), weight), clashes


def _between(graph: Graph, rule: LayerRule) -> set[int]:
    """Indices of the nodes that depend on a start tensor and that an end tensor depends on."""
    after: set[int] = set()
    reached = set(rule.start_tensors)
    for index, node in enumerate(graph.nodes):
        if ALL in rule.start_tensors or reached & set(node.input):
            after.add(index)
            reached |= set(node.output)
    before: set[int] = set()
    needed = set(rule.end_tensors)
    for index, node in reversed(list(enumerate(graph.nodes))):
        if ALL in rule.end_tensors or needed & set(node.output):
            before.add(index)
            needed |= set(node.input)
    return after & before
