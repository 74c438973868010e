"""A component's graphs as one row of nodes: which of them are one layer, and where the emulator rounds what they read.

The emulator's rules are those of `axbake.emulator.quantize`; a layer is what it gives one data type: a node, or a MatMul and the
bias behind it, or a node and the Relu or Clip that is computed with it. Nodes that only move values round nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto

from axbake.emulator.encoding import is_extreme
from axbake.emulator.graph import Graph, load_graph, opset, shapes
from axbake.emulator.roles import (
    ACTIVATIONS,
    FUSES_ACTIVATION,
    PARAMETERS,
    Linear,
    attribute,
    consumers,
    group_norm_affines,
    linear,
    only_moves,
)

Span = tuple[float, float]  # smallest and largest value
OUTPUT = -1  # the reader of what leaves the network


@dataclass(frozen=True)
class Node:
    """A node of one of the graphs; its tensors have names that no other graph's have."""

    graph: int
    proto: NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    use: Linear | None  # of weights
    moves: bool  # whether it only moves values

    @property
    def name(self) -> str:
        """What Pulsar2 calls the layer: the node's name in the graph."""
        return self.proto.name


@dataclass(frozen=True)
class Reading:
    """A float tensor, or constant, that a node reads and that is rounded for it."""

    node: int  # or OUTPUT
    position: int
    tensor: str  # as the node reads it
    root: str  # whose values it has, moved or not


