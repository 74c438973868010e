"""Components on a card: tensors between their graphs stay in its memory, and what it cannot hold streams through two slots.

A component's graphs stay loaded while the card has room. If it cannot hold them all at once, the first ones stay, and the others
are loaded in their order, each in place of the one before the last: an order that repeats makes any cache of recent ones miss
every time. Other components leave the card when one needs their room: the text encoders before the denoiser comes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .axcl import Card, Loaded, Port, find_library, open_card
from .chain import joined
from .errors import BundleError
from .language_card import GROUP, is_language_model, open_language_model, tensor_name
from .layers import open_component_of
from .model import Session, Tensors
from .producer import EMULATOR, producer
from .session import CARDS

SLOTS = 2  # of models that stream
RUNTIMES = ("auto", "axcl")  # that a card of this machine runs


def open_component(paths: Sequence[Path], *, runtime: str, device: int, threads: int) -> Session:
    """The component whose graphs are in the files *paths*, as `axbake.runtime.layers.open_component_of` opens it.

    Compiled graphs go onto a card through AXCL itself, if its driver is there; else through pyaxengine, which copies all tensors
    to the card and back for each graph.

    Raises:
        BundleError
    """
    if is_language_model(paths) and runtime in RUNTIMES and all(map(_is_compiled, paths[2:])) and find_library():
        return open_language_model(
            paths, lambda layers, states: CardLayers("layers", layers, open_card(device), CARDS["axcl"], states)
        )
    if runtime in RUNTIMES and all(map(_is_compiled, paths)) and find_library():
        name = Path(paths[0]).parent.name if len(paths) > 1 else Path(paths[0]).name
        return CardSession(name, paths, open_card(device), CARDS["axcl"])
    return open_component_of(paths, runtime=runtime, device=device, threads=threads)


def _is_compiled(path: Path) -> bool:
    return path.suffix == ".axmodel" and path.is_file() and producer(path) != EMULATOR


class CardSession(Session):
    """A component on a card: one graph, or several that run in order."""

    def __init__(self, name: str, paths: Sequence[Path], card: Card, provider: str) -> None:
        """
        Args:
            name: of the component or its file.

        Raises:
            BundleError: the card cannot hold two of its graphs, or the graphs do not fit each other.
        """
        self.card, self._paths = card, [Path(path) for path in paths]
        self._usages = [card.usage(path) for path in self._paths]
        self._loaded: dict[int, Loaded] = {}
        self._memory: list[list[int]] = []  # of each feed, the address of each of `_sizes`
        self._streamed: list[int] = []  # those in the slots, the older first
        others = _on(card)
        budget = card.free + sum(one.held for one in others)
        self._resident = self._first(budget)
        ports = self._read()
        graphs = [
            Session(path.name, _tensors(taken), _tensors(given), None, provider)
            for path, (taken, given) in zip(self._paths, ports)
        ]
        inputs = joined(name, graphs)
        self._outputs = self._given([port for _, outputs in ports for port in outputs], ports[-1][1])
        self._places, self._sizes = place_tensors(ports, [port.name for port in self._outputs])
        self._budget = budget
        super().__init__(name, inputs, _tensors(self._outputs), None, provider)
        _SESSIONS.setdefault(id(card), []).append(weakref.ref(self))

    @property
    def held(self) -> int:
        """Bytes of the card's memory that it takes now."""
        return sum(self._usages[number] for number in self._loaded) + sum(self._sizes) * len(self._memory)

    def _first(self, budget: int) -> int:
        """How many graphs, from the first on, stay loaded within *budget* bytes."""
        if sum(self._usages) <= budget:
            return len(self._paths)
        for count in reversed(range(len(self._paths))):
            slots = SLOTS * max(self._usages[count:])
            if sum(self._usages[:count]) + slots <= budget:
                return count
        raise BundleError(
            f"{self._paths[0].parent.name}: the card has {budget >> 20} MiB for its graphs, of which two take up to"
            f" {SLOTS * max(self._usages) >> 20} MiB. Cut the component into more graphs (graph_weights), or use a card with more"
            " memory."
        )

    def _read(self) -> list[tuple[list[Port], list[Port]]]:
        """Inputs and outputs of each graph. To read them it is loaded; it stays loaded unless others would have to leave."""
        ports = []
        for number in range(len(self._paths)):
            while self._loaded and self.card.free < self._usages[number]:
                self._unload(next(reversed(self._loaded)))
            graph = self._load(number)
            inputs, outputs = (
                [port._replace(name=self._named(number, port.name)) for port in side]
                for side in (graph.inputs, graph.outputs)
            )
            ports.append((inputs, outputs))
        for number in list(self._streamed):
            self._unload(number)
        return ports

    def _open(self, path: Path) -> Loaded:
        """The graph *path*, loaded."""
        return self.card.load(path)

    def _named(self, number: int, tensor: str) -> str:
        """What a tensor of graph *number* is called among all graphs."""
        return tensor

    def _given(self, made: list[Port], last: list[Port]) -> list[Port]:
        """What it gives, of all that its graphs make; *last*: what the last graph gives."""
        return last

    def _load(self, number: int) -> Loaded:
        """Graph *number*, loaded now if it is not."""
        if number in self._loaded:
            return self._loaded[number]
        if number >= self._resident:
            while len(self._streamed) >= SLOTS:
                self._unload(self._streamed[0])
            self._streamed.append(number)
        _make_room(self.card, self._usages[number], keep=self)
        self._loaded[number] = self._open(self._paths[number])
        return self._loaded[number]

    def _unload(self, number: int) -> None:
        self._loaded.pop(number).unload()
        if number in self._streamed:
            self._streamed.remove(number)

    def leave(self) -> None:
        """Give all of the card's memory back."""
        for number in list(self._loaded):
            self._unload(number)
        for addresses in self._memory:
            for address in addresses:
                self.card.release(address)
        self._memory.clear()

    def _allocate(self, feeds: int) -> None:
        """Memory for the tensors of so many *feeds*; graphs that stay leave if it would not fit beside them."""
        while len(self._memory) < feeds:
            wanted = sum(self._sizes) * feeds
            while self._resident and not self._fits(wanted):
                self._resident -= 1
                if self._resident in self._loaded:
                    self._unload(self._resident)
            _make_room(self.card, sum(self._sizes), keep=self)
            self._memory.append([self.card.allocate(size) for size in self._sizes])

    def _fits(self, wanted: int) -> bool:
        stays, streams = self._usages[: self._resident], self._usages[self._resident :]
        return sum(stays) + SLOTS * max(streams, default=0) + wanted <= self._budget

    def _compute_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
        """All *feeds* go through one graph, then through the next: a graph that streams is loaded once for all of them."""
        _use(self)
        self._allocate(len(feeds))
        for feed, addresses in zip(feeds, self._memory):
            for name, array in feed.items():
                self.card.upload(addresses[self._places[name]], np.ascontiguousarray(array))
        for number in range(len(self._paths)):
            graph = self._load(number)
            for _, addresses in zip(feeds, self._memory):
                graph.run(lambda name, of=addresses, number=number: of[self._places[self._named(number, name)]])  # type: ignore[misc]
        return [
            [self.card.download(addresses[self._places[port.name]], port) for port in self._outputs]
            for _, addresses in zip(feeds, self._memory)
        ]


