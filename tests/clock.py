"""Time that a test puts forward, instead of waiting for it or racing it."""

import asyncio
import time

import pytest


class Clock:
    """`time.monotonic`, and with it the time of asyncio's own loops, which goes on and can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = time.monotonic
        self._ahead = 0.0
        monkeypatch.setattr(time, "monotonic", self)

    def __call__(self) -> float:
        return self._real() + self._ahead

    def forward(self, seconds: float) -> None:
        """Let so much time have gone by. A loop in another thread sees it with its next event."""
        self._ahead += seconds

    async def pass_by(self, seconds: float) -> None:
        """Let so much time have gone by on this loop, and all that was due in it happen."""
        self.forward(seconds)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the test."""
    return Clock(monkeypatch)
