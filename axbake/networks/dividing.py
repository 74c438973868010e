"""A network's modules divided into runs, one a graph: as few as a limit of weights allows, and as equal as can be."""

import functools
import itertools
from collections.abc import Sequence


def divide(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Where the runs of *sizes* begin, but for the first: as few as have at most *most* together, their largest smallest.

    Raises:
        ValueError: one of *sizes* alone is more.
    """
    if max(sizes) > most:
        raise ValueError(f"a size of {max(sizes)}, more than {most}")
    number = 1
    while largest(sizes, (found := cuts(sizes, number))) > most:
        number += 1
    return found


def cuts(sizes: Sequence[int], number: int) -> tuple[int, ...]:
    """Where *number* runs of *sizes* begin, but for the first, if the largest is to be as small as it can be."""

    @functools.cache
    def best(first: int, runs: int) -> tuple[int, tuple[int, ...]]:
        if runs == 1:
            return sum(sizes[first:]), ()
        found = []
        for begin in range(first + 1, len(sizes) - runs + 2):
            most, later = best(begin, runs - 1)
            found.append((max(sum(sizes[first:begin]), most), (begin, *later)))
        return min(found)

    return best(0, number)[1]


def largest(sizes: Sequence[int], begins: Sequence[int]) -> int:
    """The largest sum of the runs of *sizes* that start at 0 and at *begins*."""
    ends = (0, *begins, len(sizes))
    return max(sum(sizes[begin:end]) for begin, end in itertools.pairwise(ends))
