"""A card in this machine, through the C interface of its driver, AXCL (`libaxcl_rt.so`).

Names, types and order of calls are those of AXERA's API reference (axcl-docs, «runtime»; docs.m5stack.com, «AXCL API») and of
github AXERA-TECH/pyaxengine, `_axclrt.py` and `_axclrt_capi.py`. Its sessions copy every tensor to the card and back at each run.
Here a model's inputs and outputs are bound to memory of the card, which several models may share.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import math
import time
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .bfloat16 import BITS
from .errors import BundleError

LIBRARY = "axcl_rt"
MOST_DEVICES, MOST_AXES = 256, 32
TO_CARD, FROM_CARD = 1, 2  # axclrtMemcpyKind
NORMAL_MEMORY = 2  # axclrtMemMallocPolicy
ALL_CORES = 0  # axclrtEngineVNpuKind
#: axclrtEngineDataType -> NumPy's type; of others NumPy has none
TYPES = {3: "int8", 4: "uint8", 5: "int16", 6: "uint16", 7: "int32", 8: "uint32", 9: "int64", 10: "uint64"}
TYPES |= {13: "float16", 15: "float32", 16: "float64"}


class DeviceList(ctypes.Structure):
    """`axclrtDeviceList`."""

    _fields_ = (("num", c_uint32), ("devices", c_int32 * MOST_DEVICES))


class DeviceProperties(ctypes.Structure):
    """`axclrtDeviceProperties`; sizes in KiB."""

    _fields_ = (
        ("swVersion", ctypes.c_char * 64),
        ("uid", c_uint64),
        *((name, c_uint32) for name in ("pciDomain", "pciBusID", "pciDeviceID")),
        ("temperature", c_int32),
        *((name, c_uint32) for name in ("totalMemSize", "freeMemSize", "totalCmmSize", "freeCmmSize")),
        *((name, c_uint32) for name in ("cpuLoading", "npuLoading")),
        ("reserved", c_uint32 * 32),
    )


class Dims(ctypes.Structure):
    """`axclrtEngineIODims`."""

    _fields_ = (("dimCount", c_int32), ("dims", c_int32 * MOST_AXES))


#: Functions -> types of their arguments; those of the second table do not give an error
CALLS: dict[str, tuple[Any, ...]] = {
    "axclInit": (c_char_p,),
    "axclFinalize": (),
    "axclrtGetDeviceList": (POINTER(DeviceList),),
    "axclrtSetDevice": (c_int32,),
    "axclrtGetDeviceProperties": (c_int32, POINTER(DeviceProperties)),
    "axclrtMalloc": (POINTER(c_void_p), c_size_t, c_int32),
    "axclrtFree": (c_void_p,),
    "axclrtMemcpy": (c_void_p, c_void_p, c_size_t, c_int32),
    "axclrtEngineInit": (c_int32,),
    "axclrtEngineFinalize": (),
    "axclrtEngineGetUsage": (c_char_p, POINTER(c_int64), POINTER(c_int64)),
    "axclrtEngineLoadFromFile": (c_char_p, POINTER(c_uint64)),
    "axclrtEngineUnload": (c_uint64,),
    "axclrtEngineCreateContext": (c_uint64, POINTER(c_uint64)),
    "axclrtEngineGetIOInfo": (c_uint64, POINTER(c_void_p)),
    "axclrtEngineGetInputDims": (c_void_p, c_uint32, c_uint32, POINTER(Dims)),
    "axclrtEngineGetOutputDims": (c_void_p, c_uint32, c_uint32, POINTER(Dims)),
    "axclrtEngineGetInputDataType": (c_void_p, c_uint32, POINTER(c_int32)),
    "axclrtEngineGetOutputDataType": (c_void_p, c_uint32, POINTER(c_int32)),
    "axclrtEngineCreateIO": (c_void_p, POINTER(c_void_p)),
    "axclrtEngineDestroyIO": (c_void_p,),
    "axclrtEngineSetInputBufferByIndex": (c_void_p, c_uint32, c_void_p, c_uint64),
    "axclrtEngineSetOutputBufferByIndex": (c_void_p, c_uint32, c_void_p, c_uint64),
    "axclrtEngineExecute": (c_uint64, c_uint64, c_uint32, c_void_p),
}
OTHERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "axclrtEngineGetNumInputs": (c_uint32, (c_void_p,)),
    "axclrtEngineGetNumOutputs": (c_uint32, (c_void_p,)),
    "axclrtEngineGetInputNameByIndex": (c_char_p, (c_void_p, c_uint32)),
    "axclrtEngineGetOutputNameByIndex": (c_char_p, (c_void_p, c_uint32)),
    "axclrtEngineGetInputSizeByIndex": (c_uint64, (c_void_p, c_uint32, c_uint32)),
    "axclrtEngineGetOutputSizeByIndex": (c_uint64, (c_void_p, c_uint32, c_uint32)),
}


class Port(NamedTuple):
    """An input or output of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int  # bytes


