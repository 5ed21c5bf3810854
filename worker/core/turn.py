"""One caller's turn: whose work is under way, until when, and where it waited.

The turn is a context variable, copied into every task and thread of a job, so that whatever waits knows its end.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from worker.core.errors import JobCancelled, JobTimeout


class StopSignal:
    """Cancel and deadline of one job. Set from any thread, read by the engine at every step.

    `began` is the time on time.monotonic's clock from which the deadline counts; by default now.
    """

    def __init__(self, timeout_s: float = inf, began: float | None = None) -> None:
        self._cancelled = threading.Event()
        self._began = time.monotonic() if began is None else began
        self._timeout_s = timeout_s
        self._on_cancel: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self.shut_down = False  # True if the worker stops the job, and not its caller

    def cancel(self) -> None:
        """Ask the job to stop at its next step."""
        with self._lock:
            self._cancelled.set()
            calls, self._on_cancel = self._on_cancel, []
        for call in calls:
            call()

    def limit(self, timeout_s: float) -> None:
        """Bring the deadline forward to `timeout_s` seconds after the beginning; it is never put off."""
        self._timeout_s = min(self._timeout_s, timeout_s)

    @contextmanager
    def on_cancel(self, call: Callable[[], None]) -> Iterator[None]:
        """Have `call` called by `cancel` while the block inside runs; at once if the job is cancelled already."""
        with self._lock:
            late = self._cancelled.is_set()
            if not late:
                self._on_cancel.append(call)
        if late:
            call()
        try:
            yield
        finally:
            with self._lock:
                if call in self._on_cancel:
                    self._on_cancel.remove(call)

    @property
    def cancelled(self) -> bool:
        """True if the caller took the job back."""
        return self._cancelled.is_set()

    @property
    def remaining_s(self) -> float:
        """Seconds left until the deadline; negative once it passed, infinite without one."""
        return self._began + self._timeout_s - time.monotonic()

    @property
    def reason(self) -> JobCancelled | JobTimeout | None:
        """The error for which the job has to stop; None while it may go on."""
        if self.cancelled:
            return JobCancelled("The job was cancelled.")
        return self.timed_out() if self.remaining_s <= 0 else None

    def check(self) -> None:
        """Raise JobCancelled or JobTimeout when the job has to stop."""
        reason = self.reason
        try:
            if reason is not None:
                raise reason
        finally:
            del reason  # its traceback holds this frame: a circle otherwise, and in it the job

    def timed_out(self) -> JobTimeout:
        """Return the error of a job whose deadline passed."""
        return JobTimeout(
            f"The job did not finish within its timeout_s of {self._timeout_s:g} seconds; "
            "raise timeout_s, or ask for fewer steps, fewer images or a smaller size.",
            field="timeout_s",
        )


_SHORTEST_S = 0.01  # a wait below this is the price of a thread


class WorkClock(Protocol):
    """A clock of the work on a job, which does not count while the job waits in a queue."""

    def go(self) -> None:
        """Count from now on."""
        ...

    def pause(self) -> None:
        """Count no more until the next `go`."""
        ...


@dataclass(slots=True)
class Turn:
    """One caller's turn. `waits` are the stretches for which work waited for a free thread, on time.monotonic's clock.

    A caller without a name is one among many: no limit for each caller holds for them.
    """

    caller: str | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    clock: WorkClock | None = None
    waits: list[tuple[float, float]] = field(default_factory=list)
    on_generated: Callable[[], None] = lambda: None
    """Called once the pixels are there, before they are encoded and sent."""

    @property
    def waited(self) -> tuple[tuple[float, float], ...]:
        """The stretches of ten milliseconds and more for which the work waited, in order, each moment once."""
        stretches: list[tuple[float, float]] = []
        for asked_at, began in sorted(self.waits):
            if stretches and asked_at <= stretches[-1][1]:
                stretches[-1] = (stretches[-1][0], max(began, stretches[-1][1]))
            elif began - asked_at >= _SHORTEST_S:
                stretches.append((asked_at, began))
        return tuple(stretches)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let the work clock go while the block inside runs."""
        if self.clock is None:
            yield
            return
        self.clock.go()
        try:
            yield
        finally:
            self.clock.pause()


under_way: ContextVar[Turn | None] = ContextVar("turn", default=None)
"""The turn of the present task or thread; None for the worker's own work."""


@contextmanager
def begun(caller: str | None) -> Iterator[Turn]:
    """Enclose the work for one caller, in the turn under way or a new one."""
    turn = under_way.get()
    if turn is not None:
        yield turn
        return
    token = under_way.set(turn := Turn(caller))
    try:
        yield turn
    finally:
        under_way.reset(token)


def current() -> Turn:
    """Return the turn under way; for the worker's own work one without an end."""
    return under_way.get() or Turn()
