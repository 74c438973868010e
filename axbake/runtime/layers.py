"""Layers of a language model as sessions: emulated ones by ONNX Runtime, those of a card by pyaxengine.

They differ from other models: their tensors are bfloat16, and one file holds several groups of shapes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .bfloat16 import BITS, run_with_bits
from .chain import Chain, StreamedChain
from .errors import BundleError
from .language_card import GROUP, is_language_model, open_language_model, tensor_name
from .model import Session, Tensors
from .producer import EMULATOR, producer
from .session import CARDS, MOST_OPEN, open_models

#: ONNX Runtime's types of a layer's tensors -> NumPy's
TYPES: dict[str, np.dtype] = {"tensor(bfloat16)": BITS, "tensor(uint32)": np.dtype(np.uint32)}


class Layers(Chain):
    """Layers that run one after the other, and give the states called *states*, of whichever of them."""

    def __init__(self, graphs: Sequence[Session], states: Sequence[str]) -> None:
        super().__init__("layers", graphs)
        self.outputs = _found(self.graphs, states)
        self._last_use.update(dict.fromkeys(states, len(graphs)))


class StreamedLayers(StreamedChain):
    """The same, of which one is in memory at a time."""

    def __init__(self, openers: Sequence[Callable[[], Session]], states: Sequence[str]) -> None:
        super().__init__("layers", openers)
        self.outputs = _found(self.graphs, states)
        self._last_use.update(dict.fromkeys(states, len(openers)))


def _found(graphs: Sequence[Session], states: Sequence[str]) -> Tensors:
    made = {tensor: port for graph in graphs for tensor, port in graph.outputs.items()}
    return {name: made[name] for name in states}


def open_component_of(
    paths: Sequence[Path],
    *,
    runtime: str = "onnxruntime",
    device: int = 0,
    threads: int = 0,
    most_open: int = MOST_OPEN,
) -> Session:
    """As `axbake.runtime.session.open_models`; *paths* may also be those of a language model in layers.

    Raises:
        BundleError
    """
    how: dict[str, Any] = {"runtime": runtime, "device": device, "threads": threads}
    if not is_language_model(paths):
        return open_models(paths, **how, most_open=most_open)
    streamed = (
        runtime not in CARDS and sum(path.stat().st_size for path in map(Path, paths[2:]) if path.is_file()) > most_open
    )

    def open_layers(layers: Sequence[Path], states: Sequence[str]) -> Session:
        openers = [functools.partial(_open_named, path, number, **how) for number, path in enumerate(layers)]
        return StreamedLayers(openers, states) if streamed else Layers([opener() for opener in openers], states)

    return open_language_model(paths, open_layers)


def _open_named(path: Path, number: int, **how: Any) -> Session:
    """The layer *path*, its tensors named as among all layers."""
    session = open_layer(path, **how)
    own = {tensor_name(number, name): name for name in (*session.inputs, *session.outputs)}
    inputs, outputs = (
        {tensor_name(number, name): port for name, port in side.items()} for side in (session.inputs, session.outputs)
    )

    def compute(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(session.run({own[name]: array for name, array in feed.items()}).values())

    return Session(session.name, inputs, outputs, compute, session.provider, component=session.component)


def open_layer(path: Path, *, runtime: str, device: int, threads: int) -> Session:
    """The layer in the file *path*, ready to read a prompt at once; bfloat16 is uint16, its bits.

    Args:
        runtime, device, threads: as in `axbake.runtime.session.open_model`.

    Raises:
        BundleError: there is no such file, or it is not a model, or not one that *runtime* runs.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such file; wanted an .axmodel.")
    emulated = producer(path) == EMULATOR
    if emulated == (runtime in CARDS) or (runtime == "onnxruntime") > emulated:
        who = "an accelerator" if runtime in CARDS else "ONNX Runtime"
        raise BundleError(
            f"{path}: made by {producer(path) or 'an unknown producer'}, which {who} does not run. Emulated layers run on hosts,"
            " and Pulsar2's on the machine that has the card."
        )
    return _onnxruntime_layer(path, threads) if emulated else _axengine_layer(path, runtime, device)


def _onnxruntime_layer(path: Path, threads: int) -> Session:
    import onnxruntime  # here, since a machine with nothing but axmodels of a card needs no ONNX Runtime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    # As for other emulated models, higher levels fuse what is quantised.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = [*session.get_inputs(), *session.get_outputs()]
    if strange := [f"{node.name} of {node.type}" for node in nodes if node.type not in TYPES]:
        raise BundleError(
            f"{path}: {', '.join(strange)}; wanted {' or '.join(TYPES)}. It is not a layer of a language model."
        )
    halves = [node.name for node in nodes if TYPES[node.type] == BITS]
    inputs, outputs = (
        {node.name: (tuple(node.shape), TYPES[node.type]) for node in side}
        for side in (session.get_inputs(), session.get_outputs())
    )
    return _session(
        path, inputs, outputs, session.get_providers()[0], lambda feed: run_with_bits(session, [*outputs], feed, halves)
    )


def _axengine_layer(path: Path, runtime: str, device: int) -> Session:
    """*path* through pyaxengine, whose bfloat16 is the package ml_dtypes', among its own requirements."""
    try:
        import axengine
    except ImportError as error:
        raise BundleError(
            f"{path}: runs only on the accelerator, but pyaxengine cannot be imported ({error}). Install its wheel from github"
            " AXERA-TECH/pyaxengine, and the card's driver, on the machine that has the card."
        ) from error
    provider = CARDS.get(runtime) or next(iter(axengine.get_available_providers()), "none")
    options = [{"device_id": device}] if runtime != "axengine" else None
    try:
        session = axengine.InferenceSession(str(path), providers=[provider], provider_options=options)
    except (RuntimeError, ValueError, OSError) as error:
        raise BundleError(
            f"{path}: {provider} cannot load it: {error} Check with axcl-smi that the card is there, its driver is loaded, and"
            " enough of its memory is free."
        ) from error
    own = {node.name: np.dtype(node.dtype) for node in session.get_inputs(shape_group=GROUP)}
    inputs, outputs = (
        {node.name: (tuple(node.shape), _as_bits(np.dtype(node.dtype))) for node in side(shape_group=GROUP)}
        for side in (session.get_inputs, session.get_outputs)
    )

    def compute(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = {name: array.view(own[name]) for name, array in feed.items()}
        return [array.view(_as_bits(array.dtype)) for array in session.run(None, given, shape_group=GROUP)]

    return _session(path, inputs, outputs, provider, compute)


def _as_bits(dtype: np.dtype) -> np.dtype:
    """*dtype*; of a float of two bytes that of its bits, since drivers call bfloat16 float16, too."""
    return BITS if dtype.name in ("bfloat16", "float16") else dtype


def _session(
    path: Path,
    inputs: Tensors,
    outputs: Tensors,
    provider: str,
    compute: Callable[[dict[str, np.ndarray]], list[np.ndarray]],
) -> Session:
    return Session(path.name, inputs, outputs, compute, provider, component=path.stem)
