"""The container of a compiled model: an ONNX file of one proprietary node and its blobs, as real ones are.

Pulsar2 7.0's models in the published package `silero-vad-axera` (MIT) were the pattern.
"""

import base64
import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

DOUBLE = "made by a test double of pulsar2; no board can run it"
MODES = {"NPU1": 0, "NPU2": 1, "NPU3": 2}
HARDWARE = {"AX650": 0, "AX620E": 1}
NODE, GRAPH = "subgraph_npu_0", "subgraph_npu_0_b1_neu"


def _varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head, number = head + bytes([number & 127 | 128]), number >> 7
    return head + bytes([number])


def _field(number: int, value: int | bytes) -> bytes:
    """A protobuf field; 0 is left out, as proto3 does."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value) if value else b""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def extra_data(names: list[str], hardware: str, mode: str) -> str:
    """What a model was built for, as its metadata have it."""
    tensors = b"".join(_field(1, _field(1, name.encode()) + _field(2, 2)) for name in names)
    params = _field(3, _field(1, b"params") + _field(3, b"npu_params"))
    dotneu = _field(10, _field(1, GRAPH.encode()) + _field(2, 1) + params)
    graph = _field(3, _field(1, NODE.encode()) + dotneu)
    chip = _field(4, _field(3, MODES[mode])) + _field(5, HARDWARE[hardware])
    return base64.b64encode(tensors + _field(2, b"1") + graph + chip).decode()


def wrap(runnable: Path, compiled: Path, *, version: str, commit: str, hardware: str, mode: str) -> None:
    """Write *compiled*, a container with the model *runnable* in it."""
    inner = onnx.load(runnable)
    inputs, outputs = list(inner.graph.input), list(inner.graph.output)
    names = {"inputs": [value.name for value in inputs], "outputs": [value.name for value in outputs]}
    dotneu = {"neu_key": GRAPH, "batch": 1, "extra_inputs": [{"name": "params", "const_data_key": "npu_params"}]}
    shapes = {out.name: ["FP32", [dim.dim_value for dim in out.type.tensor_type.shape.dim]] for out in outputs}
    node = helper.make_node(
        "neu mode",
        names["inputs"],
        names["outputs"],
        name=NODE,
        neu_name=NODE,
        npu_graph_info=json.dumps({"name": NODE, "dotneus": [dotneu]}),
        outputs_info=json.dumps(shapes),
        version=1,
    )
    blobs = {"npu_params": runnable.read_bytes(), "npu_dyn_params": b"", GRAPH: b"\x1c\x00\x00\x00" + bytes(60)}
    constants = [
        helper.make_tensor(name, TensorProto.UINT8, [len(blob)], blob, raw=True) for name, blob in blobs.items()
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.UINT8, [len(blob)]) for name, blob in blobs.items()]
    # The order of the graph's inputs is not the node's in real models either.
    graph = helper.make_graph(
        [node], "ax-model", inputs[::-1], outputs, constants, value_info=[*infos, *inputs, *outputs]
    )
    model = helper.make_model(
        graph,
        producer_name="Pulsar2",
        doc_string=f"Pulsar2 Version:  {version}\nPulsar2 Commit: {commit}",
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 18)],
    )
    helper.set_model_props(
        model, {"extra_data": extra_data([*names["inputs"], *names["outputs"]], hardware, mode), "double": DOUBLE}
    )
    compiled.write_bytes(model.SerializeToString())


def unwrap(compiled: Path, runnable: Path) -> None:
    """Write the model in *compiled* to *runnable*."""
    blobs = {tensor.name: tensor.raw_data for tensor in onnx.load(compiled).graph.initializer}
    runnable.write_bytes(blobs["npu_params"])
