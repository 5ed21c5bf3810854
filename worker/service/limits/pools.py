"""Bulkheads: for each kind of blocking work threads of its own, so that no kind can hold up another.

Work that waits for somebody else's server has many threads, which cost little while they wait. Work for the processor
has few. Of a pool that is full, the next thread goes to whoever has the fewest, so one caller or one server delays
itself. Nothing uses asyncio's own threads, which all kinds of work would share.

At its deadline, and when it is cancelled, a caller is free at once. Work that waits is never begun then; work that has
begun keeps its thread until it stops.
"""

import asyncio
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field, fields
from functools import partial
from math import inf
from typing import Any, TypeVar

from worker.core.errors import WorkerError
from worker.core.turn import Turn, current

T = TypeVar("T")

WAITING_THREADS = 128
CPU_THREADS = max(4, os.cpu_count() or 1)
SHARE = 0.75  # of a pool's threads, for one caller or one server
_IDLE_S = 30.0  # after which a thread without work ends


@dataclass(slots=True, eq=False)
class _Errand:
    """One piece of work, for a caller, at a server: "" stands for none."""

    work: Callable[[], Any]
    turn: Turn
    place: str
    grace_until: float
    context: Context = field(default_factory=copy_context)
    future: "Future[Any]" = field(default_factory=Future)
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def reason(self) -> WorkerError | None:
        """The error for which the work is not to be done; None while it is."""
        stop = self.turn.stop
        return stop.reason if stop.cancelled or time.monotonic() >= self.grace_until else None

    def check(self) -> None:
        """Raise JobCancelled or JobTimeout if the work is not to be done."""
        reason = self.reason
        try:
            if reason is not None:
                raise reason
        finally:
            del reason  # its traceback holds this frame: a circle otherwise, and in it the job


class Pool:
    """Up to `threads` threads for one kind of work, of which one caller or one server gets three quarters.

    The threads are daemons and end when idle: a read that hangs must not hold up the end of the process. Safe to use
    from any event loop.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self.share = max(1, int(threads * SHARE))
        self._lock = threading.Lock()
        self._waiting: list[_Errand] = []
        self._begun: queue.SimpleQueue[_Errand] = queue.SimpleQueue()
        self._active = 0
        self._alive = 0
        self._of_caller: Counter[str] = Counter()
        self._of_place: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """The number of threads that work."""
        return self._active

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a thread."""
        return len(self._waiting)

    async def run(self, work: Callable[..., T], *args: object, place: str = "", grace_s: float = 0.0) -> T:
        """Run `work` in a thread; `place` is the server that it waits for. It has `grace_s` seconds even after the end.

        The wait for a thread is added to the turn under way. Raises JobTimeout at the turn's deadline, JobCancelled.
        """
        turn = current()
        errand = _Errand(partial(work, *args), turn, place, time.monotonic() + grace_s)
        errand.check()
        answer: asyncio.Future[T] = asyncio.wrap_future(errand.future)  # first: a thread may settle it at once
        self._add(errand)
        answer.add_done_callback(_retrieved)  # whoever asked may be gone
        remaining_s = max(turn.stop.remaining_s, grace_s)
        try:
            await asyncio.wait({answer}, timeout=None if remaining_s == inf else max(0.0, remaining_s))
        finally:
            self._leave(errand)
        if not answer.done() or answer.cancelled():
            raise turn.stop.reason or turn.stop.timed_out()
        try:
            return answer.result()
        finally:
            del answer  # it holds what it raises, whose traceback holds this frame

    def _add(self, errand: _Errand) -> None:
        with self._lock:
            self._waiting.append(errand)
            self._begin()

    def _leave(self, errand: _Errand) -> None:
        with self._lock:
            if errand in self._waiting:
                self._waiting.remove(errand)
                errand.future.cancel()

    def _begin(self) -> None:
        """Give every free thread its next work. Holds the lock."""
        while self._active < self.threads and (errand := self._next()) is not None:
            self._waiting.remove(errand)
            errand.future.set_running_or_notify_cancel()
            self._count(errand, 1)
            self._begun.put(errand)
            if self._alive < self._active:
                self._alive += 1
                threading.Thread(target=self._work, name=self.name, daemon=True).start()

    def _next(self) -> _Errand | None:
        """Return the first of those who have the fewest threads; None if all have their share."""
        free = [errand for errand in self._waiting if max(self._held(errand)) < self.share]
        return min(free, key=self._held, default=None)

    def _held(self, errand: _Errand) -> tuple[int, int]:
        caller, place = errand.turn.caller, errand.place
        return self._of_caller[caller] if caller else 0, self._of_place[place] if place else 0

    def _count(self, errand: _Errand, change: int) -> None:
        self._active += change
        for counter, name in ((self._of_caller, errand.turn.caller), (self._of_place, errand.place)):
            if name:
                counter[name] += change
                if not counter[name]:
                    del counter[name]

    def _work(self) -> None:
        while True:
            try:
                errand = self._begun.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._begun.empty():
                        self._alive -= 1
                        return
                continue
            outcome = errand.context.run(_outcome, errand)
            with self._lock:
                self._count(errand, -1)
                self._begin()
            _settle(errand, outcome)
            del errand, outcome  # or an idle thread would keep them


@dataclass(frozen=True, slots=True)
class Pools:
    """The pools of a worker, one for each kind of blocking work."""

    checks: Pool = field(default_factory=lambda: Pool("checks", CPU_THREADS))
    """Requests that need neither a server nor an image."""
    headers: Pool = field(default_factory=lambda: Pool("headers", WAITING_THREADS))
    """What a model or an adapter is: listings, JSON and headers of files."""
    images: Pool = field(default_factory=lambda: Pool("images", WAITING_THREADS))
    """Images and videos that callers link to."""
    decoding: Pool = field(default_factory=lambda: Pool("decoding", CPU_THREADS))
    downloads: Pool = field(default_factory=lambda: Pool("downloads", WAITING_THREADS))
    """Files of models and adapters, fetched if need be."""
    files: Pool = field(default_factory=lambda: Pool("files", CPU_THREADS))
    """Files that are known to be on disk."""
    encoding: Pool = field(default_factory=lambda: Pool("encoding", CPU_THREADS))
    uploads: Pool = field(default_factory=lambda: Pool("uploads", WAITING_THREADS))
    webhooks: Pool = field(default_factory=lambda: Pool("webhooks", WAITING_THREADS // 4))
    own: Pool = field(default_factory=lambda: Pool("own", 4))
    """The worker's own files: usage, keys, models.yaml."""

    @property
    def all(self) -> tuple[Pool, ...]:
        """Every pool."""
        return tuple(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


def _outcome(errand: _Errand) -> Any:
    """Do the work, and return its result or its failure; that of an end which came first is the end itself."""
    errand.turn.waits.append((errand.asked_at, time.monotonic()))
    try:
        errand.check()
        return errand.work()
    except BaseException as error:
        return _Failure(errand.reason or error)


def _settle(errand: _Errand, outcome: Any) -> None:
    """Hand the outcome over. The errand lets go of it: a failure's traceback holds the errand, and with it a job."""
    future, errand.future = errand.future, Future()
    if isinstance(outcome, _Failure):
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome)


def _retrieved(answer: "asyncio.Future[Any]") -> None:
    if not answer.cancelled():
        answer.exception()
