"""The clock of a job's executionTimeout: it counts while there is work on the job, not while it waits."""

import asyncio
import time
from collections.abc import Callable


class ExecutionClock:
    """Calls `expire` once a job was worked on for `limit_s` seconds. Used on one event loop."""

    def __init__(self, limit_s: float, expire: Callable[[], None]) -> None:
        self._left_s = limit_s
        self._expire = expire
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def go(self) -> None:
        """Count from now on, if this does not yet."""
        if self._timer is None:
            self._since = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._left_s), self._expire)

    def pause(self) -> None:
        """Count no more until the next `go`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left_s -= time.monotonic() - self._since
