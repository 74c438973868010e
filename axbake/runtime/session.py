"""Models that run: one interface to ONNX graphs, emulated axmodels, and axmodels on the accelerator."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .chain import Chain, StreamedChain
from .errors import BundleError
from .model import Session, Tensors, only
from .producer import EMULATOR, producer

__all__ = ["CARDS", "EMULATOR", "RUNTIMES", "Session", "only", "open_model", "open_models", "producer"]

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}

# What runs a model -> pyaxengine's name of it: a card in this machine, or the chip that this machine is
CARDS = {"axcl": "AXCLRTExecutionProvider", "axengine": "AxEngineExecutionProvider"}
RUNTIMES = ("auto", *CARDS, "onnxruntime")
MOST_OPEN = 4 << 30  # bytes of a component's graphs that are loaded at once; ONNX Runtime takes about twice as much
IN_FLOAT = 4  # times as large as emulated models' weights of 8 bits are those of float32


def open_model(
    path: Path, *, runtime: str = "onnxruntime", device: int = 0, threads: int = 0, in_float: bool = False
) -> Session:
    """The model in the file *path*: an `.onnx`, with tensors in files beside it or not, or an `.axmodel`.

    Args:
        runtime: of `RUNTIMES`; `auto` is `onnxruntime` for what that can run, and else the first accelerator that pyaxengine
            finds.
        device: number of the card, where there are several; `axcl` alone.
        threads: of ONNX Runtime: that one operator is spread over; 0: as many as the environment's OMP_NUM_THREADS says, or one a
            core.
        in_float: of an emulated model: whether its weights become float32 when it is loaded instead of in every run, which
            takes a third off the time of a run (`bench/in_float.py`). The quantised values are the same.

    Raises:
        BundleError: there is no such file, or it is not a model, or not one that *runtime* runs.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such file; wanted an .onnx or .axmodel.")
    made_by = producer(path)
    emulated = path.suffix != ".axmodel" or made_by == EMULATOR
    if emulated and runtime in CARDS:
        kind = "emulated" if made_by == EMULATOR else "a float graph"
        raise BundleError(
            f"{path}: {kind} (made by {made_by or 'an unknown producer'}); accelerators run only models compiled by "
            "Pulsar2. Run it on the host (onnxruntime), or bake the model with Pulsar2."
        )
    if runtime in CARDS or (runtime == "auto" and not emulated):
        return _axengine_session(path, runtime, device)
    if not emulated:
        raise BundleError(
            f"{path}: an axmodel made by {made_by or 'an unknown producer'} runs only on the accelerator card; ONNX "
            f"Runtime runs .onnx files and axmodels made by {EMULATOR}. Run it on the machine that has the card."
        )
    return _onnxruntime_session(path, threads, in_float)


def open_models(
    paths: Sequence[Path],
    *,
    runtime: str = "onnxruntime",
    device: int = 0,
    threads: int = 0,
    most_open: int = MOST_OPEN,
) -> Session:
    """The component whose graphs are in the files *paths*, in the order in which they run; of several, a `Chain`.

    Where the graphs are larger than *most_open* bytes together, ONNX Runtime loads each when its turn comes. Where their weights
    in float32 are not, emulated models have them so.

    Args:
        runtime, device, threads: as in `open_model`.

    Raises:
        BundleError: a file is not a model that *runtime* runs, or the graphs do not fit each other.
    """
    size = sum(map(_size, paths))
    how: dict[str, Any] = {
        "runtime": runtime,
        "device": device,
        "threads": threads,
        "in_float": size * IN_FLOAT <= most_open,
    }
    openers = [functools.partial(open_model, path, **how) for path in map(Path, paths)]
    if len(openers) == 1:
        return openers[0]()
    name = Path(paths[0]).parent.name if openers else "component"
    if runtime not in CARDS and size > most_open:
        return StreamedChain(name, openers)
    return Chain(name, [opener() for opener in openers])


def _size(path: Path) -> int:
    """Bytes of the model *path*, with tensors in a file beside it."""
    files = [Path(path), Path(path).with_name(f"{Path(path).name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _onnxruntime_session(path: Path, threads: int, in_float: bool) -> Session:
    import onnxruntime  # here, so that a machine with nothing but axmodels of a card needs no ONNX Runtime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    if producer(path) == EMULATOR:
        # Higher levels fuse quantised nodes: 8-bit models then differ from what their graph says.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if in_float:  # ONNX Runtime folds quantised weights only where it leaves quantised nodes alone
            options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def tensors(nodes: list) -> Tensors:
        return {node.name: (tuple(node.shape), np.dtype(DTYPES[node.type])) for node in nodes}

    inputs, outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
    return Session(
        path.name,
        inputs,
        outputs,
        lambda feed: session.run(list(outputs), feed),
        provider=session.get_providers()[0],
        component=path.stem,
    )


def _axengine_session(path: Path, runtime: str, device: int) -> Session:
    """*path* on an accelerator, through pyaxengine.

    Its peculiarities (github AXERA-TECH/pyaxengine, 0.1.3): a path must be a string, it gives all outputs or none, arrays must
    be of exactly the model's shapes and types, one in Fortran's order is copied wrongly, and inputs come in any order.
    """
    try:
        import axengine
    except ImportError as error:
        raise BundleError(
            f"{path}: runs only on the accelerator, but pyaxengine cannot be imported ({error}). Install its wheel "
            "from github AXERA-TECH/pyaxengine, and the card's driver, on the machine that has the card."
        ) from error
    available = axengine.get_available_providers()
    provider = CARDS.get(runtime) or next(iter(available), "none")
    if provider not in available:
        raise BundleError(
            f"{path}: {provider} is not available; pyaxengine finds {', '.join(available) or 'none'}. Check with "
            "axcl-smi that the driver is loaded."
        )
    options = [{"device_id": device}] if runtime != "axengine" else None
    try:
        session = axengine.InferenceSession(str(path), providers=[provider], provider_options=options)
    except (RuntimeError, ValueError, OSError) as error:
        raise BundleError(
            f"{path}: {provider} cannot load it: {error} Check with axcl-smi that the card is there, its driver is "
            "loaded, and enough of its memory is free."
        ) from error

    def tensors(nodes: list) -> Tensors:
        return {node.name: (tuple(node.shape), np.dtype(node.dtype)) for node in nodes}

    inputs, outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
    return Session(
        path.name,
        inputs,
        outputs,
        lambda feed: session.run(None, feed),
        provider=provider,
        component=path.stem,
    )
