"""A component of several graphs: they run in order, and tensors go from one to the next by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import BundleError
from .model import Session, Tensors


class Chain(Session):
    """Graphs that run as one model.

    It takes what no graph makes, in the order of first use, and gives what its last graph gives. A tensor has one name in
    all of them; one that skips graphs waits for the last that takes it, and is then dropped.

    Attributes:
        graphs: the loaded graphs, in order; each has its own `seconds`.
    """

    def __init__(self, name: str, graphs: Sequence[Session]) -> None:
        """
        Args:
            name: of the component.

        Raises:
            BundleError: the graphs do not fit each other.
        """
        self.graphs = tuple(graphs)
        if not self.graphs:
            raise BundleError(f"{name}: a chain without graphs; wanted at least one.")
        inputs = joined(name, self.graphs)
        last = self.graphs[-1]
        self._last_use = {tensor: i for i, graph in enumerate(self.graphs) for tensor in graph.inputs}
        self._last_use.update(dict.fromkeys(last.outputs, len(self.graphs)))
        super().__init__(name, inputs, last.outputs, self._run_graphs, last.provider)

    def _run_graphs(self, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The last graph's outputs; *tensors* is used up."""
        for i, graph in enumerate(self.graphs):
            made = graph.run({name: tensors[name] for name in graph.inputs})
            for name in [name for name in tensors if self._last_use[name] <= i]:
                del tensors[name]
            tensors.update({name: array for name, array in made.items() if self._last_use.get(name, -1) > i})
            del made
        return [tensors[name] for name in self.outputs]


def joined(name: str, graphs: Sequence[Session]) -> Tensors:
    """What the chain of *graphs* takes.

    Raises:
        BundleError: a tensor has another shape or type in two graphs, or is made twice, or is taken before it is made; or the
            graphs are not all run by the same provider.
    """
    inputs: Tensors = {}
    known: dict[str, str] = {}  # tensor -> what it is, in words
    first: dict[str, Session] = {}  # tensor -> the first graph that has it
    problems = []
    for graph in graphs:
        if graph.provider != graphs[0].provider:
            problems.append(
                f"{graphs[0].name} runs on {graphs[0].provider}, {graph.name} on {graph.provider}; wanted one for all"
            )
        for tensor, (shape, dtype) in graph.inputs.items():
            found = f"{dtype} {shape}"
            if tensor not in known:
                inputs[tensor] = shape, dtype
                known[tensor], first[tensor] = found, graph
            elif found != known[tensor]:
                does = "takes" if tensor in inputs else "makes"
                problems.append(f"{tensor}: {first[tensor].name} {does} {known[tensor]}, {graph.name} takes {found}")
        for tensor, (shape, dtype) in graph.outputs.items():
            if tensor in known:
                does = "takes it before" if tensor in inputs else "makes it too"
                problems.append(f"{tensor}: {graph.name} makes it, {first[tensor].name} {does}")
            else:
                known[tensor], first[tensor] = f"{dtype} {shape}", graph
    if problems:
        raise BundleError(
            f"{name}: its graphs do not fit each other; {'; '.join(problems)}. Take all graphs from one bake, in their order."
        )
    return inputs
