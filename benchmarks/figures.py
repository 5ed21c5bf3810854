"""What a measure finds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Figure:
    """One number: the median of `runs`, and what it should be where that is promised."""

    name: str
    value: float
    unit: str
    runs: int
    at_least: float | None = None
    at_most: float | None = None
    stretch: float | None = None
    """What would be better still."""

    @property
    def promise(self) -> str:
        """The bound in words, and whether it was met; empty where nothing is promised."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}: {'met' if self.value >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            # Less than nothing is noise, and keeps no promise.
            return f"at most {self.at_most:g}: {'met' if 0 <= self.value <= self.at_most else 'MISSED'}"
        return ""


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_of(call: Callable[[], object], runs: int) -> float:
    """How long a call takes, in seconds: the median of so many."""
    return statistics.median(seconds_of(call) for _ in range(runs))
