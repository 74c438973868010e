"""ONNX graphs of fixed shapes, with the names that published on-board programs ask for.

The weights are never in memory all at once. The network is traced on fake tensors, so the graph has names where its weights
belong; onnxsim simplifies that graph, and while the graph is saved each weight is read from the safetensors file, converted
and written, one at a time.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import torch
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch._subclasses.fake_tensor import FakeTensorMode

from axbake.errors import AxbakeError
from axbake.networks.component import Interface, Piece
from axbake.weights.files import read_description, read_shapes, read_tensor
from axbake.weights.networks import Build

OPSET = 18  # torch's exporter writes it without conversion; 17 and 18 are in published builds for AX650
IN_FLIGHT = 256 << 20  # bytes of tensors in memory while they are written


#: Parameter of a cut network that no file has as it is -> the weight that it is made of, and how; of no weight: an empty name,
#: and a function that takes nothing
Derived = Mapping[str, tuple[str, Callable[..., torch.Tensor]]]
#: Where the values of a graph's tensor are: a tensor of the weights file, and what is made of it, if it is not as it is
Source = tuple[str, Callable[..., torch.Tensor] | None]


class ExportError(AxbakeError):
    """The graph is not what the rest of axbake expects."""


def export_onnx(
    weights: Path, *, build: Build, piece: Piece, columns: Mapping[str, Any], graph: Path, tensors: Path
) -> None:
    """Trace one graph of the network of *weights* into *graph*, its tensors in one file beside it.

    The same weights and sizes give the same bytes. Peak memory is that of tracing: 0.7 GB for SD 1.5's UNet.

    Args:
        weights: `weights/{component}.safetensors`.
        build: the component's.
        piece: which graph, of the component's.
        columns: those that its interface asks for, by name: picture size in pixels, chunks of a prompt, program.
        graph: ONNX file to write, opset 18.
        tensors: file to write beside it; the graph refers to it by name.

    Raises:
        ExportError: the graph has weights that the safetensors file lacks.
    """
    config = read_description(weights).config
    face = piece.interface(config, **columns)
    model, derived = _trace(build, config, piece, face)
    sources = _attach_weights(model, weights, derived)
    _fold_constants(model)
    simplified = _simplify(model, weights, sources)
    _fold_transposes(simplified)
    _divide(simplified)
    _tidy(simplified, piece.name)
    # Two at once: one is read and widened while the other goes to the disk.
    ir.save(simplified, graph, external_data=tensors.name, max_workers=2, max_in_flight_bytes=IN_FLIGHT)


def _trace(build: Build, config: dict, piece: Piece, face: Interface) -> tuple[ir.Model, Derived]:
    """The graph of the network, its weights without values, and which of them are made of the file's."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = piece.cut(build(config).eval().requires_grad_(False), face)
        example = tuple(torch.zeros(input.shape, dtype=getattr(torch, input.dtype)) for input in face.inputs.values())
        program = torch.onnx.export(
            network.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(face.inputs),
            output_names=list(face.outputs),
            optimize=False,  # folding would ask the fake weights for their values
            verbose=False,
        )
    assert program is not None
    InlinePass()(program.model)
    return program.model, getattr(network, "derived", {})


def _lazy(weights: Path, source: Source, shape: tuple[int, ...]) -> ir.LazyTensor:
    """The float32 values of a tensor of *weights*, read when they are asked for."""
    name, made = source

    def read() -> ir.Tensor:
        given = [read_tensor(weights, name).to(torch.float32)] if name else []
        (tensor,) = [made(*given)] if made else given
        return ir.tensor(tensor.numpy())

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def _attach_weights(model: ir.Model, weights: Path, derived: Derived) -> dict[str, Source]:
    """Give each initialiser of the traced graph its value in *weights*; the names in the graph -> where that is."""
    shapes, sources = read_shapes(weights), {}
    for graph_name, value in list(model.graph.initializers.items()):
        source: Source = derived.get(graph_name, (graph_name.removeprefix("model."), None))
        if source[0] and source[0] not in shapes:
            raise ExportError(f"{graph_name}: a tensor of the traced network, which the weights file lacks")
        shape = tuple(map(int, value.shape or ())) if source[1] else shapes[source[0]]
        value.const_value = _lazy(weights, source, shape)
        sources[graph_name] = source
    return sources