class CardLayers(CardSession):
    """The layers of a language model on a card (`axbake.runtime.language_card`): their states stay in its memory, too."""

    def __init__(self, name: str, paths: Sequence[Path], card: Card, provider: str, states: Sequence[str]) -> None:
        """
        Args:
            states: those that it gives.
        """
        self._states = states
        super().__init__(name, paths, card, provider)

    def _open(self, path: Path) -> Loaded:
        return self.card.load(path, group=GROUP, as_bits=True)

    def _named(self, number: int, tensor: str) -> str:
        return tensor_name(number, tensor)

    def _given(self, made: list[Port], last: list[Port]) -> list[Port]:
        by_name = {port.name: port for port in made}
        return [by_name[name] for name in self._states]


def card_counts(session: Session) -> dict[str, Any]:
    """What the card of *session* did so far, by the names of `axbake.runtime.axcl.Counts`; empty if AXCL does not run it."""
    return asdict(session.card.counts) if isinstance(session, CardSession) else {}


#: Components by card, the one that ran last at the end
_SESSIONS: dict[int, list[weakref.ref[CardSession]]] = {}


def _on(card: Card) -> list[CardSession]:
    return [one for ref in _SESSIONS.get(id(card), []) if (one := ref())]


def _use(session: CardSession) -> None:
    """Note that *session* runs."""
    others = [weakref.ref(one) for one in _on(session.card) if one is not session]
    _SESSIONS[id(session.card)] = [*others, weakref.ref(session)]


def _make_room(card: Card, size: int, *, keep: CardSession) -> None:
    """Have other components leave the card, those that ran longest ago first, until *size* bytes are free."""
    for other in _on(card):
        if card.free >= size:
            return
        if other is not keep:
            other.leave()


def _tensors(ports: Sequence[Port]) -> Tensors:
    return {port.name: (port.shape, port.dtype) for port in ports}


def place_tensors(
    ports: Sequence[tuple[list[Port], list[Port]]], kept: Sequence[str] = ()
) -> tuple[dict[str, int], list[int]]:
    """Which piece of memory each tensor of a chain has: a piece is used again once no later graph takes its tensor.

    What the chain takes is there from the beginning, what it gives stays.

    Args:
        ports: inputs and outputs of each graph, in order.
        kept: what the chain gives; empty: what its last graph gives.

    Returns:
        Name -> number of the piece, and the size of each piece in bytes.
    """
    last: dict[str, int] = {}  # the number of the last graph that has to do with it
    for number, (taken, given) in enumerate(ports):
        last.update(dict.fromkeys([port.name for port in [*taken, *given]], number))
    last.update(dict.fromkeys(kept or [port.name for port in ports[-1][1]], len(ports)))
    sizes: list[int] = []
    free: list[int] = []
    places: dict[str, int] = {}

    def place(port: Port) -> None:
        fitting = sorted((number for number in free if sizes[number] >= port.size), key=sizes.__getitem__)
        if fitting:
            free.remove(fitting[0])
        else:
            sizes.append(port.size)
        places[port.name] = fitting[0] if fitting else len(sizes) - 1

    made = {port.name for _, outputs in ports for port in outputs}
    for taken, _ in ports:
        for port in taken:
            if port.name not in made and port.name not in places:
                place(port)
    for number, (_, outputs) in enumerate(ports):
        for port in outputs:
            place(port)
        free += [places[name] for name in places if last[name] == number]
    return places, sizes
