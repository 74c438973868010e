"""How long a run takes, and how much of it is left, in seconds: all its jobs by its cores, or the longest chain of jobs."""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

Numbers = Mapping[int, Sequence[int]]  # of jobs, by that of another


def run_time(seconds: Mapping[int, float], shares: Mapping[int, float], needs: Numbers) -> float:
    """Seconds that a run of all these jobs takes.

    Args:
        seconds: of each job, by number.
        shares: of the run's cores that each takes.
        needs: numbers of the jobs that each waits for; others than these are done.
    """
    whole = sum(time * shares[number] for number, time in seconds.items())
    return max([whole, *_chains(seconds, needs).values()])


def _chains(seconds: Mapping[int, float], following: Numbers) -> dict[int, float]:
    """Seconds of the longest chain that begins with each job and goes on with one that is *following* it."""
    found: dict[int, float] = {}
    for number in seconds:
        waiting = [number]
        while waiting:  # not by recursion: a chain may be as long as there are jobs
            one = waiting[-1]
            others = [other for other in following.get(one, ()) if other in seconds]
            if missing := [other for other in others if other not in found]:
                waiting += missing
            else:
                found[one] = seconds[one] + max((found[other] for other in others), default=0.0)
                waiting.pop()
    return found


class Left:
    """The jobs of a run that have not ended. What waits for a failed one does not run, unless that one begins again.

    Args:
        seconds, shares, needs: as of `run_time`.
    """

    def __init__(self, seconds: Mapping[int, float], shares: Mapping[int, float], needs: Numbers) -> None:
        self._left, self._shares = dict(seconds), shares
        self._dropped: dict[int, dict[int, float]] = {}  # by the job that failed
        self._waiting: dict[int, list[int]] = defaultdict(list)
        for number, needed in needs.items():
            for one in needed:
                self._waiting[one].append(number)
        self._count()

    def _count(self) -> None:
        """Note sums, which are asked for at each of what may be tens of thousands of jobs."""
        self._whole = sum(time * self._shares[number] for number, time in self._left.items())
        self._chains = _chains(self._left, self._waiting)
        self._longest = [(-time, number) for number, time in self._chains.items()]
        heapq.heapify(self._longest)

    @property
    def seconds(self) -> float:
        """That all of them take."""
        while self._longest and self._longest[0][1] not in self._left:
            heapq.heappop(self._longest)
        return max(self._whole, -self._longest[0][0]) if self._longest else 0.0

    def after(self, elapsed: Mapping[int, float]) -> float:
        """Seconds that all of them still take, now that those which run have taken *elapsed* seconds, by number."""
        left, chains = list(self._left.items()), self._chains  # a display asks in a thread of its own
        past = {number: min(elapsed.get(number, 0.0), time) for number, time in left}
        whole = sum((time - past[number]) * self._shares[number] for number, time in left)
        return max([whole, *(chains[number] - past[number] for number, _ in left)])

    def begin(self, number: int) -> None:
        """A job begins; after a failure once more."""
        if number in self._dropped:
            self._left |= self._dropped.pop(number)
            self._count()

    def end(self, number: int) -> None:
        """A job ended well."""
        if number in self._left:
            self._whole -= self._left.pop(number) * self._shares[number]

    def fail(self, number: int) -> None:
        """A job failed."""
        dropped, waiting = self._dropped.setdefault(number, {}), [number]
        while waiting:
            one = waiting.pop()
            if one in self._left:
                dropped[one] = self._left.pop(one)
                waiting += self._waiting[one]
        self._count()
