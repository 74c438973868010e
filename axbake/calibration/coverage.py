"""Which calibration samples cover the ranges of a network's activations.

Under min–max calibration of 16-bit activations clipping is the loss and spare range is nearly free, so samples are chosen for
the range that they bring.

**Objective.** Tensor t of the network spans [low, high] over all recorded samples, both extended to 0 as the quantiser does
(`axbake.emulator.encoding.encode_range`). A set of samples covers the share of it that its own span takes up. The set's coverage
is the weighted mean of these shares over the tensors: the network's outputs weigh as much as all others together, since what is
clipped inside is one error among hundreds, and what is clipped of an output is lost to the picture (docs/numbers.md
measures it). Tensors of equal ranges in every sample count once (a Reshape's result is its input); those that are 0 throughout,
or reach a mask's extreme values and so stay float, do not count.

Low and high side of each tensor are maxima over the chosen samples of something that is never negative. A sum of such maxima is
monotone and submodular (facility location): the more is chosen, the less a further sample adds. So the greedy choice of N samples
covers at least 1 − 1/e of what the best N do (Nemhauser, Wolsey and Fisher 1978), and a gain computed earlier bounds the present
one from above, so that few have to be computed anew (Minoux's lazy greedy, 1978).
"""

import heapq
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from axbake.emulator.encoding import is_extreme
from axbake.emulator.ranges import Ranges
from axbake.errors import AxbakeError

WORST = 10  # tensors that a record names
ENOUGH = (0.99, 1.0)  # shares of the ranges for which a record says how many samples they take
WHOLE = 2**32  # stands for a tensor's whole span: in integers sums are exact, and ties are ties on every CPU


class CoverageError(AxbakeError):
    """The ranges hold nothing by which samples could be chosen."""


@dataclass(frozen=True)
class Shares:
    """How much of each tensor's overall span each sample covers, for N samples and the T tensors that count."""

    names: tuple[str, ...]  # (T,)
    weights: np.ndarray  # (T,) int64
    low: np.ndarray  # (N, T) int64, of 0 to WHOLE: the span's part below 0
    high: np.ndarray  # (N, T) int64: its part above 0

    @property
    def sides(self) -> np.ndarray:
        """(N, 2T) int64: both sides of each tensor, weighted."""
        return np.concatenate([self.low * self.weights, self.high * self.weights], axis=1)

    def curve(self, chosen: Sequence[int]) -> list[float]:
        """Coverage, from 0 to 1, of the first, the first two, … of *chosen*."""
        reached = np.maximum.accumulate(self.sides[list(chosen)], axis=0).sum(axis=1)
        return [float(value / self.sides.max(axis=0).sum()) for value in reached]

    def by_tensor(self, chosen: Sequence[int]) -> dict[str, float]:
        """Share of each tensor's span that *chosen* cover."""
        rows = list(chosen)
        covered = self.low[rows].max(axis=0) + self.high[rows].max(axis=0)
        whole = self.low.max(axis=0) + self.high.max(axis=0)
        return {name: float(share) for name, share in zip(self.names, covered / whole, strict=True)}


def shares(ranges: Ranges, outputs: Set[str]) -> Shares:
    """The shares of each of the N samples of *ranges*.

    Args:
        outputs: names of the network's outputs among the tensors.

    Raises:
        CoverageError: a tensor is NaN on some sample, or no tensor counts.
    """
    bottom, top = np.minimum(ranges.low, 0).astype(np.float64), np.maximum(ranges.high, 0).astype(np.float64)
    span = top.max(axis=0) - bottom.min(axis=0)
    broken = [name for name, width in zip(ranges.names, span, strict=True) if np.isnan(width)]
    if broken:
        raise CoverageError(f"{', '.join(broken[:5])}: NaN on recorded samples; check the float model on them.")
    counts = np.array(
        [width > 0 and not is_extreme(bottom[:, i].min(), top[:, i].max()) for i, width in enumerate(span)], bool
    )
    if not counts.any():
        raise CoverageError(
            "every activation is 0 on all recorded samples, so axbake cannot choose between the samples; check the "
            "model."
        )
    # The outputs come first, so that `np.unique`, which gives first places, does not drop one for a tensor equal to it.
    order = sorted(np.flatnonzero(counts), key=lambda i: ranges.names[i] not in outputs)
    sides = np.rint(np.stack([-bottom[:, order], top[:, order]]) / span[order] * WHOLE).astype(np.int64)
    _, first = np.unique(sides.reshape(-1, len(order)), axis=1, return_index=True)
    kept = np.sort(first)
    names = tuple(ranges.names[order[i]] for i in kept)
    inside = sum(name not in outputs for name in names)
    weights = [max(1, inside // (len(names) - inside)) if name in outputs else 1 for name in names]
    return Shares(names, np.array(weights), sides[0][:, kept], sides[1][:, kept])


def choose(shares: Shares, count: int, required: Sequence[Sequence[Set[int]]] = ()) -> list[int]:
    """Samples in the order in which greed takes them: *count*, and then those that it takes to cover everything.

    Of equal gains the first sample's is taken. Among the *count* is a sample of each required set, if that many can hold them.
    Greed is free as long as there is room for what is still required, and then takes the best of what leaves no more of that than
    there is room for: so each start of the row is the best that greed finds of its length, up to there.

    Args:
        required: groups of sets of samples. The sets of one group have no sample in common, and any of one group and any of
            another have one; so what is needed for all unfulfilled ones is as many as the group with most of them has.
    """
    sides = shares.sides
    wanted = sides.max(axis=0)
    covered = np.zeros_like(wanted)
    unmet = [list(group) for group in required] if all(len(group) <= count for group in required) else []
    heap = [(-int(gain), sample) for sample, gain in enumerate(sides.sum(axis=1))]
    heapq.heapify(heap)
    order: list[int] = []
    while heap and (len(order) < count or (covered < wanted).any()):
        room = max(0, count - len(order) - 1)
        aside = []
        while True:
            bound, sample = heapq.heappop(heap)
            if any(sum(sample not in wish for wish in group) > room for group in unmet):
                aside.append((bound, sample))
                continue
            gain = int(np.maximum(sides[sample] - covered, 0).sum())
            if not heap or (-gain, sample) <= heap[0]:
                break
            heapq.heappush(heap, (-gain, sample))
        for entry in aside:
            heapq.heappush(heap, entry)
        order.append(sample)
        covered = np.maximum(covered, sides[sample])
        unmet = [[wish for wish in group if sample not in wish] for group in unmet]
    return order


def described(covered: Shares, chosen: list[int], by_coverage: list[int]) -> dict[str, Any]:
    """What *chosen* cover, and how many samples it takes to cover enough, of *by_coverage*, which cover all."""
    curve, tensors = covered.curve(chosen), covered.by_tensor(chosen)
    whole = covered.curve(by_coverage)
    worst = sorted(tensors, key=lambda name: tensors[name])[:WORST]
    return {
        "coverage": round(curve[-1], 6),
        "tensors": len(tensors),
        "worst_covered": {name: round(tensors[name], 4) for name in worst},
        "samples_for": {f"{share:.0%}": 1 + next(i for i, at in enumerate(whole) if at >= share) for share in ENOUGH},
        # With «coverage» on to the sample that completes it.
        "coverage_by_samples": [round(at, 6) for at in (whole if chosen == by_coverage[: len(chosen)] else curve)],
    }
