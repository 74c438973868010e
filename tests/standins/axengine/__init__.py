"""Stands for pyaxengine 0.1.3 where there is no accelerator: ONNX Runtime behind the same interface, as strict as the original.

What is strict, and what is odd, is taken from github AXERA-TECH/pyaxengine: `axengine/_session.py` (providers),
`_base_session.py` (missing inputs, unknown outputs), `_axclrt.py` and `_axe.py` (paths, shapes and types, memory order).
"""

import ctypes
import math
import os

import ml_dtypes
import numpy as np
import onnxruntime

DTYPES = {"float": "float32", "bfloat16": ml_dtypes.bfloat16}  # ONNX Runtime's name -> NumPy's, where they differ
GROUP = (
    "shape_group"  # of a model's metadata: which group of shapes its ONNX graph is; others are there and are not played
)
BFLOAT16 = 16
PROVIDERS = ["AXCLRTExecutionProvider", "AxEngineExecutionProvider"]


def get_available_providers():
    return PROVIDERS[:1]


class NodeArg:
    def __init__(self, node):
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        self.name, self.shape, self.dtype = node.name, list(node.shape), np.dtype(DTYPES.get(kind, kind))


class InferenceSession:
    def __init__(self, path_or_bytes, sess_options=None, providers=None, provider_options=None):
        if not isinstance(path_or_bytes, str):  # a Path has no `encode`
            raise AttributeError(f"{type(path_or_bytes).__name__!r} object has no attribute 'encode'")
        wanted = [providers] if isinstance(providers, str) else providers or PROVIDERS[:1]
        if not [name for name in wanted if name in get_available_providers()]:
            raise ValueError(f"Selected provider(s): {wanted} is(are) not available.")
        device = (provider_options or [{}])[0].get("device_id", 0)
        if device >= 1:
            raise RuntimeError(f"Device index {device} is out of range, total 1 device.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 1))
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the simulation runs it
        try:
            self._session = onnxruntime.InferenceSession(path_or_bytes, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise RuntimeError("axclrtEngineLoadFromFile failed.") from error
        self._group = int(self._session.get_modelmeta().custom_metadata_map.get(GROUP, 0))

    def _check(self, shape_group):
        if shape_group != self._group:
            raise ValueError(f"Invalid shape group: {shape_group}")

    def get_inputs(self, shape_group=0):
        self._check(shape_group)
        return [NodeArg(node) for node in self._session.get_inputs()]

    def get_outputs(self, shape_group=0):
        self._check(shape_group)
        return [NodeArg(node) for node in self._session.get_outputs()]

    def run(self, output_names, input_feed, run_options=None, shape_group=0):
        names = [node.name for node in self.get_outputs(shape_group)]
        missing = [node.name for node in self.get_inputs(shape_group) if node.name not in input_feed]
        if missing:
            raise ValueError(f"Required inputs ({missing}) are missing from input feed.")
        if output_names is not None and output_names != names:
            raise ValueError(f"Output names {output_names} are not those of the model.")
        feed = {}
        for node in self.get_inputs(shape_group):
            array = input_feed[node.name]
            assert node.shape == list(array.shape) and node.dtype == array.dtype, (
                f"model inputs({node.name}) expect shape {node.shape} and dtype {node.dtype}, howerver gets input with"
                f" shape {array.shape} and dtype {array.dtype}"
            )
            feed[node.name] = as_in_memory(array)
        if any(array.dtype == ml_dtypes.bfloat16 for array in feed.values()):
            values = self._session.run_with_ort_values(names, {name: as_value(array) for name, array in feed.items()})
            return [as_array(value) for value in values]
        return self._session.run(names, feed)


def as_value(array):
    if array.dtype != ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)


def as_array(value):
    if value.element_type() != BFLOAT16:
        return value.numpy()
    shape = value.shape()
    bits = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(bits, np.uint16).reshape(shape).copy().view(ml_dtypes.bfloat16)


def as_in_memory(array):
    """*array* as its bytes are in memory, from its first on, whatever its strides say."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    flat = np.lib.stride_tricks.as_strided(array, (math.prod(array.shape),), (array.itemsize,))
    return flat.reshape(array.shape).copy()
