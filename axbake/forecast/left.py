"""How much of a run is left, in seconds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence


class Left:
    """The time of the jobs of a run that have not ended, if none of their results is stored.

    What waits for a job that failed does not run any more, until that job begins again.

    Args:
        seconds: of each job, by number.
        shares: of the run's cores that each takes.
        needs: numbers of the jobs that each waits for.
    """

    def __init__(
        self, seconds: Mapping[int, float], shares: Mapping[int, float], needs: Mapping[int, Sequence[int]]
    ) -> None:
        self._left = {number: time * shares[number] for number, time in seconds.items()}
        self._dropped: dict[int, dict[int, float]] = {}  # by the job that failed
        self._waiting: dict[int, list[int]] = defaultdict(list)
        for number, needed in needs.items():
            for one in needed:
                self._waiting[one].append(number)
        self._total = sum(self._left.values())  # kept: a run may have tens of thousands of jobs, and asks at each

    @property
    def seconds(self) -> float:
        """Of all jobs that are left, together."""
        return max(0.0, self._total)

    def begin(self, number: int) -> None:
        """A job begins; after a failure once more."""
        for one, time in self._dropped.pop(number, {}).items():
            self._left[one] = time
            self._total += time

    def end(self, number: int) -> None:
        """A job ended well."""
        self._total -= self._left.pop(number, 0.0)

    def fail(self, number: int) -> None:
        """A job failed."""
        found, waiting = {}, [number]
        while waiting:
            one = waiting.pop()
            if one in self._left:
                found[one] = self._left.pop(one)
                self._total -= found[one]
                waiting += self._waiting[one]
        self._dropped.setdefault(number, {}).update(found)


def run_time(seconds: Mapping[int, float], shares: Mapping[int, float], needs: Mapping[int, Sequence[int]]) -> float:
    """Seconds that a run of all these jobs takes: of its cores' whole time, and of the longest chain of jobs, the longer.

    Args:
        seconds, shares, needs: as `Left` has them.
    """
    until: dict[int, float] = {}
    for number in seconds:
        chain = [number]
        while chain:  # not by recursion: a chain may be as long as there are jobs
            one = chain[-1]
            missing = [other for other in needs.get(one, ()) if other in seconds and other not in until]
            if missing:
                chain += missing
                continue
            before = max((until[other] for other in needs.get(one, ()) if other in seconds), default=0.0)
            until[one] = before + seconds[one]
            chain.pop()
    whole = sum(time * shares[number] for number, time in seconds.items())
    return max([whole, *until.values()])
