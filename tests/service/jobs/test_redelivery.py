"""What a queue delivers twice is one job: it joins, or is answered from memory for a while."""

import asyncio

import pytest

from tests.fakes.engine import make_context
from tests.service.jobs.working import Work, asked, image
from tests.waiting import LIMIT_S, settled
from worker.app.queue import build_door
from worker.core.errors import (
    InvalidOutput,
)
from worker.service.jobs.record import JobOptions
from worker.service.jobs.store import JobStore, StoreBounds
from worker.service.usage.log import read_usage


@pytest.fixture
async def work():
    return Work()


DELIVERED = JobOptions(kept=False, replayed=True, redelivered=True)


def queue_store(work, retention_s=60.0, max_bytes=1_000_000):
    return JobStore(work, StoreBounds(retention_s, max_bytes, max_under_way=None))


async def delivered(store, job_id, **params):
    """One delivery, until it is answered."""
    job = store.submit(asked(**params), job_id, DELIVERED)
    try:
        await job.wait(LIMIT_S)
        return job.outcome()
    finally:
        store.leave(job)


async def test_who_joined_can_be_cancelled_alone(work):
    store = queue_store(work)
    first, second = (asyncio.create_task(delivered(store, "a", waits=True)) for _ in range(2))
    await settled()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.go.set()
    assert await first == image()
    assert work.runs == ["a"]
    assert work.stopped == []


async def test_a_delivery_that_all_have_left_stops_and_the_next_one_runs(work):
    store = queue_store(work)
    first = asyncio.create_task(delivered(store, "a", hangs=True))
    await settled()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await settled()
    assert work.stopped == ["a"]
    again = asyncio.create_task(delivered(store, "a", hangs=True))
    await settled()
    assert work.runs == ["a", "a"]
    again.cancel()


async def test_results_are_forgotten_after_their_time(work, clock):
    store = queue_store(work, retention_s=60)
    await delivered(store, "a")
    await clock.pass_by(59)
    await delivered(store, "a")
    assert work.runs == ["a"]
    await clock.pass_by(2)
    await delivered(store, "a")
    assert work.runs == ["a", "a"]


async def test_no_time_means_no_memory(work):
    store = queue_store(work, retention_s=0)
    for _ in range(2):
        await delivered(store, "a")
    assert work.runs == ["a", "a"]


async def test_the_oldest_results_make_room(work):
    store = queue_store(work, max_bytes=250_000)
    for job_id in "abc":
        await delivered(store, job_id, shown="x" * 100_000)
    assert work.runs == ["a", "b", "c"]
    for job_id in "cb":
        await delivered(store, job_id, shown="x" * 100_000)
    assert work.runs == ["a", "b", "c"]
    await delivered(store, "a", shown="x" * 100_000)
    assert work.runs == ["a", "b", "c", "a"]


async def test_a_result_beyond_all_room_is_answered_but_not_kept(work):
    store = queue_store(work, max_bytes=50_000)
    for _ in range(2):
        assert await delivered(store, "a", shown="x" * 100_000) == image("x" * 100_000)
    assert work.runs == ["a", "a"]


async def test_every_job_of_a_queue_is_taken(work):
    store = queue_store(work, max_bytes=1)
    tasks = [asyncio.create_task(delivered(store, name, waits=True)) for name in "abc"]
    await settled()
    work.go.set()
    assert await asyncio.gather(*tasks) == [image()] * 3


@pytest.fixture
def queue(context):
    """Deliver a job to a worker's door, and read what comes back."""
    door = build_door(context.worker, concurrency=8)

    async def deliver(job_id, **fields):
        return await door.handle({"id": job_id, "input": {"prompt": "an apple", **fields}})

    return deliver


async def test_the_same_delivery_later_is_answered_from_memory(context, queue):
    first = await queue("a")
    again = await queue("a")
    assert again["image"] == first["image"]
    assert again["seed"] == first["seed"]  # random, so made once
    assert len(context.engine.ran) == 1


async def test_the_same_delivery_at_the_same_time_joins(context, queue):
    answers = await asyncio.gather(*(queue("a") for _ in range(4)))
    assert len({answer["image"] for answer in answers}) == 1
    assert len(context.engine.ran) == 1


async def test_another_input_or_another_id_is_another_job(context, queue):
    await queue("a", seed=1)
    await queue("a", seed=2)
    await queue("a", seed=1, width=32)
    await queue("b", seed=1)
    assert len(context.engine.ran) == 4


async def test_an_error_is_not_remembered(context, queue):
    context.engine.failures = [InvalidOutput("Black.")]
    assert (await queue("a"))["code"] == "invalid_output"
    assert (await queue("a"))["image"]
    assert len(context.engine.ran) == 2


async def test_an_error_reaches_everyone_who_joined(context, queue):
    context.engine.failures = [InvalidOutput("Black.")]
    answers = await asyncio.gather(*(queue("a") for _ in range(3)))
    assert [answer["code"] for answer in answers] == ["invalid_output"] * 3
    assert len(context.engine.ran) == 1


async def test_a_request_with_broken_text_is_refused_and_not_unforeseen(queue):
    assert (await queue("a", clip_skip="\ud800"))["field"] == "clip_skip"


async def test_who_joined_a_cancelled_delivery_still_gets_a_result(context, queue):
    context.engine.gate.clear()
    first = asyncio.create_task(queue("a"))
    await asyncio.to_thread(context.engine.inside.wait, LIMIT_S)
    others = [asyncio.create_task(queue("a")) for _ in range(3)]
    await settled()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    context.engine.gate.set()
    answers = await asyncio.gather(*others)
    assert len({answer["image"] for answer in answers}) == 1
    assert len(context.engine.ran) == 1  # the work goes on for the others
    await queue("a")
    assert len(context.engine.ran) == 1


async def test_the_operator_decides_how_long(tmp_path):
    context = make_context(tmp_path, result_cache_seconds=0)
    door = build_door(context.worker, concurrency=1)
    for _ in range(2):
        await door.handle({"id": "a", "input": {"prompt": "x", "seed": 1}})
    assert len(context.engine.ran) == 2


async def test_a_repeated_delivery_is_counted_and_not_paid_for(context, queue):
    for _ in range(2):
        await queue("a", seed=1)
    context.worker.usage_log.close()
    lines = [*read_usage(context.worker.settings.usage_dir)]
    assert [(line["job_id"], "gpu_seconds" in line, line["outcome"]) for line in lines] == [
        ("a", True, "ok"),
        ("a", False, "ok"),
    ]
