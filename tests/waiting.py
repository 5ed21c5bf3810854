"""Waiting for what will happen, on a machine of any speed: the event ends it, and only a fault comes to the limit."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from websockets.sync import client

T = TypeVar("T")

LIMIT_S = 120.0
# A WebSocket's own limit for its handshake is ten seconds.
connect = partial(client.connect, open_timeout=LIMIT_S)


def until(reached: Callable[[], T], said: Callable[[], object] = str) -> T:
    """The first answer of `reached` that is true. At the limit the test fails with what is `said`."""
    ends = time.monotonic() + LIMIT_S
    while not (found := reached()):
        assert time.monotonic() < ends, f"it never came about: {said()}"
        time.sleep(0.01)
    return found


async def until_true(reached: Callable[[], T]) -> T:
    """The first answer of `reached` that is true, while the loop of the test goes on."""
    async with asyncio.timeout(LIMIT_S):
        while not (found := reached()):
            await asyncio.sleep(0.005)
    return found


async def settled() -> None:
    """Let this loop do all that it can do now. What waits for a thread, a socket or a time goes on waiting."""
    for _ in range(100):
        await asyncio.sleep(0)
