"""Time-boxed training: a clock that sets the learning rate, and a running average of the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Clock:
    """Wall-clock schedule: rise over the first steps, hold, then fall to nothing over the last part of the time."""

    def __init__(
        self, minutes: float, spent_minutes: float = 0.0, fall: float = 0.5, report_seconds: float = 30
    ) -> None:
        self._seconds = minutes * 60
        self._start = time.time() - spent_minutes * 60
        self._fall = fall
        self._report_seconds = report_seconds
        self._last_report = time.time()

    def fraction(self) -> float:
        """Return how much of the time is spent, 0..1 and beyond."""
        return (time.time() - self._start) / self._seconds

    def minutes(self) -> float:
        """Return the minutes spent."""
        return (time.time() - self._start) / 60

    def rate(self, step: int, rise: int = 50) -> float:
        """Return the factor of the learning rate for this moment."""
        left = max(0.0, 1 - self.fraction())
        return min(1.0, (step + 1) / rise) * max(0.01, min(1.0, left / self._fall))

    def due(self) -> bool:
        """Say whether it is time for a report and a checkpoint, and start waiting for the next."""
        if time.time() - self._last_report < self._report_seconds:
            return False
        self._last_report = time.time()
        return True


class ExponentialAverage:
    """A running average of parameters, young at first, with a memory of ``horizon`` updates later."""

    def __init__(self, parameters: Sequence[Tensor], horizon: int = 20) -> None:
        self._parameters = list(parameters)
        self.shadow = [p.detach().clone() for p in self._parameters]
        self.updates = 0
        self._horizon = horizon

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.updates += 1
        weight = max(1 / self._horizon, 1 / (1 + self.updates / 4))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self._parameters], weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the average in place of the weights for the duration."""
        kept = [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            for parameter, average in zip(self._parameters, self.shadow, strict=True):
                parameter.copy_(average)
            try:
                yield
            finally:
                for parameter, weights in zip(self._parameters, kept, strict=True):
                    parameter.copy_(weights)
