"""When a worker's memory is searched and given back."""

import asyncio
import gc
import subprocess
import sys

import pytest

from tests.waiting import until_true
from worker.app import memory
from worker.service.limits.pools import Pool


@pytest.fixture
def told(monkeypatch):
    """What was done, in order; nothing of it is done to the process of the tests."""
    told = []
    monkeypatch.setattr(memory, "_LOOK_EVERY_S", 0.005)
    for name in ("collect", "freeze", "set_threshold"):
        monkeypatch.setattr(gc, name, lambda *values, name=name: told.append(name))
    monkeypatch.setattr(memory, "_give_back", lambda: told.append("give back"))
    return told


async def test_memory_is_given_back_once_after_jobs_and_never_beside_one(told):
    taken, inside = 0, 0
    tidying = asyncio.create_task(memory.tidy(lambda: taken, lambda: inside, Pool("own", 1)))
    await until_true(lambda: told == ["set_threshold", "collect", "freeze"])
    told.clear()
    taken, inside = 5, 1
    await asyncio.sleep(0.1)
    assert told == []
    inside = 0
    await until_true(lambda: len(told) == 2)
    await asyncio.sleep(0.1)
    assert told == ["collect", "give back"]
    tidying.cancel()


def test_memory_can_be_given_back():
    memory._give_back()


def test_what_buffers_took_can_be_kept_for_the_next_job():
    asked = "from worker.app.memory import keep_buffers; keep_buffers(); keep_buffers(); print('kept')"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "kept\n"
