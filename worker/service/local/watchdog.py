"""The watchdog of the engine's thread: how long each phase of its work may take without a sign of life.

How long a step and a decoding take is learnt from calls that came to their end: of the same model, size and number of
images. Such a call may take many times as long as those before it, and half a minute at any rate: a card that others
use too, or memory that ran short, makes it slower, never by that much. Everything else has `silence_s`: what is done
for the first time, and all that comes before a first step, where kernels are compiled and prompts encoded.

What runs in that thread cannot be interrupted, so all that is left to do for an engine that does not answer is to say
so, to take no more jobs, and to have the worker replaced.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

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
# Of what is known: how many times longer it may take, and the least that it may.
_TIMES = 20.0
_LEAST_S = 30.0
_MEMORY = 512  # kinds of calls whose pace is remembered
# A watch that comes so late was stopped itself, with the whole process: nobody was silent then.
_STOPPED_S = 10.0


@dataclass(frozen=True, slots=True)
class _Phase:
    name: str
    began: float
    budget_s: float


@dataclass(slots=True)
class _Pace:
    """The longest silences of one kind of call: between two of its steps, and after the last one that it reports."""

    step_s: float = 0.0
    after_s: float = 0.0
    last: int = 10**9

    def budget_s(self, step: int, most_s: float) -> float:
        """Return the budget of the silence after this step."""
        return min(most_s, max(_LEAST_S, _TIMES * (self.step_s if step < self.last else self.after_s)))


@dataclass(slots=True)
class _Call:
    """The pipeline's present call: what kind it is, and what it has shown so far."""

    kind: tuple[str, int, str]
    step: int = 0
    step_s: float = 0.0


class Watchdog:
    """Hears every sign of life of the engine's thread. `silence_s` is the longest that an unknown phase may take."""

    def __init__(self, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence_s = silence_s
        self._clock = clock
        self._phase: _Phase | None = None
        self._call: _Call | None = None
        self._paces: OrderedDict[tuple[str, int, str], _Pace] = OrderedDict()

    def begin(self, *, builds: bool) -> None:
        """Note that work begins; with `builds` it is the engine itself that is built."""
        self._call = None
        name, factor = ("being built", _BUILDS) if builds else ("at work", 1.0)
        self._phase = _Phase(name, self._clock(), self._silence_s * factor)

    def hear(self, progress: Progress, model_bytes: int = 0, work: str = "") -> None:
        """Note a sign of life. `model_bytes` are those that a load may have to read; the same `work` takes as long."""
        now = self._clock()
        if progress.phase == "load":
            self._call = None
            loads = progress.step < progress.total
            name, budget_s = ("loading a model", model_bytes / _BYTES_PER_S) if loads else ("at work", 0.0)
            self._phase = _Phase(name, now, self._silence_s + budget_s)
        else:
            self._phase = _Phase("at work", now, self._after(progress, work, now))

    def finished(self) -> None:
        """Note that the pipeline's call came to its end: how long it takes is known from now on."""
        call, phase, self._call = self._call, self._phase, None
        if call is None or phase is None or not call.step:
            return
        pace = self._paces.setdefault(call.kind, _Pace())
        pace.step_s = max(pace.step_s, call.step_s)
        pace.after_s = max(pace.after_s, self._clock() - phase.began)
        pace.last = min(pace.last, call.step)
        self._paces.move_to_end(call.kind)
        if len(self._paces) > _MEMORY:
            self._paces.popitem(last=False)

    def _after(self, progress: Progress, work: str, now: float) -> float:
        """Return the budget of the silence after a step."""
        kind = (work, progress.total, progress.message)
        if self._call is None or self._call.kind != kind or not progress.step:
            self._call = _Call(kind)
        elif self._call.step and self._phase is not None:
            self._call.step_s = max(self._call.step_s, now - self._phase.began)
        self._call.step = progress.step
        pace = self._paces.get(kind)
        return pace.budget_s(progress.step, self._silence_s) if pace and progress.step else self._silence_s

    def end(self) -> None:
        """Note that the engine's thread is free."""
        self._phase = None

    def forgive(self, seconds: float) -> None:
        """Leave out a time in which the whole process was stopped."""
        phase = self._phase
        if phase is not None:
            self._phase = replace(phase, began=phase.began + seconds)

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
        said, looked = False, self._clock()
        while not is_lost():
            late_s = self._clock() - looked - LOOK_EVERY_S
            looked = self._clock()
            if late_s > _STOPPED_S:
                self.forgive(late_s)
            complaint = self.complaint
            if complaint is not None and self.overdue_s >= GRACE_S:
                give_up(DeviceLost(complaint))
                return
            if complaint is not None and not said:
                _LOG.error("%s", complaint)
            said = complaint is not None
            await asyncio.sleep(LOOK_EVERY_S)
