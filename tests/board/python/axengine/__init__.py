"""Speaks for pyaxengine on the played board: the tests' strict stand-in, given the model inside a container (tests/double).

Its session has the card that it is asked for, whatever the number is.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnx

STRICT = Path(__file__).parents[3] / "standins" / "axengine" / "__init__.py"
_spec = importlib.util.spec_from_file_location("strict_axengine", STRICT)
_strict = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_strict)
get_available_providers = _strict.get_available_providers


class InferenceSession:
    def __init__(self, path_or_bytes, sess_options=None, providers=None, provider_options=None):
        container = onnx.load(path_or_bytes)
        (blob,) = (tensor for tensor in container.graph.initializer if tensor.name == "npu_params")
        self._types = {
            tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
            for tensor in container.graph.input
        }
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(blob.raw_data)
            file.flush()
            self._inner = _strict.InferenceSession(file.name, sess_options, providers, [{"device_id": 0}])

    def get_inputs(self, shape_group=0):
        nodes = self._inner.get_inputs()
        for node in nodes:
            node.dtype = self._types[node.name]
        return nodes

    def get_outputs(self, shape_group=0):
        return self._inner.get_outputs()

    def run(self, output_names, input_feed, run_options=None, shape_group=0):
        for node in self.get_inputs():
            assert input_feed[node.name].dtype == node.dtype, node.name
        wanted = {node.name: node.dtype for node in self._inner.get_inputs()}
        feed = {name: np.asarray(array).astype(wanted[name], copy=False) for name, array in input_feed.items()}
        return self._inner.run(output_names, feed)
