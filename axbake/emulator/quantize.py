"""Quantises a graph: the same nodes, with QuantizeLinear and DequantizeLinear where the NPU would hold integers.

- An activation is rounded once, where it is made, to the encoding of its calibrated range (`calibration.py`). A node of
  fewer bits than the one before it rounds its input anew; one of more bits reads it as it is.
- Operators that only move values share their input's encoding; a Concat does so if all its inputs have the same one.
- Weights of Conv, ConvTranspose, MatMul and Gemm are S8, per output channel, symmetric. Their bias is S32 in units of
  data scale × weight scale, also where it is the Add behind a MatMul. Where a bias would overflow S32, its channel's
  weight scale is widened, which is recorded (`widened_channels`).
- Other float constants of more than one value are encoded as activations are, embedding tables too.
- Float remain: normalisation affines, steering parameters, scalars, tensors that hold a mask's extreme values.

All Q/DQ nodes are of the domain com.microsoft, which has 16-bit integers at every opset; the standard one from 21 on.
ONNX Runtime 1.31 runs both at the same speed, and expands the S8 weights of neither when it loads the model.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from axbake.emulator.calibration import Calibration, Span
from axbake.emulator.encoding import (
    INTEGERS,
    Encoding,
    RangeError,
    encode_range,
    is_extreme,
    quantise,
    quantise_bias,
    quantise_weight,
    weight_scales,
    widened_scales,
)
from axbake.emulator.graph import Graph
from axbake.emulator.precision import Precision
from axbake.emulator.roles import (
    ACTIVATIONS,
    FUSES_ACTIVATION,
    PARAMETERS,
    Linear,
    consumers,
    group_norm_affines,
    linear,
    only_moves,
)
from axbake.emulator.writer import ModelWriter

DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Reading:
    """How a node reads a tensor: under which name, and on which grid it lies (None: float)."""

    name: str
    encoding: Encoding | None


@dataclass
class Record:
    """What was done, for `quant/quant_axmodel.json`."""

    activations: dict[str, dict[str, Any]] = field(default_factory=dict)
    constants: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    biases: dict[str, dict[str, Any]] = field(default_factory=dict)
    float_tensors: dict[str, str] = field(default_factory=dict)  # tensor: why it was kept


class Quantiser:
    """Rewrites a graph node by node; constants go to *writer* as soon as they are integers."""

    def __init__(
        self,
        graph: Graph,
        calibration: Calibration,
        precision: tuple[Precision, ...],
        conv_bias_data_type: str,
        writer: ModelWriter,
    ):
        self.graph, self.calibration, self.precision, self.writer = graph, calibration, precision, writer
        self.bias_is_integer = conv_bias_data_type == "S32"
        self.nodes: list[NodeProto] = []
        self.record = Record()
        self._old = graph.nodes
        self._readers = consumers(graph)
        self._affines = group_norm_affines(graph, self._readers)
        self._taken = {name for node in self._old for name in (*node.input, *node.output)} | set(graph.constants)
        self._outputs = {spec.name for spec in graph.outputs}
        self._readings: dict[str, Reading] = {}  # of tensors that are made already
        self._narrowed: dict[tuple[str, str], Reading] = {}  # (tensor, data type): rounded for a reader
        self._constants: dict[tuple[str, str], Reading] = {}
        self._weights: dict[tuple[str, int, bytes], str] = {}
        self._biases: dict[int, tuple[str, str]] = {}  # node behind a MatMul: (its bias, the bias in S32)
        self._guards: dict[str, str] = {}
        self._lowest = ""
        self._fused: set[str] = set()  # results that are rounded only after the node that reads them

    def run(self) -> None:
        """Rewrite all nodes, then write the constants that stay as they are."""
        for index in range(len(self._old)):
            self._rewrite(index)
        used = {name for node in self.nodes for name in node.input} | self._outputs
        for name in sorted(used & set(self.graph.constants) - self.writer.names):
            self.writer.add(name, self.graph.constants[name])

    def rename_input(self, name: str, inner: str) -> None:
        """Let every node read *inner*, which is made of the graph's input *name*."""
        self._readings[name] = Reading(inner, None)

    def fresh(self, name: str) -> str:
        """*name*, or with a stroke more where the graph has one of that name."""
        while name in self._taken:
            name += "'"
        self._taken.add(name)
        return name

    def _rewrite(self, index: int) -> None:
        old = self._old[index]
        new = NodeProto()
        new.CopyFrom(old)
        use = linear(old, self.graph.constants)
        readings = [self._read_input(index, position, use) for position in range(len(old.input))]
        if use:
            self._read_linear(index, use, readings)
        del new.input[:], new.output[:]
        new.input.extend(reading.name for reading in readings)
        self.nodes.append(new)
        inherited = self._inherited(old, readings)
        for name in old.output:
            new.output.append(self._made(name, index, inherited))

    # Reading

    def _read_input(self, index: int, position: int, use: Linear | None) -> Reading:
        """The input at *position* of a node, unless `_read_linear` is to replace it."""
        node, data_type = self._old[index], self.precision[index].data_type
        name = node.input[position]
        if index in self._biases and self._biases[index][0] == name:
            return Reading(self._biases[index][1], None)
        if not name or self.graph.types.get(name) != TensorProto.FLOAT or (use and position in (use.weight, use.bias)):
            return self._readings.get(name, Reading(name, None))
        if position in PARAMETERS.get(node.op_type, ()):
            return self._kept(name, "steers or normalises")
        if name in self._affines:
            return self._kept(name, "affine of a GroupNormalization")
        if name in self.graph.constants:
            return self._constant(name, data_type)
        return self._activation(name, data_type)

    def _kept(self, name: str, reason: str) -> Reading:
        if name in self.graph.constants:
            self.record.float_tensors[name] = reason
        return self._readings.get(name, Reading(name, None))

    def _activation(self, name: str, data_type: str) -> Reading:
        reading = self._readings.get(name, Reading(name, None))
        if name in self._fused or data_type == "FP32" or is_extreme(*self.calibration.observed[name]):
            return reading
        if reading.encoding and INTEGERS[data_type].itemsize >= INTEGERS[reading.encoding.data_type].itemsize:
            return reading
        if (name, data_type) not in self._narrowed:
            encoding = self._encode(name, self.calibration.span(name, data_type), data_type)
            self._narrowed[name, data_type] = Reading(self._rounded(name, reading.name, encoding), encoding)
            self.record.activations.setdefault(name, asdict(encoding))
        return self._narrowed[name, data_type]

    def _constant(self, name: str, data_type: str) -> Reading:
        values = self.graph.constants[name]
        if values.size <= 1:
            return Reading(name, None)
        if data_type == "FP32":
            return self._kept(name, "layer of data type FP32")
        span = float(values.min()), float(values.max())
        if is_extreme(*span):
            return self._kept(name, "extreme values of a mask")
        if (name, data_type) not in self._constants:
            encoding = self._encode(name, span, data_type)
            self.record.constants[name] = asdict(encoding)
            stored = self.fresh(f"{name}/{data_type}")
            self.writer.add(stored, quantise(values, encoding))
            self._constants[name, data_type] = Reading(self._dequantised(name, stored, encoding), encoding)
        return self._constants[name, data_type]

    def _read_linear(self, index: int, use: Linear, readings: list[Reading]) -> None:
        """Replace weight and bias among *readings* by their integers."""
        name, data = self._old[index].input[use.weight], readings[use.data].encoding
        bias, owner = self._bias_of(index, use)
        if self.precision[index].weight_data_type == "FP32":
            self.record.float_tensors[name] = "weight_data_type FP32"
            scales, factor = np.empty(0, np.float32), 0.0
        else:
            narrow = self._scales(name, use.axis)
            factor = data.scale * use.bias_factor if data and self.bias_is_integer else 0.0
            scales = self._widened(narrow, bias, use.groups, factor) if bias and factor > 0 else narrow
            readings[use.weight] = Reading(self._weight(name, scales, narrow, use.axis), None)
        if factor == 0 and data:
            readings[use.data] = Reading(self._guarded(readings[use.data].name), data)
        if bias is None:
            return
        if factor > 0:
            stored = self._bias(bias, np.float32(factor) * np.tile(scales, use.groups))
        else:
            self.record.float_tensors[bias], stored = "bias of a layer whose bias, weights or data are float", bias
        if owner == index:
            readings[use.bias or 0] = Reading(stored, None)
        else:
            self._biases[owner] = (bias, stored)
            self._fused.add(self._old[index].output[0])

    def _scales(self, name: str, axis: int) -> np.ndarray:
        try:
            return weight_scales(self.graph.constants[name], axis)
        except RangeError as error:
            raise RangeError(f"{name}: {error}") from error

    def _widened(self, scales: np.ndarray, bias: str, groups: int, factor: float) -> np.ndarray:
        shares = np.abs(self.graph.constants[bias].reshape(groups, scales.size))
        return widened_scales(scales, shares.max(axis=0), factor)

    def _bias_of(self, index: int, use: Linear) -> tuple[str | None, int]:
        """The constant with one value a channel that node *index* or the Add behind it adds; and which."""
        node = self._old[index]
        channels = self.graph.constants[node.input[use.weight]].shape[use.axis] * use.groups
        if use.bias is not None and len(node.input) > use.bias:
            own = self.graph.constants.get(node.input[use.bias])
            fits = own is not None and own.dtype == np.float32 and own.size == channels == own.shape[-1]
            return (node.input[use.bias] if fits else None), index
        if node.op_type == "MatMul" and use.channels_last:
            return self._bias_behind(index, channels)
        return None, index

    def _bias_behind(self, index: int, channels: int) -> tuple[str | None, int]:
        """The constant that the only reader of a MatMul adds to its channels, and that reader."""
        follower = self._only_reader(index)
        if follower is None or self._old[follower].op_type != "Add":
            return None, index
        names = [name for name in self._old[follower].input if name in self.graph.constants]
        if not names or self.graph.constants[names[0]].shape[-1:] != (channels,) or names[0] in self._affines:
            return None, index
        return (names[0], follower) if self.graph.constants[names[0]].size == channels else (None, index)

    def _only_reader(self, index: int) -> int | None:
        """The one node that reads the result of node *index*, in the type of both, if there is only that one."""
        readers = self._readers.get(self._old[index].output[0], [])
        if len(readers) != 1 or readers[0] < 0:
            return None
        own = self.precision[index]
        same = own.data_type == own.output_data_type == self.precision[readers[0]].data_type
        return readers[0] if same else None

    # Making

    def _inherited(self, node: NodeProto, readings: list[Reading]) -> Encoding | None:
        """The encoding that the node's outputs have without being rounded."""
        if only_moves(node, self.graph.constants):
            return readings[0].encoding
        if node.op_type == "Concat" and len({reading.encoding for reading in readings}) == 1:
            return readings[0].encoding
        return None

    def _made(self, name: str, index: int, inherited: Encoding | None) -> str:
        """Round tensor *name* behind node *index*, which makes it; gives the name under which the node makes it."""
        self._readings[name] = Reading(name, inherited)
        if not name or self.graph.types[name] != TensorProto.FLOAT or inherited or name not in self._readers:
            return name
        data_type = self.precision[index].output_data_type
        if only_moves(self._old[index], self.graph.constants) or data_type == "FP32":
            self.record.float_tensors[name] = "float, as its layer's data type or input is"
            return name
        if self._fuses(name, index):
            self._fused.add(name)
        if name in self._fused:
            return name
        if is_extreme(*self.calibration.observed[name]):
            self.record.float_tensors[name] = "extreme values of a mask"
            return name
        encoding = self._encode(name, self.calibration.span(name, data_type), data_type)
        self.record.activations[name] = asdict(encoding)
        source = self.fresh(f"{name}/float") if name in self._outputs else name
        target = name if name in self._outputs else None
        self._readings[name] = Reading(self._rounded(name, source, encoding, target), encoding)
        return source

    def _fuses(self, name: str, index: int) -> bool:
        follower = self._only_reader(index)
        return (
            follower is not None
            and self._old[index].op_type in FUSES_ACTIVATION
            and self._old[follower].op_type in ACTIVATIONS
            and self._old[follower].input[0] == name
        )

    def _encode(self, name: str, span: Span, data_type: str) -> Encoding:
        try:
            return encode_range(*span, data_type)
        except RangeError as error:
            raise RangeError(f"{name}: {error}") from error

    # Nodes and initializers

    def _rounded(self, name: str, source: str, encoding: Encoding, target: str | None = None) -> str:
        """Quantise and dequantise *source*; the result is called *target*, or after tensor *name*."""
        scale, zero = self._parameters(name, encoding)
        integers = self.fresh(f"{name}/{encoding.data_type}")
        self.nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [integers], domain=DOMAIN))
        return self._dequantise(name, integers, scale, zero, target)

    def _dequantised(self, name: str, stored: str, encoding: Encoding) -> str:
        return self._dequantise(name, stored, *self._parameters(name, encoding))

    def _dequantise(
        self, name: str, stored: str, scale: str, zero: str, target: str | None = None, axis: int = 1
    ) -> str:
        target = target or self.fresh(f"{name}/dequantized")
        self.nodes.append(
            helper.make_node("DequantizeLinear", [stored, scale, zero], [target], domain=DOMAIN, axis=axis)
        )
        return target

    def _guarded(self, name: str) -> str:
        """*name* behind a Max with the lowest number, which changes nothing.

        Where a Conv or Gemm reads a DequantizeLinear directly, ONNX Runtime 1.31 makes its float weights 8-bit and its
        float bias 32-bit by itself (`WeightBiasQuantization`, at its lowest level of optimisation).
        """
        if name not in self._guards:
            if not self._guards:
                self._lowest = self.fresh("lowest")
                self.writer.add(self._lowest, np.array(np.finfo(np.float32).min))
            self._guards[name] = self.fresh(f"{name}/guarded")
            self.nodes.append(helper.make_node("Max", [name, self._lowest], [self._guards[name]]))
        return self._guards[name]

    def _parameters(self, name: str, encoding: Encoding) -> tuple[str, str]:
        scale, zero = self.fresh(f"{name}/scale"), self.fresh(f"{name}/zero_point")
        self.writer.add(scale, np.array(encoding.scale, np.float32))
        self.writer.add(zero, np.array(encoding.zero_point, INTEGERS[encoding.data_type]))
        return scale, zero

    def _weight(self, name: str, scales: np.ndarray, narrow: np.ndarray, axis: int) -> str:
        """Weight *name* in S8 with *scales*; *narrow* are the ones that it would have without its bias."""
        key = (name, axis, scales.tobytes())
        if key not in self._weights:
            self._weights[key] = self._per_channel(
                name, "S8", quantise_weight(self.graph.constants[name], scales, axis), scales, axis
            )
            self.record.weights[name] = {
                "data_type": "S8",
                "axis": axis,
                "channels": int(scales.size),
                "scale_min": float(scales.min()),
                "scale_max": float(scales.max()),
                "widened_channels": int((scales > narrow).sum()),
            }
        return self._weights[key]

    def _bias(self, name: str, scales: np.ndarray) -> str:
        values = self.graph.constants[name]
        self.record.biases[name] = {"data_type": "S32", "channels": int(scales.size)}
        integers = quantise_bias(values.reshape(-1), scales).reshape(values.shape)
        return self._per_channel(name, "S32", integers, scales, values.ndim - 1)

    def _per_channel(self, name: str, kind: str, integers: np.ndarray, scales: np.ndarray, axis: int) -> str:
        stored, scale = self.fresh(f"{name}/{kind}"), self.fresh(f"{name}/scales")
        zero = self.fresh(f"{name}/zero_points")
        self.writer.add(stored, integers)
        self.writer.add(scale, scales)
        self.writer.add(zero, np.zeros(scales.shape, integers.dtype))
        return self._dequantise(name, stored, scale, zero, axis=axis)
