"""Models in the container of Pulsar2's, with a model of the emulator inside, which tests run in place of a board."""

import base64
import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

BLOB = "npu_params"  # the initialiser that holds a real model's weights


def wrap(runnable: Path, compiled: Path) -> None:
    """Write *compiled*, a container as Pulsar2 writes it for all three cores of an AX650, around the ONNX model *runnable*."""
    graph = onnx.load(runnable).graph
    for tensor in graph.input:
        if tensor.type.tensor_type.elem_type == TensorProto.INT64:  # published text encoders take ids of 32 bits
            tensor.type.tensor_type.elem_type = TensorProto.INT32
    graph_info = {"name": "subgraph_npu_0", "dotneus": [{"neu_key": "subgraph_npu_0_b1_neu", "batch": 1}]}
    node = helper.make_node(
        "neu mode",
        [tensor.name for tensor in graph.input],
        [tensor.name for tensor in graph.output],
        neu_name="subgraph_npu_0",
        npu_graph_info=json.dumps(graph_info),
        version=1,
    )
    data = runnable.read_bytes()
    blob = helper.make_tensor(BLOB, TensorProto.UINT8, [len(data)], data, raw=True)
    container = helper.make_model(
        helper.make_graph([node], "ax-model", list(graph.input), list(graph.output), [blob]),
        producer_name="Pulsar2",
        doc_string="Pulsar2 Version:  4.2\nPulsar2 Commit: played00",
        ir_version=10,
    )
    helper.set_model_props(container, {"extra_data": base64.b64encode(b"\x22\x02\x18\x02").decode()})  # NPU3 of AX650
    compiled.unlink(missing_ok=True)  # it may be a hard link of the build cache
    compiled.write_bytes(container.SerializeToString())
