"""Places that jobs hold at the device: whoever has the fewest, for their weight, gets the next one."""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable


class Places:
    """A number of places. Used on one event loop. `weight` is that of a caller's share."""

    def __init__(self, count: int, weight: Callable[[str | None], float] = lambda caller: 1.0) -> None:
        self._free = count
        self._weight = weight
        self._held: Counter[str | None] = Counter()
        self._waiting: dict[str | None, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._numbers = itertools.count()

    async def take(self, caller: str | None) -> None:
        """Wait for a place, and hold it until `give_back`."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append((next(self._numbers), place))
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given, and whom it was for has just gone
                self.give_back(caller)
            raise

    def give_back(self, caller: str | None) -> None:
        """Give a place back, to whoever is next."""
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            caller = min(self._waiting, key=self._rank)
            _, place = self._waiting[caller].popleft()
            if not self._waiting[caller]:
                del self._waiting[caller]
            if place.done():  # who waited is gone
                continue
            self._free -= 1
            self._held[caller] += 1
            place.set_result(None)

    def _rank(self, caller: str | None) -> tuple[float, int]:
        return self._held[caller] / self._weight(caller), self._waiting[caller][0][0]
