"""The worker's budget of pixels: how many may be decoded at once, by all jobs together.

A file of 39 KB may be 16 million pixels, which take 120 MB until they are fitted to the job's size. Jobs wait for their
share before a thread decodes for them, the small ones first: they are served meanwhile where large ones wait.
"""

import asyncio
import heapq
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from math import inf
from typing import ParamSpec, TypeVar

from worker.core.turn import current

P = ParamSpec("P")
T = TypeVar("T")

PIXELS = 2**25  # two of the largest images: about 250 MB while they are decoded


class PixelBudget:
    """Shares of `pixels` for jobs that decode. A job that needs more than there are waits until it is alone.

    Safe to use from any event loop.
    """

    def __init__(self, pixels: int = PIXELS) -> None:
        self._pixels = self._left = pixels
        self._waiting: list[tuple[int, int, Future[None]]] = []
        self._asked = 0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for their share."""
        return sum(not future.done() for _, _, future in self._waiting)

    @asynccontextmanager
    async def share(self, pixels: int) -> AsyncIterator["Share"]:
        """Hold a share, after waiting for it; the wait is added to the turn under way.

        Raises JobTimeout at the turn's deadline, JobCancelled.
        """
        turn, asked_at = current(), time.monotonic()
        share = Share(self, min(pixels, self._pixels), self._ask(min(pixels, self._pixels)))
        try:
            answer = asyncio.wrap_future(share.granted)
            remaining_s = turn.stop.remaining_s
            await asyncio.wait({answer}, timeout=None if remaining_s == inf else max(0.0, remaining_s))
            turn.waits.append((asked_at, time.monotonic()))
            turn.stop.check()
            yield share
        finally:
            share.leave()

    def _ask(self, pixels: int) -> "Future[None]":
        granted: Future[None] = Future()
        with self._lock:
            self._asked += 1
            heapq.heappush(self._waiting, (pixels, self._asked, granted))
            self._grant()
        return granted

    def _grant(self) -> None:
        """Give the smallest that wait their shares, as far as there is room. Holds the lock."""
        while self._waiting and (self._waiting[0][0] <= self._left or self._waiting[0][2].done()):
            pixels, _, granted = heapq.heappop(self._waiting)
            if granted.set_running_or_notify_cancel():
                self._left -= pixels
                granted.set_result(None)

    def give_back(self, share: "Share") -> None:
        """Take a share back, or its place among those who wait."""
        with self._lock:
            if not share.granted.cancel():
                self._left += share.pixels
            self._grant()


class Share:
    """One job's share. Work that it was given to holds it until that has ended, whoever waits no more."""

    def __init__(self, budget: PixelBudget, pixels: int, granted: "Future[None]") -> None:
        self._budget, self.pixels, self.granted = budget, pixels, granted
        self._at_work = False

    def held_by(self, work: Callable[P, T]) -> Callable[P, T]:
        """Return `work`, which gives the share back at its end."""

        def holding(*args: P.args, **options: P.kwargs) -> T:
            self._at_work = True
            try:
                return work(*args, **options)
            finally:
                self._budget.give_back(self)

        return holding

    def leave(self) -> None:
        """Give the share back unless work holds it."""
        if not self._at_work:
            self._budget.give_back(self)
