"""Shares of the pixels that are decoded at once: never more than there are, the small ones first, each given back."""

import asyncio
import contextlib

import pytest

from tests.waiting import settled
from worker.core.errors import JobTimeout
from worker.core.turn import StopSignal, Turn, under_way
from worker.service.limits.pixels import PixelBudget


async def test_no_more_are_held_than_there_are_and_a_small_job_overtakes():
    budget, order, held, most = PixelBudget(100), [], 0, 0

    async def job(pixels):
        nonlocal held, most
        async with budget.share(pixels):
            held += min(pixels, 100)
            most = max(most, held)
            order.append(pixels)
            await settled()
            held -= min(pixels, 100)

    await asyncio.gather(*map(job, (60, 70, 1_000, 80, 40, 5)))
    assert most <= 100
    assert sorted(order) == [5, 40, 60, 70, 80, 1_000]
    assert order[:3] == [60, 40, 5] or order[:3] == [60, 5, 40]
    assert order[-1] == 1_000, "alone, after all others"
    async with budget.share(100):
        assert budget.waiting == 0


async def test_the_deadline_ends_a_wait_and_the_place_is_left():
    budget = PixelBudget(10)
    async with budget.share(10):
        turn = Turn(stop=StopSignal(0.05))
        token = under_way.set(turn)
        with pytest.raises(JobTimeout):
            async with budget.share(1):
                pytest.fail("it got a share")
        under_way.reset(token)
        assert turn.waits
        assert budget.waiting == 0
    async with budget.share(10):
        pass


async def test_a_share_is_held_until_its_work_has_ended():
    budget, begun, gate = PixelBudget(10), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work():
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

    async def gone():
        async with budget.share(10) as share:
            await asyncio.to_thread(share.held_by(work))

    task = asyncio.create_task(gone())
    await begun.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    other = asyncio.create_task(_take(budget))
    await settled()
    assert not other.done(), "the thread decodes still"
    gate.set()
    await other


async def _take(budget):
    async with budget.share(1):
        pass
