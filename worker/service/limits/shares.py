"""Fair shares of the device: whoever had less of it, for their weight, is next.

Each caller has an account of seconds, divided by their weight. One who comes while others have work here begins where
the least of those stands, so that nobody saves up seconds by being away; once nobody has work, all begin anew.
"""

from collections import Counter
from collections.abc import Callable, Sequence


class Shares:
    """The accounts of callers. Used on one event loop. `weight` is that of a caller's share."""

    def __init__(self, weight: Callable[[str | None], float] = lambda caller: 1.0) -> None:
        self._weight = weight
        self._seconds: dict[str | None, float] = {}
        self._present: Counter[str | None] = Counter()

    def enter(self, caller: str | None) -> None:
        """Note that a job of this caller waits or is worked on, until `leave`."""
        if not self._present:
            self._seconds.clear()
        if caller not in self._present:
            least = min(map(self.had, self._present), default=0.0)
            self._seconds[caller] = max(self.had(caller), least)
        self._present[caller] += 1

    def leave(self, caller: str | None) -> None:
        """Note that a job of this caller is over."""
        self._present[caller] -= 1
        if not self._present[caller]:
            del self._present[caller]

    def charge(self, caller: str | None, seconds: float) -> None:
        """Add seconds of the device to a caller's account."""
        self._seconds[caller] = self.had(caller) + seconds / self._weight(caller)

    def had(self, caller: str | None) -> float:
        """Return the seconds on a caller's account, for their weight."""
        return self._seconds.get(caller, 0.0)

    def turns(self, callers: Sequence[str | None]) -> list[int]:
        """Return the order, as indexes, in which equal jobs of these callers come: in turns, by their weights."""
        before: Counter[str | None] = Counter()
        places = []
        for index, caller in enumerate(callers):
            places.append((before[caller] / self._weight(caller), self.had(caller), index))
            before[caller] += 1
        return [index for *_, index in sorted(places)]
