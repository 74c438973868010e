"""What a compiled model takes and gives, by its float graph and Pulsar2's config."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from axbake.emulator.dtypes import DTYPES
from axbake.toolchain.axmodel import Value


def wanted_interface(graph: Path, settings: dict[str, Any]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Inputs and outputs that a model compiled from *graph* has, by Pulsar2's config *settings*."""
    content = onnx.load(graph, load_external_data=False).graph
    constants = {tensor.name for tensor in content.initializer}
    inputs = {value.name: _value(value) for value in content.input if value.name not in constants}
    outputs = {value.name: _value(value) for value in content.output}
    for name, value in inputs.items():
        processor = processor_of(settings.get("input_processors", []), name)
        dtype = DTYPES.get(processor.get("src_dtype", ""), value.dtype)
        shape = value.shape
        if processor.get("src_layout", "NCHW") != processor.get("tensor_layout", "NCHW") and len(shape) == 4:
            axes = (0, 2, 3, 1) if processor.get("src_layout") == "NHWC" else (0, 3, 1, 2)
            shape = tuple(shape[axis] for axis in axes)
        inputs[name] = Value(dtype, shape)
    for name, value in outputs.items():
        processor = processor_of(settings.get("output_processors", []), name)
        order = processor.get("dst_perm") or range(len(value.shape))
        dtype = DTYPES.get(processor.get("output_dtype", ""), value.dtype)
        outputs[name] = Value(dtype, tuple(value.shape[axis] for axis in order))
    return inputs, outputs


def _value(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    # Compiled models have no 64-bit inputs.
    return Value(np.dtype(np.int32) if dtype == np.int64 else dtype, tuple(dim.dim_value for dim in tensor.shape.dim))


def processor_of(processors: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The entry of tensor *name*, or else the one for all."""
    by_name = {entry["tensor_name"]: entry for entry in processors}
    return by_name.get(name, by_name.get("DEFAULT", {}))
