"""Which data types each node is quantised to: `quant.layer_configs` resolved for a graph.

Priority as documented (AXERA-TECH/pulsar2-docs-en, `user_guides_advanced/advanced_build_guides.md`): layer name, then
operator type, then subgraph; here a subgraph that is the whole graph (`DEFAULT` to `DEFAULT`) ranks below any other. A
data type that an entry leaves out is taken from the entry of next lower priority, at last U8 with S8 weights. Two
entries of equal rank that want different types for one node are refused: which one Pulsar2 takes is not documented.

Of `output_data_type` the documentation says that it acts on Conv alone. Where it is not said, the type of a result follows
`appendix/precision_debug_guides.md`: an operator's output is of the type that the next operator takes, and an operator that
only moves data has the type of what comes behind it, whatever its own setting is. With several readers that is here the widest
integer type among them. A reader in FP32 changes nothing: the documentation has a Conv's output made FP32 by
`output_data_type`, although its reader is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx
from onnx import NodeProto

from axbake.emulator.config import ALL, LayerRule, Pulsar2ConfigError
from axbake.emulator.encoding import INTEGERS
from axbake.emulator.fields import nearest
from axbake.emulator.graph import Graph
from axbake.emulator.roles import consumers, only_moves

ATTRIBUTES = ("data_type", "output_data_type", "weight_data_type")
OWN_NAME = re.compile(r"op_\d+:")  # `op_173:onnx.Mul_1`, of published configurations
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Precision:
    """Data types of one node."""

    data_type: str  # of the inputs that are activations
    output_data_type: str
    weight_data_type: str  # S8, FP32
    output_is_said: bool = False  # by the configuration, of a Conv


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
    return _by_readers(graph, found)


def unmatched_op_types(graph: Graph, rules: tuple[LayerRule, ...]) -> tuple[str, ...]:
    """ONNX operators that *rules* name and *graph* has none of; worth a line of the log, not an error."""
    present = {node.op_type for node in graph.nodes}
    return tuple(sorted({kind for rule in rules for kind in rule.op_types} - present))


def idle_output_types(graph: Graph, rules: tuple[LayerRule, ...]) -> tuple[str, ...]:
    """Paths of the entries of *rules* whose `output_data_type` acts on nothing, since they name no convolution."""
    names = {node.name for node in graph.nodes if node.op_type in CONVOLUTIONS}
    return tuple(
        f"{rule.path}.output_data_type"
        for rule in rules
        if rule.output_data_type and not rule.start_tensors
        if not (names & set(rule.layer_names) or set(CONVOLUTIONS) & set(rule.op_types))
    )


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
            yield f"{rule.path}: `{name}` is not an ONNX operator; Pulsar2 would silently ignore it{_near(name, ())}"
    for name in (*rule.start_tensors, *rule.end_tensors):
        if name != ALL and name not in tensors:
            yield f"{rule.path}: the graph has no tensor `{name}`{_near(name, tuple(tensors))}"


def _near(name: str, known: tuple[str, ...]) -> str:
    """The nearest known name, but never the list of all: graphs have thousands."""
    if OWN_NAME.match(name):
        return (
            "; Pulsar2's front end gives such names to operators that it merges, but the emulator has only the "
            "ONNX graph's"
        )
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
    # A layer that computes in float keeps float weights, unless the config says otherwise.
    weight = values.get("weight_data_type", "FP32" if data_type == "FP32" else "S8")
    is_said = node.op_type in CONVOLUTIONS and "output_data_type" in values
    return Precision(data_type, values["output_data_type"] if is_said else data_type, weight, is_said), clashes


def _by_readers(graph: Graph, found: list[Precision]) -> tuple[Precision, ...]:
    """*found* with the types of results, and of nodes that only move values, as those who read them want them."""
    result, readers = list(found), consumers(graph)
    makers = {name: index for index, node in enumerate(graph.nodes) for name in node.output}
    moves = [only_moves(node, graph.constants) for node in graph.nodes]
    # What the readers of a node's result want, moved before or not; None: it is an output of the graph.
    wanted: dict[int, set[str | None]] = {}
    for index, node in reversed(list(enumerate(graph.nodes))):
        wanted[index] = set()
        for place in (place for name in node.output for place in readers.get(name, ())):
            wanted[index] |= {None} if place < 0 else wanted[place] if moves[place] else {result[place].data_type}
        own, kinds = result[index], {kind for kind in wanted[index] if kind}
        if moves[index] and kinds:
            result[index] = replace(own, data_type=_widest(kinds), output_data_type=_widest(kinds))
        elif not moves[index] and own.data_type != "FP32" and not own.output_is_said:
            kind = _widest(kind or own.data_type for kind in wanted[index])
            is_other = kind != "FP32" and INTEGERS[kind].itemsize != INTEGERS[own.data_type].itemsize
            result[index] = replace(own, output_data_type=kind if is_other else own.data_type)
    for index, node in enumerate(graph.nodes):
        if moves[index] and (None in wanted[index] or not wanted[index]) and node.input[0] in makers:
            kinds = {kind for kind in wanted[index] if kind} | {result[makers[node.input[0]]].output_data_type}
            result[index] = replace(result[index], data_type=_widest(kinds), output_data_type=_widest(kinds))
    return tuple(result)


def _widest(types: Iterable[str]) -> str:
    """The first of the widest integer types among *types*, in the order of their names; FP32 if there is none."""
    integers = sorted(kind for kind in types if kind != "FP32")
    return max(integers, key=lambda kind: INTEGERS[kind].itemsize, default="FP32")


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
