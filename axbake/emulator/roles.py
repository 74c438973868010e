"""What an input of a node is to quantisation: which operators only move values, where weights and biases are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from axbake.emulator.graph import Graph

# Their output holds values of their first input and none else, so it shares its encoding and nothing is rounded anew.
MOVERS = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Slice", "Split", "Gather"),
    *("GatherElements", "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool", "GlobalMaxPool"),
    *("ReduceMax", "ReduceMin"),
}

# Float inputs that steer a node rather than pass through it; normalisation affines stay FP32, as documented.
PARAMETERS = {
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "BatchNormalization": (1, 2, 3, 4),
    "RMSNormalization": (1,),
    "Resize": (1, 2),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "OneHot": (1, 2),
}

# A Relu or Clip right behind one of these is computed together with it, before its result is rounded.
ACTIVATIONS = {"Relu", "Clip"}
FUSES_ACTIVATION = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization"}


@dataclass(frozen=True)
class Linear:
    """Where the weights of a Conv, ConvTranspose, Gemm or MatMul are."""

    weight: int  # index of the constant input
    data: int  # index of the other operand
    axis: int  # of the weight: its output channels
    channels_last: bool  # whether the output's last axis is those channels (of a Conv: its second, where the bias goes)
    groups: int = 1
    bias_factor: float = 1.0  # bias scale = this × data scale × weight scale; 0: no S32 bias
    bias: int | None = None  # index of the bias, where the operator has one


def attribute(node: NodeProto, name: str, resting: object) -> object:
    """Value of the attribute *name* of *node*."""
    values = [helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name]
    return values[0] if values else resting


def linear(node: NodeProto, constants: Mapping[str, np.ndarray]) -> Linear | None:
    """How *node* uses a constant float matrix or kernel as its weights; None if it does not."""

    def holds_weights(index: int) -> bool:
        value = constants.get(node.input[index])
        return value is not None and value.dtype == np.float32 and value.ndim > 1

    match node.op_type:
        case "Conv" if holds_weights(1):
            return Linear(1, 0, axis=0, channels_last=False, bias=2)
        case "ConvTranspose" if holds_weights(1):
            return Linear(1, 0, axis=1, channels_last=False, bias=2, groups=int(str(attribute(node, "group", 1))))
        case "MatMul" if holds_weights(1):
            return Linear(1, 0, axis=constants[node.input[1]].ndim - 1, channels_last=True)
        case "MatMul" if holds_weights(0):
            return Linear(0, 1, axis=constants[node.input[0]].ndim - 2, channels_last=False)
        case "Gemm" if holds_weights(1):
            alpha, beta = float(str(attribute(node, "alpha", 1.0))), float(str(attribute(node, "beta", 1.0)))
            axis = 0 if attribute(node, "transB", 0) else 1
            return Linear(1, 0, axis, channels_last=True, bias=2, bias_factor=alpha / beta if beta else 0.0)
        case "Gemm" if holds_weights(0):
            return Linear(0, 1, axis=1 if attribute(node, "transA", 0) else 0, channels_last=False, bias_factor=0.0)
    return None


def only_moves(node: NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether each float value that *node* gives is one of its first input's, or 0."""
    if node.op_type == "Pad":
        value = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        return attribute(node, "mode", b"constant") != b"constant" or (value is not None and not value.any())
    if node.op_type == "Resize":
        return attribute(node, "mode", b"nearest") == b"nearest"
    return node.op_type in MOVERS


def consumers(graph: Graph) -> dict[str, list[int]]:
    """Indices of the nodes that read each tensor; a graph's output counts as read by node -1 too."""
    found: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.input:
            found.setdefault(name, []).append(index)
    for spec in graph.outputs:
        found.setdefault(spec.name, []).append(-1)
    return found


def group_norm_affines(graph: Graph, readers: Mapping[str, list[int]]) -> set[str]:
    """Constants of the Mul and Add that apply a GroupNormalization's affine.

    Exporters write GroupNormalization as Reshape, InstanceNormalization, Reshape, Mul, Add.
    """
    nodes, found = graph.nodes, set()
    for node in nodes:
        if node.op_type != "InstanceNormalization":
            continue
        tensor, waiting = node.output[0], ["Mul", "Add"]
        while len(readers.get(tensor, [])) == 1 and readers[tensor][0] >= 0:
            follower = nodes[readers[tensor][0]]
            if waiting and follower.op_type == waiting[0]:
                found |= {name for name in follower.input if name in graph.constants}
                waiting.pop(0)
            elif follower.op_type not in MOVERS or not waiting:
                break
            tensor = follower.output[0]
    return found
