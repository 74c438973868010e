"""A graph's operators, attributes and opset against what Pulsar2's documentation says it compiles for AX650."""

import functools
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper

from axbake.preflight.findings import Finding, named
from axbake.preflight.graph import Graph
from axbake.root import shipped

LIST = shipped("resources/ax650/operators.json")
ONNX_DOMAINS = ("", "ai.onnx")
Fault = tuple[str, str]  # level, text


@functools.cache
def known_operators() -> dict[str, Any]:
    """The list, as resources/ax650/README.md explains it."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def check_operators(component: str, graph: Graph) -> Iterator[Finding]:
    """What of the graph's operators is not documented to compile; one finding for all nodes of the same fault."""
    yield from (Finding(component, "opset", level, text) for level, text in _opset_faults(graph.model))
    nodes: dict[Fault, list[str]] = defaultdict(list)
    for node in graph.model.graph.node:
        for fault in node_faults(node, graph):
            nodes[fault].append(node.name or node.output[0])
    for (level, text), names in nodes.items():
        count = f"{len(names)} nodes" if len(names) > 1 else "1 node"
        yield Finding(component, "operators", level, f"{text} ({count}: {named(names)})")


def _opset_faults(model: onnx.ModelProto) -> Iterator[Fault]:
    opset = known_operators()["opset"]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = next((versions[domain] for domain in ONNX_DOMAINS if domain in versions), 0)
    if version < opset["least"]:
        yield "error", f"opset {version}; Pulsar2 takes {opset['least']} and later. Export with opset 17 or 18."
    elif version not in opset["seen"]:
        seen = " or ".join(map(str, opset["seen"]))
        yield "warning", f"opset {version}; published builds of Stable Diffusion use {seen}."


def node_faults(node: onnx.NodeProto, graph: Graph) -> Iterator[Fault]:
    """What of *node* is not documented: its operator, its attributes, its inputs."""
    known = known_operators()
    name = node.op_type
    if node.domain not in ONNX_DOMAINS:
        yield "error", f"{node.domain}.{name}: a custom operator; Pulsar2 takes only ONNX's. Inline or rewrite it."
    elif name in known["listed_before"]:
        advice = known["instead"].get(name, "try it on a small graph first")
        version = known["listed_before"][name]
        yield "warning", f"{name}: in Pulsar2's operator list of version {version}, but not in that of 7.0; {advice}."
    elif name not in known["operators"]:
        advice = known["instead"].get(name, "rewrite the network without it")
        yield "error", f"{name}: not in the documented operators of the AX650; {advice}."
    else:
        rules = known["operators"][name]
        for attribute, rule in rules.get("attributes", {}).items():
            yield from _attribute_faults(node, attribute, rule, graph)
        for index, rule in rules.get("inputs", {}).items():
            yield from _input_faults(node, int(index), rule, graph)


def _attribute_faults(node: onnx.NodeProto, name: str, rule: dict, graph: Graph) -> Iterator[Fault]:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    if found is None and "default" not in rule:
        return
    value = rule["default"] if found is None else _plain(node.op_type, name, helper.get_attribute_value(found))
    values = value if isinstance(value, list) else [value]
    if "refused" in rule:
        bad = [item for item in values if item in rule["refused"]]
    else:
        bad = [item for item in values if not _allowed(item, rule["allowed"], node, graph)]
    if not bad or (name == "nearest_mode" and _mode(node) != "nearest"):
        return
    wanted = " or ".join(map(str, rule.get("allowed", []))) or "none of it"
    if "refused" in rule:
        wanted = f"anything but {', '.join(map(str, rule['refused']))}"
    text = f"{node.op_type}: {name} is {', '.join(map(str, bad))}, documented is {wanted}"
    if all(item in rule.get("seen", []) for item in bad):
        yield "warning", f"{text}; published builds contain it and run"
    else:
        yield "error", text


def _allowed(value: Any, allowed: list, node: onnx.NodeProto, graph: Graph) -> bool:
    if allowed == ["last"]:
        return value == -1 or value == len(graph.shapes.get(node.input[0], ())) - 1
    return value in allowed


def _mode(node: onnx.NodeProto) -> str:
    """Of a Resize."""
    return next((attribute.s.decode() for attribute in node.attribute if attribute.name == "mode"), "nearest")


def _plain(operator: str, name: str, value: Any) -> Any:
    """An attribute's value as the list writes it: text, numbers, names of types."""
    if (operator, name) == ("Cast", "to"):
        return str(helper.tensor_dtype_to_np_dtype(value))
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(operator, name, item) for item in value] if isinstance(value, (list, tuple)) else value


def _input_faults(node: onnx.NodeProto, index: int, rule: dict, graph: Graph) -> Iterator[Fault]:
    name = node.input[index] if index < len(node.input) else ""
    where = f"{node.op_type}: input {index}"
    if not name:
        return
    shape = graph.shapes.get(name)
    if rule.get("absent"):
        yield "error", f"{where} is given; Pulsar2 does not take it"
    if rule.get("constant") and name not in graph.constants and not _is_constant_node(name, graph):
        yield "error", f"{where} is computed; Pulsar2 takes a constant there"
    elif "elements" in rule and shape is not None and _count(shape) not in (None, rule["elements"]):
        yield "error", f"{where} has shape {list(shape)}; Pulsar2 takes {rule['elements']} value"
    if "ranks" in rule and shape is not None and len(shape) not in rule["ranks"]:
        text = f"{where} has {len(shape)} dimensions, documented is {max(rule['ranks'])}"
        if len(shape) in rule.get("seen", []):
            yield "warning", f"{text}; published builds contain it and run"
        else:
            yield "error", text


def _is_constant_node(name: str, graph: Graph) -> bool:
    return any(node.op_type == "Constant" and name in node.output for node in graph.model.graph.node)


def _count(shape: tuple) -> int | None:
    """Elements of a tensor; None if they are not known."""
    count = 1
    for size in shape:
        if not isinstance(size, int):
            return None
        count *= size
    return count
