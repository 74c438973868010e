"""Models that run: one interface to ONNX graphs, emulated axmodels, and axmodels on the accelerator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import BundleError

EMULATOR = "axbake-emulator"  # producer of an emulated axmodel: an ONNX graph with quantisers in it
IR_VERSION_KEY, PRODUCER_NAME_KEY = 1 << 3, 2 << 3 | 2  # fields 1 and 2 of ModelProto in onnx.proto: varint, string

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

#: Contiguous arrays of the model's own types in, arrays in the order of its outputs out
Compute = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]
Tensors = dict[str, tuple[tuple[int, ...], np.dtype]]  # name -> shape and type


class Session:
    """A loaded model.

    Attributes:
        name: of the model's file, for messages.
        inputs: of each input its shape and type, in the model's order.
        outputs: the same of each output.
        seconds: how long each run so far took; copies to and from a card are in it.
        provider: what runs it, as ONNX Runtime or pyaxengine calls it.
    """

    def __init__(self, name: str, inputs: Tensors, outputs: Tensors, compute: Compute, provider: str = "") -> None:
        self.name = name
        self.provider = provider
        self.inputs = inputs
        self.outputs = outputs
        self.seconds: list[float] = []
        self._compute = compute

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs for *arrays*, one for each input.

        Integers are cast to the integer type that the model asks for (a published text encoder takes int32 ids, an ONNX
        graph int64), floats to its float type; an integer that does not fit, a float for an integer, another shape
        or another name are errors.
        """
        if set(arrays) != set(self.inputs):
            raise BundleError(f"{self.name}: got inputs {_names(arrays)}; wanted {_names(self.inputs)}.")
        problems, feed = [], {}
        for name, (shape, dtype) in self.inputs.items():
            array = np.asarray(arrays[name])
            if array.shape != shape:
                problems.append(f"{name}: found shape {array.shape}, wanted {shape}")
            elif not _fits(array, dtype):
                problems.append(f"{name}: found {array.dtype}, wanted values of {dtype}")
            else:
                feed[name] = np.asarray(array, dtype=dtype, order="C")
        if problems:
            raise BundleError(f"{self.name}: {'; '.join(problems)}.")
        start = time.perf_counter()
        outputs = self._compute(feed)
        self.seconds.append(time.perf_counter() - start)
        return dict(zip(self.outputs, outputs))


def open_model(path: Path, *, runtime: str = "onnxruntime", device: int = 0, threads: int = 0) -> Session:
    """The model in the file *path*: an `.onnx`, with tensors in files beside it or not, or an `.axmodel`.

    Args:
        runtime: of `RUNTIMES`; `auto` is `onnxruntime` for what that can run, and else the first accelerator that pyaxengine
            finds.
        device: number of the card, where there are several; `axcl` alone.
        threads: of ONNX Runtime: that one operator is spread over; 0: as many as the environment's OMP_NUM_THREADS says, or one a
            core.

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
            f"{path}: {kind} (made by {made_by or 'an unknown producer'}); accelerators run what Pulsar2 compiled, and"
            f" nothing else. Run it on the host (onnxruntime), or bake the model with Pulsar2."
        )
    if runtime in CARDS or (runtime == "auto" and not emulated):
        return _axengine_session(path, runtime, device)
    if not emulated:
        raise BundleError(
            f"{path}: an axmodel made by {made_by or 'an unknown producer'} runs on the accelerator card alone; ONNX "
            f"Runtime runs .onnx files and axmodels made by {EMULATOR}. Run it on the machine that has the card."
        )
    return _onnxruntime_session(path, threads)


def producer(path: Path) -> str:
    """Name of the program that wrote a model, from the head of its file; empty if it does not say.

    Only the few bytes before the graph are read, since a UNet has 900 MB of them: a serialised ModelProto is a row of
    fields in the order of their numbers, each behind a key of number and wire type.
    """
    with Path(path).open("rb") as file:
        if _varint(file) != IR_VERSION_KEY:
            raise BundleError(f"{path}: does not begin as an ONNX model or axmodel does. Fetch it again.")
        _varint(file)
        if _varint(file) != PRODUCER_NAME_KEY:
            return ""
        return file.read(_varint(file)).decode("utf-8", errors="replace")


def only(names: Tensors, what: str) -> str:
    """The one name in *names*; an error that says *what* has others."""
    if len(names) != 1:
        raise BundleError(f"{what}: found {_names(names)}; wanted exactly one.")
    return next(iter(names))


def _onnxruntime_session(path: Path, threads: int) -> Session:
    import onnxruntime  # here, so that a machine with nothing but axmodels of a card needs no ONNX Runtime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    if producer(path) == EMULATOR:
        # Higher levels fuse quantised nodes: 8-bit models then differ from what their graph says.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def tensors(nodes: list) -> Tensors:
        return {node.name: (tuple(node.shape), np.dtype(DTYPES[node.type])) for node in nodes}

    inputs, outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
    return Session(
        path.name, inputs, outputs, lambda feed: session.run(list(outputs), feed), provider=session.get_providers()[0]
    )


def _axengine_session(path: Path, runtime: str, device: int) -> Session:
    """*path* on an accelerator, through pyaxengine.

    Its peculiarities (github AXERA-TECH/pyaxengine, 0.1.3): a path must be a string, all outputs are had or none, arrays must
    be of exactly the model's shapes and types, one in Fortran's order is copied wrongly, and inputs come in any order.
    """
    try:
        import axengine
    except ImportError as error:
        raise BundleError(
            f"{path}: runs on the accelerator alone, and pyaxengine cannot be imported ({error}). Install its wheel from"
            " github AXERA-TECH/pyaxengine, and the card's driver, on the machine that has the card."
        ) from error
    available = axengine.get_available_providers()
    provider = CARDS.get(runtime) or next(iter(available), "none")
    if provider not in available:
        raise BundleError(
            f"{path}: {provider} is not there; pyaxengine finds {', '.join(available) or 'none'}. Is the driver loaded?"
            " axcl-smi says."
        )
    options = [{"device_id": device}] if runtime != "axengine" else None
    try:
        session = axengine.InferenceSession(str(path), providers=[provider], provider_options=options)
    except (RuntimeError, ValueError, OSError) as error:
        raise BundleError(
            f"{path}: {provider} cannot load it: {error} Is the card there, its driver loaded, and is enough of its memory"
            " free? axcl-smi says."
        ) from error

    def tensors(nodes: list) -> Tensors:
        return {node.name: (tuple(node.shape), np.dtype(node.dtype)) for node in nodes}

    inputs, outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
    return Session(path.name, inputs, outputs, lambda feed: session.run(None, feed), provider=provider)


def _fits(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the values of *array* survive a cast to *dtype*; floats may be rounded."""
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        return bool(np.array_equal(array.astype(dtype).astype(np.int64), array))
    return array.dtype.kind == dtype.kind


def _varint(file: BinaryIO) -> int:
    """The next protobuf varint: 7 bits a byte, the low ones first, the eighth bit set where more follow."""
    value, shift = 0, 0
    while True:
        byte = int.from_bytes(file.read(1), "little")
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # 0 at the end of the file
            return value


def _names(names: dict) -> str:
    return ", ".join(sorted(names)) or "none"
