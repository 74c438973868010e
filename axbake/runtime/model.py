"""A loaded model, whatever runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import BundleError

#: Contiguous arrays of the model's own types in, arrays in the order of its outputs out
Compute = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]
Tensors = dict[str, tuple[tuple[int, ...], np.dtype]]  # name -> shape and type


class Session:
    """A loaded model.

    Attributes:
        name: of the model's file, for messages.
        component: that it is, such as `unet`; its times stand under this name.
        inputs: of each input its shape and type, in the model's order.
        outputs: the same of each output.
        seconds: how long each run so far took; copies to and from a card are in it.
        provider: what runs it, as ONNX Runtime or pyaxengine calls it.
    """

    def __init__(
        self,
        name: str,
        inputs: Tensors,
        outputs: Tensors,
        compute: Compute | None,
        provider: str = "",
        *,
        component: str = "",
    ) -> None:
        """
        Args:
            compute: None: the class has its own `_compute_all`.
            component: empty: it is called as its file.
        """
        self.name = name
        self.component = component or name
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
        (outputs,) = self.run_all([arrays])
        return outputs

    def run_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The outputs for each of *feeds*; what is loaded for a run need not be loaded for each of them."""
        checked = [self._checked(arrays) for arrays in feeds]
        start = time.perf_counter()
        outputs = self._compute_all(checked)
        self.seconds += [(time.perf_counter() - start) / len(feeds)] * len(feeds)
        return [dict(zip(self.outputs, made)) for made in outputs]

    def _compute_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> Sequence[Sequence[np.ndarray]]:
        assert self._compute
        return [self._compute(feed) for feed in feeds]

    def _checked(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """*arrays* in the model's own types."""
        if set(arrays) != set(self.inputs):
            raise BundleError(f"{self.name}: got inputs {names(arrays)}; wanted {names(self.inputs)}.")
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
        return feed


class Postponed(Session):
    """A model that is loaded when it is first asked for, and can leave memory again."""

    def __init__(self, component: str, opener: Callable[[], Session]) -> None:
        """
        Args:
            opener: loads it; what it gives each time must be the same.
        """
        self.name = self.component = component
        self.seconds = []
        self._opener = opener
        self._opened: Session | None = None

    @property
    def session(self) -> Session:
        """The model, loaded."""
        if self._opened is None:
            self._opened = self._opener()
            self._opened.seconds = self.seconds
        return self._opened

    def release(self) -> None:
        """Give its memory back."""
        leave = getattr(self._opened, "leave", None)  # of what a card runs
        if leave:
            leave()
        self._opened = None

    def __getattr__(self, name: str) -> Any:
        if name in ("inputs", "outputs", "provider"):
            return getattr(self.session, name)
        raise AttributeError(name)

    def run_all(self, feeds: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The outputs for each of *feeds*."""
        return self.session.run_all(feeds)


def only(tensors: Tensors, what: str) -> str:
    """The one name in *tensors*; an error that says *what* has others."""
    if len(tensors) != 1:
        raise BundleError(f"{what}: found {names(tensors)}; wanted exactly one.")
    return next(iter(tensors))


def names(tensors: dict) -> str:
    """The names in *tensors* for a message."""
    return ", ".join(sorted(tensors)) or "none"


def _fits(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the values of *array* survive a cast to *dtype*; floats may be rounded."""
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        return bool(np.array_equal(array.astype(dtype).astype(np.int64), array))
    return array.dtype.kind == dtype.kind
