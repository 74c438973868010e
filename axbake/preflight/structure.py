"""Shapes, constants, names and sizes of a graph: what is known to make Pulsar2 fail, and where it was seen."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from axbake.preflight.findings import Finding, named
from axbake.preflight.graph import PROTOBUF_LIMIT, Graph, elements, is_fixed, item_size

LONGEST_SIDE = 65535  # of a Resize's output: Pulsar2 keeps it in 16 bits
#: Operators that make Pulsar2 simplify a graph even where `enable_onnxsim` is off; its log says so («force onnxsim …»)
SIMPLIFIED = ("Constant", "ConstantOfShape")


def check_structure(component: str, graph: Graph) -> Iterator[Finding]:
    """All that can be said of a graph beside its operators."""
    for check, faults in (
        ("shapes", _shape_faults(graph)),
        ("constants", _constant_faults(graph)),
        ("names", _name_faults(graph)),
        ("sizes", _size_faults(graph)),
        ("tensors", _tensor_faults(graph)),
    ):
        yield from (Finding(component, check, level, text) for level, text in faults)


def _shape_faults(graph: Graph) -> Iterator[tuple[str, str]]:
    loose = [f"{name} {list(shape)}" for name, shape in graph.shapes.items() if not is_fixed(shape)]
    if loose:
        yield (
            "error",
            f"shapes that are not fixed: {named(loose)}. Pulsar2 fails with “illegal value_info”; export with fixed "
            "shapes.",
        )
    interface = [*graph.inputs, *(value.name for value in graph.model.graph.output)]
    if unknown := [name for name in interface if name not in graph.shapes]:
        yield "error", f"{named(unknown)}: inputs or outputs without a shape. Export with fixed shapes."
    unknown = [out for node in graph.model.graph.node for out in node.output if out and out not in graph.shapes]
    if inner := [name for name in unknown if name not in interface]:
        yield "warning", f"shapes that cannot be inferred: {named(inner)}; estimates leave them out."
    sides = [
        f"{node.output[0]} {list(graph.shapes.get(node.output[0], ()))}"
        for node in graph.model.graph.node
        if node.op_type == "Resize"
        and any(isinstance(size, int) and size > LONGEST_SIDE for size in graph.shapes.get(node.output[0], ()))
    ]
    if sides:
        yield "error", f"Resize to more than {LONGEST_SIDE} a side: {named(sides)}. Pulsar2 keeps sides in 16 bits."


def _constant_faults(graph: Graph) -> Iterator[tuple[str, str]]:
    found = Counter(node.op_type for node in graph.model.graph.node if node.op_type in SIMPLIFIED)
    if not found:
        return
    said = " and ".join(f"{count} {name}" for name, count in found.items())
    text = f"{said} nodes force Pulsar2 to simplify the graph, whatever `enable_onnxsim` says"
    if graph.float_bytes > PROTOBUF_LIMIT:
        yield (
            "error",
            f"{text}, and the simplifier fails with a narrowing error above 2 GB ({_gigabytes(graph.float_bytes)}); "
            "make them initializers.",
        )
    else:
        yield "warning", f"{text}; make them initializers to keep the exported graph."


def _name_faults(graph: Graph) -> Iterator[tuple[str, str]]:
    outputs = [value.name for value in graph.model.graph.output]
    names = [*graph.inputs, *outputs]
    if slashes := [name for name in names if "/" in name]:
        yield (
            "warning",
            f"{named(slashes)}: a slash in a name; `axcl_run_model` and `ax_run_model` need a file with each input's "
            "name, which is not possible. axbake's runtime and published programs bind by name and work.",
        )
    if blank := [name for name in names if not name.strip() or name != name.strip()]:
        yield "error", f"inputs or outputs with blank names, or names with blanks at an end: {blank}. Rename them."
    produced = Counter(out for node in graph.model.graph.node for out in node.output if out)
    if twice := [name for name, count in produced.items() if count > 1]:
        yield "error", f"{named(twice)}: made by more than one node. Export again."
    if absent := [name for name in outputs if name not in produced and name not in graph.inputs]:
        yield "error", f"{named(absent)}: outputs that no node makes. Export again."


def _size_faults(graph: Graph) -> Iterator[tuple[str, str]]:
    inside = sum(elements(t) * item_size(t) for t in graph.constants.values() if not t.external_data)
    text = f"{_gigabytes(graph.float_bytes)} of tensors, {_gigabytes(graph.quantised_bytes)} with weights in 8 bits"
    if graph.quantised_bytes > PROTOBUF_LIMIT:
        yield (
            "error",
            f"{text}; protobuf allows 2 GB, and Pulsar2 then fails with “Error parsing message with type "
            "onnx.TensorProto”. Split the network.",
        )
    elif inside > PROTOBUF_LIMIT:
        yield "error", f"{_gigabytes(inside)} of tensors inside the graph's file; save them as external data."
    else:
        yield "note", f"{text}; protobuf allows 2.15 GB"


def _tensor_faults(graph: Graph) -> Iterator[tuple[str, str]]:
    """Tensors whose bytes are not in the file that the graph names; only the file's size is looked at."""
    ends: dict[Path, int] = {}
    for tensor in graph.constants.values():
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            end = int(place.get("offset", 0)) + int(place.get("length", elements(tensor) * item_size(tensor)))
            path = graph.path.with_name(place["location"])
            ends[path] = max(ends.get(path, 0), end)
    for path, end in ends.items():
        size = path.stat().st_size if path.is_file() else 0
        if size < end:
            yield (
                "error",
                f"{path.name}: has {size} bytes, but the graph's tensors end at {end}. Export or copy it again.",
            )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