@dataclass
class Counts:
    """What was done with a card so far."""

    loads: int = 0  # of models
    load_seconds: float = 0.0
    runs: int = 0  # of models
    uploaded: int = 0  # bytes to the card
    downloaded: int = 0  # bytes from it


@dataclass
class Card:
    """One card, initialised.

    Its methods raise BundleError with the function of AXCL that failed and its error code.
    """

    library: Any
    device: int
    counts: Counts = field(default_factory=Counts)

    def call(self, function: str, *arguments: Any, what: str = "") -> None:
        """Call *function* of AXCL.

        Args:
            what: was to be done, for the message; empty: nothing that a user would know.
        """
        if error := getattr(self.library, function)(*arguments):
            done = f"{what}: " if what else ""
            raise BundleError(
                f"{done}{function} of the card's driver gave the error 0x{error & 0xFFFFFFFF:08x}. Check with axcl-smi that the"
                " card is there, and that enough of its memory is free."
            )

    @property
    def free(self) -> int:
        """Bytes of the card's memory for models (CMM) that nobody holds."""
        properties = DeviceProperties()
        self.call("axclrtGetDeviceProperties", self.device, byref(properties))
        return properties.freeCmmSize << 10

    @property
    def total(self) -> int:
        """Bytes of the card's memory for models."""
        properties = DeviceProperties()
        self.call("axclrtGetDeviceProperties", self.device, byref(properties))
        return properties.totalCmmSize << 10

    def usage(self, path: Path) -> int:
        """Bytes of the card's memory that the model *path* takes, without its inputs and outputs, before it is loaded."""
        system, card = c_int64(), c_int64()
        self.call("axclrtEngineGetUsage", str(path).encode(), byref(system), byref(card), what=f"{path}")
        return card.value

    def allocate(self, size: int) -> int:
        """Address of *size* bytes of the card's memory."""
        address = c_void_p()
        self.call("axclrtMalloc", byref(address), size, NORMAL_MEMORY, what=f"{size} bytes of the card's memory")
        assert address.value
        return address.value

    def release(self, address: int) -> None:
        """Give memory back."""
        self.call("axclrtFree", address)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy *array*, which is contiguous, to *address* of the card."""
        self.call("axclrtMemcpy", address, array.ctypes.data, array.nbytes, TO_CARD)
        self.counts.uploaded += array.nbytes

    def download(self, address: int, port: Port) -> np.ndarray:
        """A copy of what stands at *address* of the card."""
        array = np.empty(port.shape, port.dtype)
        self.call("axclrtMemcpy", array.ctypes.data, address, array.nbytes, FROM_CARD)
        self.counts.downloaded += array.nbytes
        return array

    def load(self, path: Path, *, group: int = 0, as_bits: bool = False) -> Loaded:
        """The model *path*, loaded; *group* and *as_bits* as `Loaded` has them."""
        return Loaded(self, path, group=group, as_bits=as_bits)


class Loaded:
    """A model in a card's memory; its inputs and outputs have none yet.

    Attributes:
        inputs, outputs: in the model's order.
    """

    def __init__(self, card: Card, path: Path, *, group: int = 0, as_bits: bool = False) -> None:
        """
        Args:
            group: of its shapes, where it has several.
            as_bits: whether tensors of two bytes a number are uint16. So NumPy can hold bfloat16, for which drivers report
                its own type or none.
        """
        started = time.perf_counter()
        self._card, self.path, self._group, self._as_bits = card, path, group, as_bits
        self._model, self._context = c_uint64(), c_uint64()
        self._info, self._io = c_void_p(), c_void_p()
        card.call("axclrtEngineLoadFromFile", str(path).encode(), byref(self._model), what=f"{path}: loading")
        card.call("axclrtEngineCreateContext", self._model, byref(self._context), what=f"{path}")
        card.call("axclrtEngineGetIOInfo", self._model, byref(self._info), what=f"{path}")
        card.call("axclrtEngineCreateIO", self._info, byref(self._io), what=f"{path}")
        self.inputs, self.outputs = self._ports("Input"), self._ports("Output")
        card.counts.loads += 1
        card.counts.load_seconds += time.perf_counter() - started

    def _ports(self, side: str) -> list[Port]:
        """*side*: Input or Output."""
        library, info = self._card.library, self._info
        ports = []
        for index in range(getattr(library, f"axclrtEngineGetNum{side}s")(info)):
            name = getattr(library, f"axclrtEngineGet{side}NameByIndex")(info, index).decode()
            kind, dims = c_int32(), Dims()
            self._card.call(f"axclrtEngineGet{side}DataType", info, index, byref(kind), what=f"{self.path}: {name}")
            group, what = self._group, f"{self.path}: {name}"
            self._card.call(f"axclrtEngineGet{side}Dims", info, group, index, byref(dims), what=what)
            shape = tuple(dims.dims[: dims.dimCount])
            size_of = getattr(library, f"axclrtEngineGet{side}SizeByIndex")
            # As pyaxengine does: memory for any of the model's groups, whichever is run.
            size = max(size_of(info, number, index) for number in range(group + 1))
            if self._as_bits and size_of(info, group, index) == BITS.itemsize * math.prod(shape):
                ports.append(Port(name, shape, BITS, size))
                continue
            if kind.value not in TYPES:
                raise BundleError(
                    f"{self.path}: {name} is of AXCL's type {kind.value}, which NumPy does not have; wanted one of"
                    f" {', '.join(TYPES.values())}."
                )
            ports.append(Port(name, shape, np.dtype(TYPES[kind.value]), size))
        return ports

    def run(self, memory: Callable[[str], int]) -> None:
        """Run the model.

        Args:
            memory: name of an input or output -> its address on the card.
        """
        card = self._card
        for side, ports in (("Input", self.inputs), ("Output", self.outputs)):
            for index, port in enumerate(ports):
                call = f"axclrtEngineSet{side}BufferByIndex"
                card.call(call, self._io, index, memory(port.name), port.size, what=f"{self.path}: {port.name}")
        card.call(
            "axclrtEngineExecute", self._model, self._context, self._group, self._io, what=f"{self.path}: running"
        )
        card.counts.runs += 1

    def unload(self) -> None:
        """Give its memory back."""
        self._card.call("axclrtEngineDestroyIO", self._io)
        self._card.call("axclrtEngineUnload", self._model, what=f"{self.path}: unloading")


_cards: dict[int, Card] = {}


def find_library() -> str | None:
    """The driver's library; None where it is not installed."""
    return ctypes.util.find_library(LIBRARY)


