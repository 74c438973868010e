"""ONNX operators in torch, so that a graph has gradients: those that exported networks hold.

Only what the fixed-shape graphs of `axbake.graphs.export` use: shapes, axes and indices are constants. What gives integers or
truth values has no gradient and is computed by ONNX's own reference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from axbake.errors import AxbakeError

Value = torch.Tensor | np.ndarray | None  # a float tensor; integers and truth values; an input that is left out
Attributes = dict[str, Any]


class NoGradient(AxbakeError):
    """A graph has an operator that cannot be differentiated here."""


def compute(node: NodeProto, inputs: Sequence[Value], types: Mapping[str, int], opset: int) -> list[Value]:
    """The outputs of *node*: float ones as tensors that know their gradient, others as arrays.

    Args:
        types: element types of the graph's tensors.

    Raises:
        NoGradient: the operator has float outputs, and is not one of `OPERATORS`.
    """
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if all(types.get(name) != TensorProto.FLOAT for name in node.output if name):
        return list(_by_reference(node, inputs, opset))
    if node.op_type not in OPERATORS:
        raise NoGradient(
            f"{node.name or node.output[0]}: operator {node.op_type} has no gradient in axbake, so what layers cost cannot be"
            f" measured; known: {', '.join(sorted(OPERATORS))}. Set a precision of its own instead of a recipe."
        )
    found = OPERATORS[node.op_type](attributes, *inputs)
    return list(found) if isinstance(found, tuple | list) else [found]


def _by_reference(node: NodeProto, inputs: Sequence[Value], opset: int) -> tuple[np.ndarray, ...]:
    given = {name: one for name, one in zip(node.input, inputs, strict=True) if one is not None}
    values = {n: one.detach().numpy() if isinstance(one, torch.Tensor) else one for n, one in given.items()}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape)
            for name in values
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return tuple(ReferenceEvaluator(model).run(None, values))


def _ints(value: Value) -> list[int]:
    return [int(one) for one in np.asarray(value).reshape(-1)]


def _reshape(attributes: Attributes, x: torch.Tensor, shape: np.ndarray) -> torch.Tensor:
    keeps = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and keeps else size for i, size in enumerate(_ints(shape))])


def _squeeze(attributes: Attributes, x: torch.Tensor, axes: Value = None) -> torch.Tensor:
    which = _ints(axes) if axes is not None else attributes.get("axes")
    return x.squeeze() if which is None else x.squeeze(tuple(which))


def _unsqueeze(attributes: Attributes, x: torch.Tensor, axes: Value = None) -> torch.Tensor:
    which = _ints(axes) if axes is not None else list(attributes["axes"])
    rank = x.ndim + len(which)
    for axis in sorted(one % rank for one in which):
        x = x.unsqueeze(axis)
    return x


def _split(attributes: Attributes, x: torch.Tensor, sizes: Value = None) -> tuple[torch.Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None or "split" in attributes:
        return torch.split(x, _ints(sizes) if sizes is not None else list(attributes["split"]), axis)
    count = attributes["num_outputs"]
    return torch.split(x, -(-x.shape[axis] // count), axis)


def _slice(
    _: Attributes, x: torch.Tensor, starts: Value, ends: Value, axes: Value = None, steps: Value = None
) -> torch.Tensor:
    which = _ints(axes) if axes is not None else list(range(len(_ints(starts))))
    strides = _ints(steps) if steps is not None else [1] * len(which)
    for axis, start, end, stride in zip(which, _ints(starts), _ints(ends), strides, strict=True):
        taken = range(*slice(start, end, stride).indices(x.shape[axis]))
        x = (
            x.narrow(axis, taken.start, len(taken))
            if stride == 1
            else x.index_select(axis, torch.tensor(list(taken), dtype=torch.long))
        )
    return x


def _gather(attributes: Attributes, x: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    index = torch.as_tensor(np.array(places, np.int64))
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _pads(attributes: Attributes, rank: int) -> list[int]:
    """ONNX's pads of the spatial axes, for torch's `pad`."""
    pads = list(attributes.get("pads", [0] * 2 * rank))
    return [pads[place] for axis in reversed(range(rank)) for place in (axis, axis + rank)]


def _pad(
    attributes: Attributes, x: torch.Tensor, pads: Value = None, value: Value = None, axes: Value = None
) -> torch.Tensor:
    mode = attributes.get("mode", b"constant").decode()
    given = _ints(pads) if pads is not None else list(attributes["pads"])
    which = [axis % x.ndim for axis in _ints(axes)] if axes is not None else list(range(x.ndim))
    around = {axis: (given[i], given[i + len(which)]) for i, axis in enumerate(which)}
    flat = [side for axis in reversed(range(x.ndim)) for side in around.get(axis, (0, 0))]
    if mode == "constant":
        return functional.pad(x, flat, value=0.0 if value is None else float(np.asarray(value).reshape(-1)[0]))
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return functional.pad(x, flat, mode={"edge": "replicate", "reflect": "reflect"}[mode])


def _conv(
    attributes: Attributes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    rank = x.ndim - 2
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    padded = functional.pad(x, _pads(attributes, rank)) if any(attributes.get("pads", ())) else x
    return function(
        padded,
        weight,
        bias,
        stride=tuple(attributes.get("strides", [1] * rank)),
        dilation=tuple(attributes.get("dilations", [1] * rank)),
        groups=attributes.get("group", 1),
    )


def _conv_transpose(
    attributes: Attributes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    rank = x.ndim - 2
    function = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
    pads = list(attributes.get("pads", [0] * 2 * rank))
    result = function(
        x,
        weight,
        bias,
        stride=tuple(attributes.get("strides", [1] * rank)),
        output_padding=tuple(attributes.get("output_padding", [0] * rank)),
        groups=attributes.get("group", 1),
        dilation=tuple(attributes.get("dilations", [1] * rank)),
    )
    for axis in range(rank):
        result = result.narrow(axis + 2, pads[axis], result.shape[axis + 2] - pads[axis] - pads[axis + rank])
    return result


def _gemm(attributes: Attributes, a: torch.Tensor, b: torch.Tensor, c: Value = None) -> torch.Tensor:
    left = a.T if attributes.get("transA", 0) else a
    right = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _layer_norm(
    attributes: Attributes, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))


def _rms_norm(attributes: Attributes, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    return functional.rms_norm(x, x.shape[axis:], scale, attributes.get("epsilon", 1e-5))


def _reduce(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reduced(attributes: Attributes, x: torch.Tensor, axes: Value = None) -> torch.Tensor:
        which = _ints(axes) if axes is not None else list(attributes.get("axes", range(x.ndim)))
        return function(x, dim=which, keepdim=bool(attributes.get("keepdims", 1)))

    return reduced


def _resize(
    attributes: Attributes, x: torch.Tensor, roi: Value = None, scales: Value = None, sizes: Value = None
) -> torch.Tensor:
    mode = attributes.get("mode", b"nearest").decode()
    if sizes is not None:
        size = _ints(sizes)[2:]
    else:
        size = [int(length * scale) for length, scale in zip(x.shape[2:], np.asarray(scales)[2:], strict=True)]
    if mode == "nearest":
        return functional.interpolate(x, size=size, mode="nearest")
    corners = attributes.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    torch_mode = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2], "cubic": "bicubic"}[mode]
    return functional.interpolate(x, size=size, mode=torch_mode, align_corners=corners)


def _clip(_: Attributes, x: torch.Tensor, low: Value = None, high: Value = None) -> torch.Tensor:
    return x.clamp(*(None if bound is None else float(np.asarray(bound)) for bound in (low, high)))


def _pooled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def pool(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
        return function(
            functional.pad(x, _pads(attributes, 2)), list(attributes["kernel_shape"]), list(attributes["strides"])
        )

    return pool


def _depth_to_space(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    block, (n, c, h, w) = attributes["blocksize"], x.shape
    if attributes.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _softmax(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return functional.softmax(x, attributes.get("axis", -1))


def _extreme(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def extreme(_: Attributes, first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            first = function(first, other)
        return first

    return extreme


def _cast(_: Attributes, x: Value) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.as_tensor(np.asarray(x, np.float32))


def _expand(_: Attributes, x: torch.Tensor, shape: Value) -> torch.Tensor:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


def _one(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda attributes, x: function(x)


def _where(_: Attributes, condition: Value, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.as_tensor(np.array(condition)), x, y)


#: ONNX operator -> a function of its attributes and inputs that gives its output, or all of them
OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _one(torch.abs),
    "Add": lambda _, a, b: a + b,
    "AveragePool": _pooled(functional.avg_pool2d),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _one(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": lambda _, a, b: a / b,
    "Elu": lambda attributes, x: functional.elu(x, attributes.get("alpha", 1.0)),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Expand": _expand,
    "Flatten": lambda attributes, x: x.reshape(int(np.prod(x.shape[: attributes.get("axis", 1)])), -1),
    "Gather": _gather,
    "Gelu": lambda attributes, x: functional.gelu(x, approximate=attributes.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GroupNormalization": lambda attributes, x, scale, bias: functional.group_norm(
        x, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5)
    ),
    "HardSwish": _one(functional.hardswish),
    "Identity": _one(lambda x: x),
    "InstanceNormalization": lambda attributes, x, scale, bias: functional.instance_norm(
        x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5)
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda attributes, x: functional.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Log": _one(torch.log),
    "MatMul": lambda _, a, b: a @ b,
    "Max": _extreme(torch.maximum),
    "MaxPool": _pooled(functional.max_pool2d),
    "Min": _extreme(torch.minimum),
    "Mul": lambda _, a, b: a * b,
    "Neg": _one(torch.neg),
    "Pad": _pad,
    "Pow": lambda _, a, b: a**b,
    "RMSNormalization": _rms_norm,
    "Reciprocal": _one(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _one(torch.sigmoid),
    "Sin": _one(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _one(functional.softplus),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Tanh": _one(torch.tanh),
    "Tile": lambda _, x, repeats: x.repeat(*_ints(repeats)),
    "Transpose": lambda attributes, x: x.permute(*attributes.get("perm", list(reversed(range(x.ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
