"""What a graph says of itself, without its tensors: opening a graph of 3.4 GB reads a file of some hundred kilobytes."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from axbake.errors import AxbakeError

Shape = tuple[int | str, ...]  # a name, or «?», where a dimension is not fixed
PROTOBUF_LIMIT = 2**31 - 1  # bytes of one message (https://protobuf.dev/programming-guides/proto-limits/)


class UnreadableGraph(AxbakeError):
    """A file is not an ONNX graph."""


@dataclass(frozen=True)
class Graph:
    """A graph without its tensors' values."""

    path: Path
    model: onnx.ModelProto
    shapes: dict[str, Shape]  # of every tensor whose shape is known; of constants too
    constants: dict[str, TensorProto]

    @property
    def inputs(self) -> dict[str, onnx.ValueInfoProto]:
        """Inputs that are no constants, by name."""
        return {value.name: value for value in self.model.graph.input if value.name not in self.constants}

    @property
    def float_bytes(self) -> int:
        """Bytes of all constants, as they are."""
        return sum(elements(tensor) * item_size(tensor) for tensor in self.constants.values())

    @property
    def quantised_bytes(self) -> int:
        """Bytes of all constants once matrices and kernels have 8 bits, and vectors (biases, norms) 32."""
        return sum(elements(tensor) * (1 if len(tensor.dims) > 1 else 4) for tensor in self.constants.values())

    @functools.cached_property
    def largest_tensor(self) -> int:
        """Bytes of the largest activation, in float32."""
        known = [shape for name, shape in self.shapes.items() if name not in self.constants]
        return 4 * max((volume(shape) for shape in known), default=0)

    @functools.cached_property
    def macs(self) -> int:
        """Multiplications of convolutions and matrix products in one run."""
        return sum(self._macs(node) for node in self.model.graph.node)

    def _macs(self, node: onnx.NodeProto) -> int:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            return 0
        result, first, second = (self.shapes.get(name, ()) for name in (node.output[0], *node.input[:2]))
        if node.op_type == "Conv":
            return volume(result) * volume(second[1:])
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        depth = first[0 if transposed else -1] if first else 0
        return volume(result) * (depth if isinstance(depth, int) else 0)


def read_graph(path: Path) -> Graph:
    """The graph in *path*, with the shapes that can be inferred.

    Raises:
        UnreadableGraph: it is no ONNX graph.
    """
    size = path.stat().st_size
    if size > PROTOBUF_LIMIT:
        raise UnreadableGraph(
            f"{path}: {size} bytes in one file, but protobuf reads at most {PROTOBUF_LIMIT}. Save its tensors as "
            "external data."
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UnreadableGraph(f"{path}: not an ONNX graph, or truncated. Export or copy it again.") from error
    shapes = {value.name: shape_of(value) for value in _values(model)}
    if any(output not in shapes for node in model.graph.node for output in node.output):
        model = onnx.shape_inference.infer_shapes(model)
        shapes = {value.name: shape_of(value) for value in _values(model)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return Graph(path, model, shapes | {name: tuple(t.dims) for name, t in constants.items()}, constants)


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    known = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return [value for value in known if value.type.tensor_type.HasField("shape")]


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Shape of *value*."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims)


def volume(shape: Shape) -> int:
    """Elements of a tensor of *shape*; 0 if it is not fixed."""
    return math.prod(size for size in shape if isinstance(size, int)) if is_fixed(shape) else 0


def is_fixed(shape: Shape) -> bool:
    """Whether all dimensions of *shape* are numbers."""
    return all(isinstance(size, int) for size in shape)


def elements(tensor: TensorProto) -> int:
    """Elements of a constant."""
    return math.prod(tensor.dims)


def item_size(tensor: TensorProto) -> int:
    """Bytes of one element of a constant."""
    return helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