def open_card(device: int = 0) -> Card:
    """Card number *device*; the same object each time, since AXCL is initialised once a process.

    Raises:
        BundleError: there is no such card, or its driver does not answer.
    """
    if device in _cards:
        return _cards[device]
    library = ctypes.CDLL(find_library())
    for name, arguments in CALLS.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = c_int32
    for name, (result, arguments) in OTHERS.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = result
    first = not _cards
    card = Card(library, device)
    if first:
        card.call("axclInit", None, what="initialising AXCL")
        atexit.register(_finalize, card)
    devices = DeviceList()
    card.call("axclrtGetDeviceList", byref(devices), what="looking for cards")
    if device >= devices.num:
        raise BundleError(
            f"card {device}: the driver finds {devices.num} card{'s' if devices.num != 1 else ''}; wanted a number below that."
            " Check with axcl-smi."
        )
    card.device = devices.devices[device]  # its slot, which is not its number
    card.call("axclrtSetDevice", card.device, what=f"card {device}")
    card.call("axclrtEngineInit", ALL_CORES, what=f"card {device}")
    _cards[device] = card
    return card


def _finalize(card: Card) -> None:
    """As AXCL wants it before a process ends; what fails then harms nobody."""
    if _cards:
        card.library.axclrtEngineFinalize()
    card.library.axclFinalize()
    _cards.clear()
