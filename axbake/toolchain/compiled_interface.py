"""What a compiled model takes and gives, by its float graph and Pulsar2's config."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from axbake.toolchain.axmodel import Value

# NumPy's type of a compiled model's input by Pulsar2's `src_dtype`. 32-bit ids of either sign are the same bytes.
SOURCE_TYPES = {"U8": "uint8", "S8": "int8", "U16": "uint16", "S16": "int16", "FP16": "float16", "FP32": "float32"}
SOURCE_TYPES |= {"U32": "int32", "S32": "int32"}
ALIKE = {"uint32": "int32", "int64": "int32"}  # compiled models have no 64-bit inputs


def wanted_interface(graph: Path, settings: dict[str, Any]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Inputs and outputs that a model compiled from *graph* has, by Pulsar2's config *settings*."""
    content = onnx.load(graph, load_external_data=False).graph
    constants = {tensor.name for tensor in content.initializer}
    inputs = {value.name: _value(value) for value in content.input if value.name not in constants}
    outputs = {value.name: _value(value) for value in content.output}
    for name, value in inputs.items():
        processor = processor_of(settings.get("input_processors", []), name)
        dtype = SOURCE_TYPES.get(processor.get("src_dtype", ""), str(value.dtype))
        shape = value.shape
        if processor.get("src_layout", "NCHW") != processor.get("tensor_layout", "NCHW") and len(shape) == 4:
            axes = (0, 2, 3, 1) if processor.get("src_layout") == "NHWC" else (0, 3, 1, 2)
            shape = tuple(shape[axis] for axis in axes)
        inputs[name] = Value(np.dtype(dtype), shape)
    for name, value in outputs.items():
        processor = processor_of(settings.get("output_processors", []), name)
        order = processor.get("dst_perm") or range(len(value.shape))
        dtype = SOURCE_TYPES[processor["output_dtype"]] if "output_dtype" in processor else str(value.dtype)
        outputs[name] = Value(np.dtype(dtype), tuple(value.shape[axis] for axis in order))
    return {name: as_taken(value) for name, value in inputs.items()}, outputs


def _value(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    return Value(helper.tensor_dtype_to_np_dtype(tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim))


def as_taken(value: Value) -> Value:
    """*value* with the one type of 32-bit integers that stands here for all that are taken as such."""
    return Value(np.dtype(ALIKE.get(str(value.dtype), str(value.dtype))), value.shape)


def processor_of(processors: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The entry of tensor *name*, or else the one for all."""
    by_name = {entry["tensor_name"]: entry for entry in processors}
    return by_name.get(name, by_name.get("DEFAULT", {}))
