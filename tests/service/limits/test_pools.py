"""Pools: who gets the next thread, whom a slow server delays, and what becomes of work that nobody waits for."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from tests.waiting import LIMIT_S, until_true
from worker.core.errors import JobCancelled, JobTimeout
from worker.core.turn import StopSignal, Turn, under_way
from worker.service.limits.pools import Pool


class Gate:
    """Work that stands still until it is let through; keeps the order in which it began and ended."""

    def __init__(self):
        self.begun, self.ended = [], []
        self.open = threading.Event()

    def __call__(self, name):
        self.begun.append(name)
        assert self.open.wait(LIMIT_S)
        self.ended.append(name)
        return name


async def asked(pool, gate, name, *, caller=None, place="", timeout_s=60.0):
    """Ask for work as one caller, in a task of its own."""
    turn = Turn(caller, StopSignal(timeout_s))

    async def ask():
        under_way.set(turn)
        return await pool.run(gate, name, place=place)

    task = asyncio.create_task(ask())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task, turn


async def begun(gate, count):
    async with asyncio.timeout(LIMIT_S):
        while len(gate.begun) < count:
            await asyncio.sleep(0.002)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


async def test_a_caller_gets_three_quarters_of_the_threads_and_the_rest_is_left_to_others(gate):
    pool = Pool("some", 4)
    greedy = [await asked(pool, gate, f"greedy {index}", caller="greedy") for index in range(20)]
    await begun(gate, 3)
    assert (pool.active, pool.waiting) == (3, 17)
    modest, turn = await asked(pool, gate, "modest", caller="modest")
    await begun(gate, 4)
    assert gate.begun[3] == "modest"
    gate.open.set()
    assert await modest == "modest"
    assert [await task for task, _ in greedy] == [f"greedy {index}" for index in range(20)]
    assert (pool.active, pool.waiting) == (0, 0)
    assert all(asked_at <= began for asked_at, began in turn.waits)


async def test_one_slow_server_leaves_threads_to_the_others(gate):
    pool = Pool("some", 4)
    slow = [await asked(pool, gate, "slow", place="slow.example") for _ in range(9)]
    quick, _ = await asked(pool, gate, "quick", place="quick.example")
    await begun(gate, 4)
    assert gate.begun == ["slow"] * 3 + ["quick"]
    gate.open.set()
    await asyncio.gather(quick, *(task for task, _ in slow))


async def test_whoever_has_the_fewest_threads_is_next(gate):
    pool, short = Pool("some", 4), Gate()
    held = [await asked(pool, gate, name, caller=name[0]) for name in ("a1", "a2", "c1")]
    ending, _ = await asked(pool, short, "d1", caller="d")
    await begun(gate, 3)
    waiting = [await asked(pool, gate, name, caller=name[0]) for name in ("a3", "b1")]
    short.open.set()
    await begun(gate, 4)
    assert gate.begun[3] == "b1", "though a3 came first, and a has not all of its share"
    gate.open.set()
    await asyncio.gather(ending, *(task for task, _ in (*held, *waiting)))


async def test_who_leaves_or_is_late_while_waiting_gives_the_place_free_and_is_never_begun(gate):
    pool = Pool("some", 1)
    holding, _ = await asked(pool, gate, "holding")
    await begun(gate, 1)
    leaving, _ = await asked(pool, gate, "leaving")
    late, _ = await asked(pool, gate, "late", timeout_s=0.05)
    assert pool.waiting == 2
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    with pytest.raises(JobTimeout):
        await late
    assert (pool.active, pool.waiting) == (1, 0)
    gate.open.set()
    await holding
    assert gate.begun == ["holding"]


async def test_a_late_caller_is_free_while_the_thread_goes_on_and_keeps_its_place(gate):
    pool = Pool("some", 1)
    while not gate.begun:  # on a busy machine the time may be over before there is a thread
        late, _ = await asked(pool, gate, "late", timeout_s=0.2)
        with pytest.raises(JobTimeout):
            await late
    assert (pool.active, gate.ended) == (1, [])
    following, _ = await asked(pool, gate, "following")
    assert pool.waiting == 1
    gate.open.set()
    assert await following == "following"
    assert gate.ended == ["late", "following"]


async def test_what_fails_because_the_job_is_over_fails_as_the_job_does():
    pool, turn = Pool("some", 1), Turn(stop=StopSignal(60))
    under_way.set(turn)

    def fail():
        turn.stop.cancel()
        raise OSError("the socket was shut")

    with pytest.raises(JobCancelled):
        await pool.run(fail)
    with pytest.raises(JobCancelled):  # and nothing more is begun for it
        await pool.run(pytest.fail)


@pytest.mark.parametrize("how", ["it fails", "it is cancelled before it begins"])
async def test_work_that_failed_is_free_without_a_search(how):
    """A job's images hang on it: garbage that has to be searched for holds them, and everybody up."""

    class Work:
        def __call__(self):
            raise OSError("as it comes")

    async def ask():
        pool, turn, work = Pool("some", 1), Turn(stop=StopSignal(60)), Work()
        under_way.set(turn)
        if how == "it fails":
            answer = pool.run(work)
        else:
            holding, _ = await asked(pool, gate := Gate(), "holding")
            answer = asyncio.create_task(pool.run(work))
            await asyncio.sleep(0)
            turn.stop.cancel()
            gate.open.set()
            await holding
        with pytest.raises((OSError, JobCancelled)):
            await answer
        del answer  # a task holds what it raised, which holds this function
        return weakref.ref(work)

    gc.collect()
    gc.disable()
    try:
        work = await asyncio.create_task(ask())
        await until_true(lambda: work() is None)
    finally:
        gc.enable()


async def test_work_that_is_done_before_anybody_waits_for_it_is_answered(monkeypatch):
    """A busy machine may run the thread to its end first: the caller waited until its deadline then."""
    pool = Pool("tested", 2)
    add = pool._add

    def added(errand):
        add(errand)
        while pool.active:
            time.sleep(0.001)
        assert pool._begun.empty()
        time.sleep(0.02)  # for the thread's last step, of which the pool tells nothing

    monkeypatch.setattr(pool, "_add", added)
    assert await asyncio.wait_for(pool.run(lambda: "done"), LIMIT_S) == "done"


async def test_idle_threads_end(monkeypatch):
    monkeypatch.setattr("worker.service.limits.pools._IDLE_S", 0.01)
    pool, gate = Pool("for the idle", 8), Gate()
    gate.open.set()
    await asyncio.gather(*(pool.run(gate, index) for index in range(8)))
    await until_true(lambda: not any(thread.name == "for the idle" for thread in threading.enumerate()))
    assert await pool.run(gate, "again") == "again"
