"""When to send: a provider's pace, the wait after a failure, and the breaker that leaves a broken provider alone."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from image_client.errors import ImageClientError, ProviderUnavailable, RateLimited
from image_client.providers.provider import Pace

LONGEST_BACKOFF = 30.0
# So many failures one after another open the breaker, for so many seconds.
FAILURES, OPEN_SECONDS = 8, 15.0


def now() -> float:
    """Return the event loop's clock in seconds; it never goes back."""
    return float(asyncio.get_running_loop().time())


def backoff(number: int) -> float:
    """Return the seconds to wait after attempt `number`: doubled each time, and spread so that callers do not meet."""
    return random.uniform(0.5, 1.0) * min(LONGEST_BACKOFF, 0.5 * 2.0 ** (number - 1))  # noqa: S311


async def pause(seconds: float, deadline: float, otherwise: ImageClientError) -> None:
    """Sleep, or raise `otherwise` at once where the deadline would come first."""
    if now() + seconds > deadline:
        raise otherwise
    await asyncio.sleep(seconds)


@dataclass(slots=True)
class Pacer:
    """Lets requests start no faster than the provider allows, and none while it has told us to wait."""

    pace: Pace
    provider: str
    held_until: float = 0.0
    starts: deque[float] = field(default_factory=deque)

    def hold(self, seconds: float) -> None:
        """Let nobody start for so many seconds."""
        self.held_until = max(self.held_until, now() + seconds)

    async def turn(self, deadline: float) -> None:
        """Wait until a request may start. Raises RateLimited where that is after the deadline."""
        while (wait := self._wait()) > 0:
            late = RateLimited(
                f"{self.provider} takes no more requests for {wait:.0f} s, which is after the deadline.",
                retry_after=wait,
                provider=self.provider,
            )
            spread = random.uniform(0, min(wait, 1.0) / 4)  # noqa: S311
            await pause(wait + spread, deadline, late)
        self.starts.append(now())

    def _wait(self) -> float:
        held = self.held_until - now()
        if self.pace.starts is None:
            self.starts.clear()
            return held
        while self.starts and self.starts[0] <= now() - self.pace.window:
            self.starts.popleft()
        full = len(self.starts) >= self.pace.starts
        return max(held, self.starts[0] + self.pace.window - now() if full else 0.0)


class BreakerOpen(ProviderUnavailable):
    """Nothing is sent: the provider has failed so often that it is left alone until `retry_after` has passed."""


@dataclass(slots=True)
class Breaker:
    """Opens after several failures in a row; then one request tries whether the provider is back."""

    provider: str
    clock: Callable[[], float] = now
    failures: int = 0
    opened_at: float | None = None
    trying: bool = False

    def enter(self) -> None:
        """Let a request through, or raise BreakerOpen."""
        if self.opened_at is None:
            return
        left = self.opened_at + OPEN_SECONDS - self.clock()
        if left <= 0 and not self.trying:
            self.trying = True
            return
        message = f"{self.provider} failed {self.failures} times in a row and is left alone for a while."
        raise BreakerOpen(message, retry_after=max(left, 1.0), provider=self.provider)

    def well(self) -> None:
        """The provider answered."""
        self.failures, self.opened_at, self.trying = 0, None, False

    def failed(self) -> None:
        """The provider did not answer, or broke."""
        self.failures += 1
        if self.trying or self.failures >= FAILURES:
            self.opened_at, self.trying = self.clock(), False

    def left(self) -> None:
        """The request that tried was taken back before it was answered."""
        self.trying = False
