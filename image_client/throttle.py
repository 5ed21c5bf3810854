"""How many requests are in flight: as many as were allowed, and fewer while the provider says that it is too much."""

import asyncio
from collections import deque

from image_client.options import Attempt


class Throttle:
    """At most `ceiling` at once. A 429 halves what is allowed, each round of images without one allows one more.

    Requests that began before the last cut do not cut again: fifty refusals of one moment say one thing. While the
    provider names a time to wait, none begins. It belongs to one event loop.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.allowed = float(ceiling)
        self.lowest = ceiling
        self.in_flight = 0
        self.most_in_flight = 0
        self._cuts = 0
        self._began: dict[str, int] = {}  # request id → cuts at its beginning
        self._closed_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, request_id: str) -> None:
        """Wait for a place; places are given in the order in which they were asked for."""
        if self._waiting or not self._open():
            await self._wait()
        else:
            self._count()
        self._began[request_id] = self._cuts

    def leave(self, request_id: str) -> None:
        """Give the place back."""
        self._began.pop(request_id, None)
        self.in_flight -= 1
        self._let_in()

    def hear(self, attempt: Attempt) -> None:
        """Adapt to an answer; to be called on the event loop."""
        if attempt.outcome == "image":
            self.allowed = min(float(self.ceiling), self.allowed + 1 / max(1.0, self.allowed))
            self._let_in()
        elif attempt.outcome == "rate_limited":
            if self._began.get(attempt.request_id, self._cuts) >= self._cuts:
                self.allowed = max(1.0, self.allowed / 2)
                self.lowest = min(self.lowest, int(self.allowed))
                self._cuts += 1
            if attempt.wait:
                self._close(attempt.wait)

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever lets it in has counted it
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.in_flight -= 1
                self._let_in()
            raise

    def _open(self) -> bool:
        return self.in_flight < int(self.allowed) and asyncio.get_running_loop().time() >= self._closed_until

    def _count(self) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _let_in(self) -> None:
        while self._waiting and self._open():
            turn = self._waiting.popleft()
            if not turn.done():
                self._count()
                turn.set_result(None)

    def _close(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if until > self._closed_until:
            self._closed_until = until
            loop.call_at(until, self._reopen, until)

    def _reopen(self, until: float) -> None:
        if self._closed_until == until:  # nobody has closed it for longer meanwhile
            self._closed_until = 0.0
            self._let_in()