@dataclass
class Network:
    """A chain of graphs.

    Attributes:
        nodes: of all graphs, in the order in which they run.
        constants: by the names that nodes have for them.
        types: element type of every tensor and constant.
        sizes: elements of each tensor and constant.
        inputs: that no graph makes.
        outputs: of the last graph.
    """

    paths: tuple[Path, ...]
    graphs: tuple[Graph, ...]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> "Network":
        """The chain of the graphs in *paths*, in order."""
        network = cls(tuple(paths), tuple(load_graph(path) for path in paths))
        for number, graph in enumerate(network.graphs):
            network._add(number, graph)
        return network

    def _add(self, number: int, graph: Graph) -> None:
        known = shapes(graph)
        named = {name: self.name_in(number, name) for name in [*graph.types, *graph.constants, *known]}
        self.constants |= {named[name]: values for name, values in graph.constants.items()}
        self.types |= {named[name]: kind for name, kind in graph.types.items()}
        self.shapes |= {named[name]: shape for name, shape in known.items()}
        self.shapes |= {named[name]: values.shape for name, values in graph.constants.items()}
        self.sizes |= {named[name]: int(np.prod(shape, dtype=np.int64)) for name, shape in known.items()}
        self.sizes |= {named[name]: int(values.size) for name, values in graph.constants.items()}
        for node in graph.nodes:
            self.nodes.append(
                Node(
                    graph=number,
                    proto=node,
                    inputs=tuple(named[name] if name else "" for name in node.input),
                    outputs=tuple(named[name] if name else "" for name in node.output),
                    use=linear(node, graph.constants),
                    moves=only_moves(node, graph.constants),
                )
            )

    def name_in(self, number: int, name: str) -> str:
        """What tensor *name* of graph *number* is called here, and by `axbake.calibration.observation.observe_chain`."""
        if len(self.graphs) == 1:
            return name
        graph = self.graphs[number]
        outer = {spec.name for spec in [*graph.inputs, *graph.outputs]}
        return name if name in outer else f"{self.paths[number].stem}/{name}"

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of what no graph makes."""
        made = {name for node in self.nodes for name in node.outputs}
        every = dict.fromkeys(spec.name for graph in self.graphs for spec in graph.inputs)
        return tuple(name for name in every if name not in made)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the last graph's outputs that are floats."""
        return tuple(spec.name for spec in self.graphs[-1].outputs if self.types[spec.name] == TensorProto.FLOAT)

    @cached_property
    def makers(self) -> dict[str, int]:
        """The node that makes each tensor."""
        return {name: index for index, node in enumerate(self.nodes) for name in node.outputs if name}

    @cached_property
    def roots(self) -> dict[str, str]:
        """Of each tensor that only has another's values: that one."""
        found: dict[str, str] = {}
        for node in self.nodes:
            if node.moves and node.inputs[0] not in self.constants:
                found |= {name: found.get(node.inputs[0], node.inputs[0]) for name in node.outputs}
        return found

    def root(self, name: str) -> str:
        """The tensor whose values *name* has."""
        return self.roots.get(name, name)

    @cached_property
    def opsets(self) -> tuple[int, ...]:
        """Version of the standard operators in each graph."""
        return tuple(opset(graph) for graph in self.graphs)

    @cached_property
    def biases(self) -> dict[int, int]:
        """Each Add that adds a constant to the channels of a MatMul which nothing else reads -> that MatMul."""
        found = {}
        for index, node in enumerate(self.nodes):
            if node.proto.op_type != "MatMul" or not node.use or not node.use.channels_last:
                continue
            follower = self._only_reader(index)
            if follower is None or self.nodes[follower].proto.op_type != "Add":
                continue
            channels = self.constants[node.inputs[node.use.weight]].shape[node.use.axis]
            names = [name for name in self.nodes[follower].inputs if name in self.constants]
            if names and names[0] not in self._affines:
                values = self.constants[names[0]]
                if values.shape[-1:] == (channels,) and values.size == channels:
                    found[follower] = index
        return found

    def bias_of(self, index: int) -> np.ndarray | None:
        """The constant that the linear node *index*, or the Add behind it, adds to its channels."""
        node = self.nodes[index]
        if node.use and node.use.bias is not None and len(node.inputs) > node.use.bias:
            return self.constants.get(node.inputs[node.use.bias])
        behind = next((add for add, owner in self.biases.items() if owner == index), None)
        if behind is None:
            return None
        return next(self.constants[name] for name in self.nodes[behind].inputs if name in self.constants)

    @cached_property
    def layers(self) -> list[list[int]]:
        """Nodes by layer, in the order in which they run; nodes that only move values are in none."""
        of: dict[int, list[int]] = {}
        layers: list[list[int]] = []
        for index, node in enumerate(self.nodes):
            if node.moves:
                continue
            before = self.biases.get(index, self._fused_before(index))
            if before is not None and before in of:
                of[index] = of[before]
                of[before].append(index)
            else:
                of[index] = [index]
                layers.append(of[index])
        return layers

    @cached_property
    def layer_of(self) -> dict[int, int]:
        """The layer of each node that is in one."""
        return {node: number for number, layer in enumerate(self.layers) for node in layer}

    def _fused_before(self, index: int) -> int | None:
        """The node with which a Relu or Clip is computed."""
        node = self.nodes[index]
        if node.proto.op_type not in ACTIVATIONS or node.inputs[0] not in self.makers:
            return None
        before = self.makers[node.inputs[0]]
        fuses = self.nodes[before].proto.op_type in FUSES_ACTIVATION and self._only_reader(before) == index
        return before if fuses else None

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Nodes that read each tensor; `OUTPUT` where a graph gives it to the next, or to the outside."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.inputs:
                found.setdefault(name, []).append(index)
        for graph in self.graphs:
            for spec in graph.outputs:
                found.setdefault(spec.name, []).append(OUTPUT)
        return found

    def _only_reader(self, index: int) -> int | None:
        readers = self.readers.get(self.nodes[index].outputs[0], [])
        return readers[0] if len(readers) == 1 and readers[0] >= 0 else None

    @cached_property
    def _affines(self) -> set[str]:
        return {
            self.name_in(number, name)
            for number, graph in enumerate(self.graphs)
            for name in group_norm_affines(graph, consumers(graph))
        }

    def readings(self, spans: Mapping[str, Span]) -> Iterator[Reading]:
        """Where a value is rounded for who reads it.

        Args:
            spans: range of each float activation; what reaches a mask's extreme values stays float.
        """
        for index, node in enumerate(self.nodes):
            if not node.moves:
                yield from (
                    Reading(index, position, name, self.root(name))
                    for position, name in enumerate(node.inputs)
                    if self._is_rounded(index, position, spans)
                )
        for position, name in enumerate(self.outputs):
            if not is_extreme(*spans[self.root(name)]):
                yield Reading(OUTPUT, position, name, self.root(name))

    def _is_rounded(self, index: int, position: int, spans: Mapping[str, Span]) -> bool:
        node, name = self.nodes[index], self.nodes[index].inputs[position]
        if not name or self.types.get(name) != TensorProto.FLOAT:
            return False
        if node.use and position in (node.use.weight, node.use.bias):
            return False
        if position in PARAMETERS.get(node.proto.op_type, ()) or name in self._affines:
            return False
        if name in self.constants:
            values = self.constants[name]
            return (
                values.size > 1
                and index not in self.biases
                and not is_extreme(float(values.min()), float(values.max()))
            )
        fused = index in self.biases or self._fused_before(index) is not None
        return not fused and not is_extreme(*spans[self.root(name)])

    def multiplications(self, index: int) -> int:
        """Of one run of node *index*: a convolution's or a matrix product's, or 0."""
        node = self.nodes[index]
        if node.proto.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            return 0
        first, second = (self.shapes[name] for name in node.inputs[:2])
        if node.proto.op_type == "Conv":
            return self.sizes[node.outputs[0]] * int(np.prod(second[1:]))
        if node.proto.op_type == "ConvTranspose":
            return self.sizes[node.inputs[0]] * int(np.prod(second[1:]))
        return self.sizes[node.outputs[0]] * first[0 if attribute(node.proto, "transA", 0) else -1]
