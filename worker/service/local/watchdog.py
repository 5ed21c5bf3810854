"""The watchdog of the engine's thread: how long each phase of its work may take without a sign of life.

What runs in that thread cannot be interrupted, so all that is left to do for an engine that does not answer is to say
so, to take no more jobs, and to have the worker replaced.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.core.errors import DeviceLost, Overloaded
from worker.core.result import Progress

_LOG = logging.getLogger("worker")
# No disk that models are loaded from is slower: a load of many gigabytes has its time, and one of few has not.
_BYTES_PER_S = 50e6
# Importing the libraries and waking a device takes longer than a step, on a slow disk.
_BUILDS = 3.0
# The time in which an engine that was given up on may still answer before the worker counts as lost.
GRACE_S = 30.0
LOOK_EVERY_S = 1.0
_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class _Phase:
    name: str
    began: float
    budget_s: float


class Watchdog:
    """Hears every sign of life of the engine's thread. `silence_s` is the longest that a step may take without one."""

    def __init__(self, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence_s = silence_s
        self._clock = clock
        self._phase: _Phase | None = None

    def begin(self, *, builds: bool) -> None:
        """Note that work begins; with `builds` it is the engine itself that is built."""
        name, factor = ("being built", _BUILDS) if builds else ("at work", 1.0)
        self._phase = _Phase(name, self._clock(), self._silence_s * factor)

    def hear(self, progress: Progress, model_bytes: int = 0) -> None:
        """Note a sign of life. `model_bytes` are those that a load may have to read."""
        loads = progress.phase == "load" and progress.step < progress.total
        name, budget_s = ("loading a model", model_bytes / _BYTES_PER_S) if loads else ("at work", 0.0)
        self._phase = _Phase(name, self._clock(), self._silence_s + budget_s)

    def end(self) -> None:
        """Note that the engine's thread is free."""
        self._phase = None

    @property
    def overdue_s(self) -> float:
        """Seconds for which the engine's present phase has been over its budget; 0 within it."""
        phase = self._phase
        return max(0.0, self._clock() - phase.began - phase.budget_s) if phase is not None else 0.0

    @property
    def complaint(self) -> str | None:
        """A sentence about an engine that does not answer; None of one that does."""
        phase = self._phase
        if phase is None or self.overdue_s <= 0:
            return None
        return (
            f"The engine has been {phase.name} for {self._clock() - phase.began:.0f} seconds without a sign of life, "
            f"{phase.budget_s:.0f} are its limit; this worker is about to be replaced."
        )

    def check(self) -> None:
        """Refuse work for an engine that does not answer. Raises Overloaded, which is retryable."""
        complaint = self.complaint
        if complaint is not None:
            raise Overloaded(
                f"{complaint} Send the job again in {_RETRY_AFTER_S} seconds.",
                details={"retry_after_s": _RETRY_AFTER_S},
            )

    async def watch(self, is_lost: Callable[[], bool], give_up: Callable[[DeviceLost], None]) -> None:
        """Call `give_up` once the engine is GRACE_S seconds over its budget; return once it is lost, also otherwise."""
        said = False
        while not is_lost():
            complaint = self.complaint
            if complaint is not None and self.overdue_s >= GRACE_S:
                give_up(DeviceLost(complaint))
                return
            if complaint is not None and not said:
                _LOG.error("%s", complaint)
            said = complaint is not None
            await asyncio.sleep(LOOK_EVERY_S)
