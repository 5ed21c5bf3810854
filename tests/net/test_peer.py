"""The events of another server, however they are cut into pieces on their way."""

import asyncio
from types import SimpleNamespace

import pytest

from worker.net.peer import _blocks

SENT = b": still there\n\nid: 1\nevent: progress\ndata: {}\n\nid: 2\nevent: result\ndata: " + b"x" * 3_000 + b"\n\n"
EVENTS = [
    (b": still there", b""),
    (b"id: 1\nevent: progress\n", b"{}"),
    (b"id: 2\nevent: result\n", b"x" * 3_000),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 14, 50, 1_000, 10_000])
async def test_events_are_whole_wherever_their_pieces_end(size):
    async def pieces():
        for start in range(0, len(SENT), size):
            await asyncio.sleep(0)
            yield SENT[start : start + size]

    response = SimpleNamespace(content=SimpleNamespace(iter_any=pieces))
    assert [event async for event in _blocks(response, 60)] == EVENTS
