"""Five hundred clients at once before a gateway whose worker is held: who finds room, and what the others are told."""

import asyncio
from collections import Counter

import aiohttp
import pytest

from tests.fakes.web_worker import WebGateway, WebWorker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIENTS, IN_WORK, WAITING = 500, 8, 92
APPLE = {"prompt": "an apple", "width": 64, "height": 64}


async def test_as_many_as_there_is_room_for_are_answered_and_all_others_told_when_to_come_back(tmp_path):
    limits = {"max_concurrent_jobs": IN_WORK, "max_queued_jobs": WAITING, "timeout_seconds": 600}
    with (
        WebWorker(tmp_path / "worker") as worker,
        WebGateway(tmp_path, {"a": {"url": worker.origin}}, **limits) as gate,
    ):
        engine = worker.context.engine
        engine.gate.clear()
        statuses: Counter[int] = Counter()
        waits = []

        async def ask(session, seed):
            async with session.post("/run", json=APPLE | {"seed": seed}) as answer:
                body = await answer.json()
                statuses[answer.status] += 1
                if answer.status == 429:
                    waits.append(answer.headers["retry-after"])
                    assert body["code"] == "overloaded" and body["details"]["retry_after_s"] == int(waits[-1])
                else:
                    assert body["output"]["seed"] == seed

        try:
            options = {"connector": aiohttp.TCPConnector(limit=0), "timeout": aiohttp.ClientTimeout(total=None)}
            async with aiohttp.ClientSession(gate.origin, **options) as session:
                asked = [asyncio.create_task(ask(session, seed)) for seed in range(CLIENTS)]
                while statuses[429] < CLIENTS - IN_WORK - WAITING:
                    assert not any(task.done() and task.exception() for task in asked)
                    await asyncio.sleep(0.02)
                engine.gate.set()
                await asyncio.gather(*asked)
                left = None  # and it is well afterwards
                while left != {"running": 0, "queued": 0}:
                    async with session.get("/health") as health:
                        left = (await health.json())["jobs"]
        finally:
            engine.gate.set()
    assert statuses == {200: IN_WORK + WAITING, 429: CLIENTS - IN_WORK - WAITING}
    assert all(wait.isdecimal() and int(wait) > 0 for wait in waits)
