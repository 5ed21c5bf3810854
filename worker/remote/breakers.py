"""A circuit breaker for each replica: one that fails is left alone for a while, longer each time."""

import time
from collections.abc import Callable

from worker.remote.replica import Health

FAILURES = 3  # in a row
FIRST_REST_S = 2.0
LONGEST_REST_S = 60.0


class Breaker:
    """Counts one replica's failures. After FAILURES in a row it rests; then one job tries it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0
        self._trying = False

    @property
    def health(self) -> Health:
        """Whether it may be sent a job: `trying` allows one, and rests while that is under way."""
        if self._failures < FAILURES:
            return "well"
        return "resting" if self._trying or self._clock() < self._rests_until else "trying"

    def began(self) -> None:
        """Note that a job is sent."""
        if self._failures >= FAILURES:
            self._trying = True

    def succeeded(self) -> None:
        """Note an answer, of whatever kind: the replica is there."""
        self._failures, self._trying = 0, False

    def failed(self) -> None:
        """Note that the replica could not be reached, or failed by itself."""
        self._failures += 1
        self._trying = False
        if self._failures >= FAILURES:
            rest = FIRST_REST_S * 2 ** (self._failures - FAILURES)
            self._rests_until = self._clock() + min(rest, LONGEST_REST_S)

    def rest(self, seconds: float) -> None:
        """Leave the replica alone for so long, as it asked."""
        self._failures = max(self._failures, FAILURES)
        self._rests_until = max(self._rests_until, self._clock() + min(seconds, LONGEST_REST_S))
