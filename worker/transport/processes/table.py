"""The processes behind the port, and how busy each of them is."""

import asyncio
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

# A process reports its jobs this often; a request counts as a job of its process until the next report has come.
REPORT_S = 0.05
_RECENT_S = 3 * REPORT_S


@dataclass(slots=True)
class Process:
    """One worker process. `load` is the number of its jobs under way; None while it does not listen."""

    number: int
    address: Path
    load: int | None = None
    sent: deque[float] = field(default_factory=deque)

    def busy(self, now: float) -> int:
        """Return the number of its jobs, those included that were sent to it just now."""
        while self.sent and self.sent[0] < now - _RECENT_S:
            self.sent.popleft()
        return (self.load or 0) + len(self.sent)


class ProcessTable:
    """The processes by number, from 1 on. Used on one event loop."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = {process.number: process for process in processes}
        self._last = 0
        self._changed = asyncio.Event()

    @property
    def listening(self) -> list[Process]:
        """The processes that listen."""
        return [process for process in self._processes.values() if process.load is not None]

    def report(self, number: int, load: int | None) -> None:
        """Note the number of jobs of a process; None for one that ended."""
        self._processes[number].load = load
        self._changed.set()

    def owner(self, number: int | None, key: str | None) -> int | None:
        """Return the number of the one process that can answer; None if any can, or if there is none of this number."""
        if number is not None:
            return number if number in self._processes else None
        return 1 + zlib.crc32(key.encode("latin-1")) % len(self._processes) if key is not None else None

    async def choose(self, number: int | None, within_s: float) -> Process | None:
        """Return this process, or without a number the least busy one; None if none listens `within_s` seconds."""
        ends = time.monotonic() + within_s
        while True:
            allowed = [process for process in self.listening if number in (None, process.number)]
            if allowed:
                return self._least_busy(allowed)
            self._changed.clear()
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                return None

    def _least_busy(self, allowed: list[Process]) -> Process:
        """Of equally busy processes they take turns."""
        now, count = time.monotonic(), len(self._processes)
        chosen = min(allowed, key=lambda process: (process.busy(now), (process.number - self._last - 1) % count))
        self._last = chosen.number
        return chosen
