"""Passes forwards and backwards through a network in torch, in parts.

What one part passes to later ones is kept, and gradients need the inside of one part at a time.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from onnx import TensorProto

from axbake.quality.network import OUTPUT, Network, Reading
from axbake.quality.operators import Value, compute

NODES = 64  # of a part

Feed = Mapping[str, np.ndarray]
Kept = dict[str, Value]  # what parts read of others, and of the network's inputs
Gradients = list[dict[str, torch.Tensor]]  # by direction: of each tensor, as far as later parts read it


@dataclass
class Inside:
    """What a pass backwards finds in one part of one sample.

    Attributes:
        read: what is rounded for a reader, by node and position, or `OUTPUT` and the output's: its value, and in each of K
            directions the derivative by it.
        linear: the same of what layers with weights give: their inputs, and the derivatives by their results.
    """

    read: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    linear: dict[int, tuple[list[Value], torch.Tensor]] = field(default_factory=dict)


class Passes:
    """Passes through *network*."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.parts = [range(at, min(at + NODES, len(network.nodes))) for at in range(0, len(network.nodes), NODES)]
        self._last = self._crossing()

    def _crossing(self) -> dict[str, int]:
        """Tensors that a part makes, or the network is given, and a later part reads; with the last part that does."""
        nodes = self.network.nodes
        made = {name: number for number, part in enumerate(self.parts) for i in part for name in nodes[i].outputs}
        return {
            name: number
            for number, part in enumerate(self.parts)
            for index in part
            for name in nodes[index].inputs
            if name and name not in self.network.constants and made.get(name, -1) < number
        }

    def forward(self, feed: Feed) -> tuple[Kept, np.ndarray]:
        """What is kept of one sample, and its outputs, flat: (E,) float32."""
        values: Kept = {name: self._value(name, feed[name]) for name in self.network.inputs}
        kept, outputs = dict(values), set(self.network.outputs)
        with torch.no_grad():
            for number, part in enumerate(self.parts):
                for index in part:
                    inputs = [self._read(name, values) for name in self.network.nodes[index].inputs]
                    values |= zip(self.network.nodes[index].outputs, self.run(index, inputs), strict=False)
                made = {name for index in part for name in self.network.nodes[index].outputs}
                kept |= {name: values[name] for name in made if name in self._last}
                values = {
                    name: one for name, one in values.items() if self._last.get(name, -1) > number or name in outputs
                }
        found = [values[name] for name in self.network.outputs]
        return kept, np.concatenate([one.numpy().ravel() for one in found if isinstance(one, torch.Tensor)])

    def pull_back(self, feed: Feed, directions: np.ndarray) -> Gradients:
        """The derivatives by the network's inputs in (K, E) *directions* of its outputs."""
        kept, _ = self.forward(feed)
        gradients: Gradients = [{} for _ in directions]
        for part in reversed(self.parts):
            self.backward(part, kept, gradients, directions)
        return gradients

    def backward(
        self,
        part: range,
        kept: Kept,
        gradients: Gradients,
        directions: np.ndarray,
        watched: Mapping[int, Sequence[Reading]] | None = None,
        weighted: Collection[int] = (),
    ) -> Inside:
        """Take one sample's *gradients* through *part*: from what later parts read of it to what it reads.

        Args:
            kept: as `forward` gives it.
            directions: (K, E) of the outputs.
            watched: what nodes, or `OUTPUT`, read that the derivatives are wanted by.
            weighted: nodes with weights whose results they are wanted by.
        """
        values: Kept = {}
        leaves: dict[str, torch.Tensor] = {}
        read: dict[tuple[int, int], torch.Tensor] = {}
        linear: dict[int, tuple[list[Value], torch.Tensor]] = {}
        watched = watched or {}
        for index in part:
            node = self.network.nodes[index]
            inputs = [self._leaf(name, values, leaves, kept) for name in node.inputs]
            for reading in watched.get(index, ()):
                inputs[reading.position] = read[index, reading.position] = _alias(inputs[reading.position])
            outputs = self.run(index, inputs)
            values |= zip(node.outputs, outputs, strict=False)
            if index in weighted and isinstance(outputs[0], torch.Tensor) and outputs[0].requires_grad:
                linear[index] = [one.detach() if isinstance(one, torch.Tensor) else one for one in inputs], outputs[0]
        made = {name for index in part for name in self.network.nodes[index].outputs}
        for reading in watched.get(OUTPUT, ()):
            if reading.tensor in made:
                read[OUTPUT, reading.position] = _alias(values[reading.tensor])
                values[reading.tensor] = read[OUTPUT, reading.position]
        targets = {
            name: one
            for name in made
            if (name in self._last or name in self.network.outputs)
            and isinstance(one := values[name], torch.Tensor)
            and one.requires_grad
        }
        wanted = [*leaves.values(), *read.values(), *(output for _, output in linear.values())]
        derivatives: list[list[torch.Tensor]] = [[] for _ in wanted[len(leaves) :]]
        for number, of_direction in enumerate(gradients):
            into = {name: self._into(name, one, of_direction, directions[number]) for name, one in targets.items()}
            known = {name: one for name, one in into.items() if one is not None}
            found: Sequence[torch.Tensor | None] = [None] * len(wanted)
            if known:
                found = torch.autograd.grad(
                    [targets[name] for name in known],
                    wanted,
                    list(known.values()),
                    retain_graph=number < len(gradients) - 1,
                    allow_unused=True,
                )
            for name in targets:
                of_direction.pop(name, None)
            for name, one in zip(leaves, found[: len(leaves)], strict=True):
                if one is not None:
                    of_direction[name] = of_direction[name] + one if name in of_direction else one
            for list_of, one, value in zip(derivatives, found[len(leaves) :], wanted[len(leaves) :], strict=True):
                list_of.append(torch.zeros(value.numel()) if one is None else one.reshape(-1))
        stacked = [torch.stack(one) for one in derivatives]
        return Inside(
            {place: (one.detach(), by) for (place, one), by in zip(read.items(), stacked[: len(read)], strict=True)},
            {index: (given, by) for (index, (given, _)), by in zip(linear.items(), stacked[len(read) :], strict=True)},
        )

    def run(self, index: int, inputs: Sequence[Value]) -> list[Value]:
        """Outputs of node *index*."""
        node = self.network.nodes[index]
        return compute(node.proto, inputs, self.network.graphs[node.graph].types, self.network.opsets[node.graph])

    def _value(self, name: str, array: np.ndarray) -> Value:
        return torch.from_numpy(np.array(array)) if self.network.types[name] == TensorProto.FLOAT else array

    def _read(self, name: str, values: Kept) -> Value:
        if not name:
            return None
        if name not in self.network.constants:
            return values[name]
        array = self.network.constants[name]
        return tensor_of(array) if self.network.types[name] == TensorProto.FLOAT else array

    def _leaf(self, name: str, values: Kept, leaves: dict[str, torch.Tensor], kept: Kept) -> Value:
        """What a node reads: of a tensor from outside the part a leaf, by which there is a derivative."""
        if name and name not in self.network.constants and name not in values:
            value = kept[name]
            if isinstance(value, torch.Tensor):
                value = leaves[name] = value.detach().requires_grad_()
            values[name] = value
        return self._read(name, values)

    def _into(
        self, name: str, value: torch.Tensor, gradients: Mapping[str, torch.Tensor], direction: np.ndarray
    ) -> torch.Tensor | None:
        """The derivative by *value*: what later parts found, and where it is an output its part of the direction."""
        if name not in self.network.outputs:
            return gradients.get(name)
        sizes = [self.network.sizes[one] for one in self.network.outputs]
        place = self.network.outputs.index(name)
        start = sum(sizes[:place])
        own = torch.from_numpy(direction[start : start + sizes[place]].astype(np.float32)).reshape(value.shape)
        return own + gradients[name] if name in gradients else own


def _alias(value: Value) -> torch.Tensor:
    """*value* as one reader has it, with a derivative of its own."""
    assert isinstance(value, torch.Tensor)
    return value.view_as(value) if value.requires_grad else value.detach().clone().requires_grad_()


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """*array* as a tensor of the same memory, which is only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # maps of files are not writable, and nothing writes
        return torch.from_numpy(np.asarray(array))
