"""A component of several graphs: they run in order, and tensors go from one to the next by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .errors import BundleError
from .model import Session, Tensors


class Chain(Session):
    """Graphs that run as one model.

    It takes what no graph makes, in the order of first use, and gives what its last graph gives. A tensor has one name in
    all of them; one that skips graphs waits for the last that takes it, and is then dropped.

    Attributes:
        graphs: in order; each has its own `seconds`.
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
        super().__init__(name, inputs, last.outputs, None, last.provider)

    def _graph(self, number: int) -> Session:
        """Graph *number*, loaded."""
        return self.graphs[number]

    def _compute_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
        """The last graph's outputs; all *feeds* go through one graph, then through the next, and are used up."""
        for i in range(len(self.graphs)):
            graph = self._graph(i)
            made = graph.run_all([{name: tensors[name] for name in graph.inputs} for tensors in feeds])
            del graph
            for tensors in feeds:
                for name in [name for name in tensors if self._last_use[name] <= i]:
                    del tensors[name]
                outputs = made.pop(0)
                tensors.update({name: array for name, array in outputs.items() if self._last_use.get(name, -1) > i})
                del outputs
        return [[tensors[name] for name in self.outputs] for tensors in feeds]


class StreamedChain(Chain):
    """A chain of which one graph is in memory at a time."""

    def __init__(self, name: str, openers: Sequence[Callable[[], Session]]) -> None:
        """
        Args:
            openers: functions that load each graph; what is called each time must be the same.

        Raises:
            BundleError: the graphs do not fit each other.
        """
        self._openers = tuple(openers)
        super().__init__(name, [_described(opener()) for opener in self._openers])

    def _graph(self, number: int) -> Session:
        opened = self._openers[number]()
        opened.seconds = self.graphs[number].seconds  # which outlive it
        return opened


def _described(session: Session) -> Session:
    """What *session* takes and gives, without what computes it."""
    return Session(session.name, session.inputs, session.outputs, None, session.provider, component=session.component)


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
