"""What every module of a network gives while the network runs in torch, as ranges: by them calibration samples are chosen.

The drawing that records trajectories sees each sample anyway, so choosing among all of them takes no further run. Modules are
fewer than the tensors of a graph, which also has what functions between modules make; docs/numbers.md measures what the choice
loses by that.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axbake.calibration.coverage import CoverageError
from axbake.emulator.ranges import Ranges

OUTPUT = "output"  # what the network itself gives
WRAPPED = "model."  # how names begin in what only calls diffusers' own network otherwise (`axbake.networks`)
NAMES, LOW, HIGH = "module_names", "module_low", "module_high"


class ModuleRanges:
    """The smallest and largest value of all that the modules of a network give, for each sample that it runs.

    A sample is one row of a batch. What has no row for each, such as a table of positions, counts for all of them.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        """Watch *network* from now on; what it takes counts too."""
        self._names: tuple[str, ...] | None = None
        self._seen: dict[str, list[tuple[float, float]]] = {}
        self._calls: Counter[str] = Counter()
        #: Bounds by a tensor's number; a block hands on what its last module made
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], list[tuple[float, float]]]] = {}
        self._rows: list[list[tuple[float, float]]] = []
        network.register_forward_pre_hook(self._begin)
        for name, module in network.named_modules():
            module.register_forward_hook(partial(self._keep, name.removeprefix(WRAPPED) or OUTPUT))

    def end_of_run(self) -> None:
        """Close the samples of the run that is over, in their order.

        Raises:
            CoverageError: other modules ran than before.
        """
        names = tuple(self._seen)
        if self._names not in (None, names):
            raise CoverageError(
                "other modules of the network ran than for the sample before, so they cannot be compared."
            )
        self._names = names
        self._rows += [list(sample) for sample in zip(*self._seen.values(), strict=True)]

    def found(self) -> Ranges:
        """The ranges of all samples so far."""
        bounds = np.array(self._rows, np.float32)
        return Ranges(self._names or (), bounds[..., 0], bounds[..., 1])

    def arrays(self) -> dict[str, np.ndarray]:
        """What `read_module_ranges` reads, for N samples and M values: names (M,), low and high (N, M) float32."""
        found = self.found()
        return {NAMES: np.array(found.names), LOW: found.low, HIGH: found.high}

    def _begin(self, network: torch.nn.Module, given: tuple) -> None:
        self._seen, self._calls, self._known = {}, Counter(), {}
        self._samples = len(given[0])
        self._keep("input", network, given, given)

    def _keep(self, name: str, module: torch.nn.Module, given: tuple, made: Any) -> None:
        for tensor in _tensors(made):
            number = self._calls[name]
            self._calls[name] += 1
            self._seen[f"{name} {number + 1}" if number else name] = self._bounds(tensor)

    def _bounds(self, tensor: torch.Tensor) -> list[tuple[float, float]]:
        """The smallest and the largest value of each sample."""
        same, known = self._known.get(id(tensor), (None, []))
        if same is not None and same() is tensor:
            return known
        bounds = [_extremes(part) for part in (tensor if len(tensor) == self._samples else [tensor])]
        found = [(float(low), float(high)) for low, high in bounds * (self._samples // len(bounds))]
        self._known[id(tensor)] = (weakref.ref(tensor), found)
        return found


def _extremes(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest value; read in the order of memory, which is twenty times as fast with channels last."""
    return torch.aminmax(tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True)))


def _tensors(made: Any) -> Iterator[torch.Tensor]:
    """Those of floating point in what a module takes or gives."""
    if isinstance(made, torch.Tensor):
        if made.is_floating_point() and made.ndim and made.numel():
            yield made
    elif isinstance(made, dict):
        yield from _tensors(made.values())
    elif isinstance(made, Iterable) and not isinstance(made, str):
        for one in made:
            yield from _tensors(one)


def read_module_ranges(trajectories: Path) -> Ranges:
    """The ranges in `calibration/trajectories.npz`, sample by sample as `DenoiserSamples.recorded` lists them."""
    with np.load(trajectories, allow_pickle=False) as arrays:
        return Ranges(tuple(map(str, arrays[NAMES])), arrays[LOW], arrays[HIGH])
