"""The float32 ONNX graph without its weights, which stay memory maps of their file.

Nothing here, nor in what uses it, ever holds all weights in one protobuf: Stable Diffusion's UNet has 3.4 GB of them,
and a protobuf ends at 2 GB.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state

from axbake.emulator import PRODUCER
from axbake.errors import AxbakeError

INLINE = 1024  # bytes; a constant up to this size stays in the protobuf, where shape inference can read it

HALVES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


RUNTIME_ERRORS = (
    *(runtime_state.Fail, runtime_state.InvalidGraph, runtime_state.InvalidArgument, runtime_state.InvalidProtobuf),
    *(runtime_state.NotImplemented, runtime_state.NoSuchFile, runtime_state.RuntimeException, runtime_state.EPFail),
)


class GraphError(AxbakeError):
    """The emulator cannot quantise or run this model."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and fixed shape of a graph's input or output."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A model without its weights, and the weights.

    In *model* each constant above `INLINE` bytes is declared as an initializer with external data, but without a file;
    *constants* has the values of all initializers, those included that are in *model* too.
    """

    model: onnx.ModelProto
    constants: Mapping[str, np.ndarray]  # read-only; large ones are maps of the data file
    types: Mapping[str, int]  # element type of every tensor
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self.model.graph.node)


def read_model(path: Path) -> onnx.ModelProto:
    """The protobuf in *path*; tensors with external data stay outside."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}); wanted an ONNX model") from error
    except DecodeError as error:
        raise GraphError(f"{path}: is not an ONNX model, or is truncated; export or copy it again") from error