def _fold_constants(model: ir.Model) -> None:
    """Compute what only constants enter; the exporter's own `optimize_ir` does no more here, and takes six times as long."""
    # Folding would transpose whole weights in memory, and then only those of small models; `_fold_transposes` does it.
    fold_constants(
        model, onnx_shape_inference=True, should_fold=lambda node: False if node.op_type == "Transpose" else None
    )
    RemoveUnusedNodesPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _simplify(model: ir.Model, weights: Path, sources: Mapping[str, Source]) -> ir.Model:
    """onnxsim's version of *model*; weights pass by as inputs, since the model with them would not fit in a protobuf."""
    inputs = len(model.graph.inputs)
    for name in sources:
        if value := model.graph.initializers.pop(name, None):
            value.const_value = None
            model.graph.inputs.append(value)
    simplified, _ = onnxsim.simplify(ir.to_proto(model))
    del simplified.graph.value_info[:]  # the simplifier leaves shapes of constants that it has since replaced
    result = ir.from_proto(onnx.shape_inference.infer_shapes(simplified, strict_mode=True))
    for value in list(result.graph.inputs)[inputs:]:
        result.graph.inputs.remove(value)
        if value.uses():
            assert value.name
            value.const_value = _lazy(weights, sources[value.name], tuple(value.shape or ()))
            result.graph.register_initializer(value)
    return result


def _fold_transposes(model: ir.Model) -> None:
    """Linear layers come as a MatMul with a transposed weight: store the weight transposed, as Pulsar2 would."""
    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not isinstance(weight.const_value, ir.LazyTensor) or len(weight.shape or ()) != 2:
            continue
        turned = node.outputs[0]
        plain = weight.const_value
        stored = ir.Value(
            name=f"{weight.name}.T",
            shape=turned.shape,
            type=turned.type,
            const_value=ir.LazyTensor(
                functools.partial(_transposed, plain), dtype=plain.dtype, shape=ir.Shape(plain.shape[::-1])
            ),
        )
        turned.replace_all_uses_with(stored)
        model.graph.register_initializer(stored)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[weight.name]


def _divide(model: ir.Model) -> None:
    """A product with a Reciprocal, which the AX650 lacks, as a Div; torch writes the RMS norm so."""
    for node in list(model.graph):
        users = [use.node for use in node.outputs[0].uses()] if node.op_type == "Reciprocal" else []
        if not users or any(user.op_type != "Mul" or user.outputs[0].is_graph_output() for user in users):
            continue
        for product in users:
            (factor,) = (value for value in product.inputs if value is not node.outputs[0])
            quotient = ir.node("Div", [factor, node.inputs[0]], name=product.name)
            made, old = quotient.outputs[0], product.outputs[0]
            made.name, made.shape, made.type = old.name, old.shape, old.type
            model.graph.insert_before(product, quotient)
            old.replace_all_uses_with(made)
            model.graph.remove(product, safe=True)
        model.graph.remove(node, safe=True)


def _transposed(tensor: ir.LazyTensor) -> ir.Tensor:
    return ir.tensor(np.ascontiguousarray(tensor.numpy().T))


def _tidy(model: ir.Model, name: str) -> None:
    """Drop what differs from machine to machine (paths in stack traces), and name weights as in the weights file."""
    model.producer_name, model.producer_version, model.doc_string = "axbake", None, None
    model.graph.name, model.graph.doc_string = name, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in list(model.graph.initializers.values()):
        assert value.name
        value.metadata_props.clear()
        value.name = value.name.removeprefix("model.")