def load_graph(path: Path, simplify: bool = False) -> Graph:
    """The graph in *path*, of float32 tensors and fixed shapes, made ready for quantisation.

    Constant nodes become initializers; Transpose and Identity of constants are folded into them; local functions are
    inlined. With *simplify* onnxsim goes over it first.
    """
    model = read_model(path)
    _check_origin(model, path)
    if simplify:
        model = _simplified(model, path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = _take_constants(model, path)
    _fold(model, constants)
    _declare(model, constants)
    try:
        model = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise GraphError(f"{path}: {str(error).splitlines()[0]}; check the export") from error
    types = _element_types(model, constants)
    graph = Graph(
        model=model,
        constants=constants,
        types=types,
        inputs=tuple(tensor_spec(value) for value in model.graph.input),
        outputs=tuple(tensor_spec(value) for value in model.graph.output),
    )
    if not graph.inputs:
        raise GraphError(f"{path}: has no inputs, so there is nothing to calibrate")
    _check_types(graph, path)
    return graph


def opset(graph: Graph) -> int:
    """Version of the standard operators."""
    return next(entry.version for entry in graph.model.opset_import if entry.domain in ("", "ai.onnx"))


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor that is not a constant; a dimension that is not known is 0."""
    values = [*graph.model.graph.input, *graph.model.graph.value_info, *graph.model.graph.output]
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def with_constants(graph: Graph, replaced: Mapping[tuple[int, int], np.ndarray]) -> Graph:
    """*graph* with other values for constants that nodes read: (index of the node, of its input) -> values."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    constants, taken = dict(graph.constants), set(graph.types)
    for (index, position), values in replaced.items():
        node = model.graph.node[index]
        name = f"{node.input[position]}/{node.name or node.output[0]}"
        while name in taken:
            name += "'"
        taken.add(name)
        node.input[position], constants[name] = name, values
    used = {name for node in model.graph.node for name in node.input} | {spec.name for spec in graph.outputs}
    constants = {name: values for name, values in constants.items() if name in used}
    del model.graph.initializer[:]
    _declare(model, constants)
    return replace(graph, model=model, constants=constants, types=_element_types(model, constants))


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """The specification in *value*; a dimension that is not fixed is an error."""
    dims = value.type.tensor_type.shape.dim
    loose = [dim.dim_param or f"dimension {index}" for index, dim in enumerate(dims) if dim.dim_value < 1]
    if loose:
        raise GraphError(f"{value.name}: {', '.join(loose)} not fixed; export the model with fixed shapes")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return TensorSpec(value.name, dtype, tuple(dim.dim_value for dim in dims))


def session(
    model: onnx.ModelProto,
    constants: Mapping[str, np.ndarray],
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of *model*, its declared weights taken from *constants*.

    The session copies what it prepacks; together with the maps it holds about twice the weights' size at its peak. Higher
    levels of optimisation take 1.4 GB more for Stable Diffusion's UNet, and save nothing where each tensor is observed.
    """
    options = session_options(level)
    # The default order may put off cheap nodes such as our ReduceMin to the end, and so keeps every tensor alive: 6 GB
    # instead of 0.7 for thirty tensors of 200 MB (ONNX Runtime 1.31).
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    external = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    # An OrtValue refers to its array, memory map or not, and keeps it alive.
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(constants[name])) for name in external]
    options.add_external_initializers(external, values)
    with runtime_errors(model.graph.name):
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session_options(level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.SessionOptions:
    """Options of a session that takes no more threads than the environment's OMP_NUM_THREADS, which Snakemake sets."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # 0: one a core
    options.log_severity_level = 3
    return options


@contextmanager
def runtime_errors(subject: str) -> Iterator[None]:
    """Turn ONNX Runtime's complaints about *subject* into a GraphError."""
    try:
        yield
    except RUNTIME_ERRORS as error:
        raise GraphError(f"{subject}: ONNX Runtime: {str(error).splitlines()[0]}") from error


def _check_origin(model: onnx.ModelProto, path: Path) -> None:
    operators = {node.op_type for node in model.graph.node}
    if "neu mode" in operators:
        raise GraphError(f"{path}: is a compiled .axmodel for a board, wanted a float32 ONNX model")
    if model.producer_name == PRODUCER:
        raise GraphError(f"{path}: was already quantised by the emulator, wanted a float32 ONNX model")
    if operators & {"QuantizeLinear", "DequantizeLinear"}:
        raise GraphError(f"{path}: is already quantised (QuantizeLinear nodes), wanted a float32 ONNX model")
    inner = [
        f"{node.name or node.output[0]} ({node.op_type})"
        for node in model.graph.node
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute)
    ]
    if inner:
        raise GraphError(
            f"{path}: {', '.join(inner)}: nodes with inner graphs are not emulated; export without branches"
        )


def _simplified(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    import onnxsim

    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GraphError(
            f"{path}: onnx_opt.enable_onnxsim is emulated only for models in one file, and this one's weights lie "
            "outside; leave it out, and simplify the model where it is exported"
        )
    simplified, same = onnxsim.simplify(model)
    if not same:
        raise GraphError(f"{path}: onnxsim's result differs from the model; leave onnx_opt.enable_onnxsim out")
    return simplified


def _take_constants(model: onnx.ModelProto, path: Path) -> dict[str, np.ndarray]:
    """Take all initializers and Constant nodes out of *model*."""
    constants = {tensor.name: _values(tensor, path.parent) for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            constants[node.output[0]] = _constant_value(node, path)
        else:
            kept.append(node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(kept)
    # Up to IR version 3 initializers are listed as inputs too; such an input is no input at run time.
    real = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(real)
    return constants


def _constant_value(node: NodeProto, path: Path) -> np.ndarray:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return _values(attribute.t, path.parent)
    value = helper.get_attribute_value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise GraphError(f"{path}: Constant {node.output[0]} holds `{attribute.name}`; only numbers are emulated")


def _values(tensor: TensorProto, directory: Path) -> np.ndarray:
    """The values of *tensor*; those in an external file as a map of it."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    location = Path(place["location"])
    if location.is_absolute() or ".." in location.parts:
        raise GraphError(f"{tensor.name}: data in {location}, wanted a file in the model's directory")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    shape, offset = tuple(tensor.dims), int(place.get("offset", 0))
    if not all(shape):
        return np.empty(shape, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    file = directory / location
    if not file.is_file() or file.stat().st_size < offset + size:
        found = f"{file.stat().st_size} bytes" if file.is_file() else "no such file"
        raise GraphError(f"{file}: {found}, wanted {offset + size} for {tensor.name}; copy the model's data file again")
    return np.memmap(file, dtype, mode="r", offset=offset, shape=shape)


def _transposed(node: NodeProto, value: np.ndarray) -> np.ndarray:
    order = [attribute.ints for attribute in node.attribute if attribute.name == "perm"]
    return np.transpose(value, tuple(order[0]) if order else None)


FOLDED: dict[str, Callable[[NodeProto, np.ndarray], np.ndarray]] = {
    "Transpose": _transposed,
    "Identity": lambda node, value: value,
}


def _fold(model: onnx.ModelProto, constants: dict[str, np.ndarray]) -> None:
    """Fold nodes that only reorder a constant; the result is a view, so no weight is read."""
    outputs = {value.name for value in model.graph.output}
    kept = []
    for node in model.graph.node:
        if node.op_type in FOLDED and node.input[0] in constants and node.output[0] not in outputs:
            constants[node.output[0]] = FOLDED[node.op_type](node, constants[node.input[0]])
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | outputs
    for name in set(constants) - used:
        del constants[name]


def _declare(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> None:
    """Put small constants back into *model*, and large ones as mere declarations."""
    for name in sorted(constants):
        value = constants[name]
        if value.nbytes <= INLINE or value.dtype.hasobject:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
            continue
        data_type = helper.np_dtype_to_tensor_dtype(value.dtype.newbyteorder("="))
        tensor = TensorProto(name=name, data_type=data_type, dims=value.shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="given-at-run-time")
        model.graph.initializer.append(tensor)


def _element_types(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> dict[str, int]:
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _check_types(graph: Graph, path: Path) -> None:
    halves = [f"{name} ({HALVES[kind]})" for name, kind in graph.types.items() if kind in HALVES]
    if halves:
        raise GraphError(f"{path}: {_some(halves)}: the emulator quantises float32 models; export this one as float32")
    untyped = [name for node in graph.nodes for name in node.output if name and not graph.types.get(name)]
    if untyped:
        raise GraphError(f"{path}: {_some(untyped)}: no element type can be inferred; export with standard operators")


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
