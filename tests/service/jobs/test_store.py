"""Jobs that are handed in: their states, how long their answers live, and how they end early."""

import asyncio
from contextlib import suppress

import pytest

from tests.service.jobs.working import Work, asked, image
from tests.waiting import LIMIT_S, settled, until_true
from worker.core.errors import (
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    JobTimeout,
    OutOfMemory,
    Overloaded,
    WorkerError,
)
from worker.core.image import Raster
from worker.core.result import Progress
from worker.service.jobs.record import JobOptions, JobRecord, Status
from worker.service.jobs.store import JobStore, StoreBounds, StoreHooks


@pytest.fixture
async def work():
    return Work()


@pytest.fixture
async def store(work):
    found = JobStore(work)
    yield found
    await found.close()


def kept(**options):
    return JobOptions(**options)


async def reached(record, status):
    await until_true(lambda: record.status is status)


async def test_a_job_goes_from_the_queue_through_work_to_its_answer(store, work, clock):
    job = store.submit(asked(waits=True, lasts=True), "a", kept())
    await settled()
    assert (job.status, store.counts().in_queue) == (Status.QUEUED, 1)
    await clock.pass_by(1_000)
    work.go.set()
    await reached(job, Status.RUNNING)
    await clock.pass_by(5)
    work.end.set()
    assert await job.wait(LIMIT_S)
    assert (job.status, job.outcome()) == (Status.COMPLETED, image())
    assert job.delay_ms >= 1_000_000
    assert 5_000 <= job.execution_ms < 1_000_000
    assert store.find("a") is job
    assert (store.counts().in_progress, store.counts().completed) == (0, 1)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (OutOfMemory("Too large."), Status.FAILED, "gpu_oom"),
        (JobTimeout("Too slow."), Status.TIMED_OUT, "job_timeout"),
        (JobCancelled("Taken back."), Status.CANCELLED, "job_cancelled"),
        (ValueError("secret"), Status.FAILED, "internal_error"),
    ],
)
async def test_a_failure_has_its_state_and_its_error(store, work, failure, status, code):
    work.failures = [failure]
    job = store.submit(asked(), "a", kept())
    await job.wait(LIMIT_S)
    assert job.status is status
    with pytest.raises(WorkerError) as raised:
        job.outcome()
    assert raised.value.code == code
    assert "secret" not in raised.value.message
    # What is kept holds nobody's frames, and so nothing of the job: not of whoever failed, nor of whoever asks.
    assert (job.error.__traceback__, job.error.__context__, job.error.__cause__) == (None, None, None)


async def test_a_cancelled_job_is_cancelled_at_once_and_its_work_stops(store, work):
    job = store.submit(asked(hangs=True), "a", kept())
    await reached(job, Status.RUNNING)
    store.cancel(job)
    assert job.status is Status.CANCELLED
    await settled()
    assert work.stopped == ["a"]
    store.cancel(job)  # again: no effect
    assert job.status is Status.CANCELLED


async def test_what_runs_longer_than_its_limit_is_timed_out_but_waiting_does_not_count(store, work):
    job = store.submit(asked(waits=True, hangs=True), "a", kept(execution_timeout_s=0.1))
    await asyncio.sleep(0.2)
    assert job.status is Status.QUEUED
    work.go.set()
    await job.wait(LIMIT_S)
    assert job.status is Status.TIMED_OUT
    assert "executionTimeout of 100 ms" in job.error.message
    await settled()
    assert work.stopped == ["a"]


async def test_a_jobs_whole_life_can_be_limited(store, work, clock):
    store.submit(asked(hangs=True), "a", kept(ttl_s=100))
    done = store.submit(asked(), "b", kept(ttl_s=100))
    await done.wait(LIMIT_S)
    assert store.find("b").answer
    await clock.pass_by(101)
    assert work.stopped == ["a"]
    for gone in ("a", "b"):
        with pytest.raises(JobNotFound):
            store.find(gone)


async def test_an_answer_is_kept_for_its_time(work, clock):
    store = JobStore(work, StoreBounds(retention_s=100))
    job = store.submit(asked(), "a", kept())
    await job.wait(LIMIT_S)
    await clock.pass_by(50)
    assert store.find("a").answer
    await clock.pass_by(51)
    with pytest.raises(JobNotFound):
        store.find("a")
    await store.close()


async def test_over_the_budget_the_oldest_answers_go_and_the_newest_never(work):
    store = JobStore(work, StoreBounds(max_bytes=250_000))
    for name in "abc":
        job = store.submit(asked(shown=name * 100_000), name, kept())
        await job.wait(LIMIT_S)
    with pytest.raises(JobNotFound):
        store.find("a")
    assert store.find("b").answer
    assert 100_000 < store.find("c").bytes < 110_000  # as stored: the file and little else
    assert store.find("c").answer == image("c" * 100_000)
    await store.close()


async def test_too_many_jobs_are_refused_with_a_time_to_come_again(work):
    store = JobStore(work, StoreBounds(max_under_way=2))
    for name in "ab":
        store.submit(asked(waits=True), name, kept())
    with pytest.raises(Overloaded) as refused:
        store.submit(asked(waits=True), "c", kept())
    assert refused.value.details["retry_after_s"] > 0
    with pytest.raises(JobNotFound):
        store.find("c")
    await settled()
    assert work.runs == ["a", "b"]
    await store.close()


async def test_too_many_bytes_of_jobs_are_refused_too(work):
    store = JobStore(work, StoreBounds(max_under_way_bytes=10_000))
    large = store.submit(asked(shown="x" * 20_000), "a", kept())  # alone it is taken: it would never fit better
    with pytest.raises(Overloaded) as refused:
        store.submit(asked(), "b", kept())
    assert refused.value.details["retry_after_s"] > 0
    await large.wait(LIMIT_S)
    assert await store.submit(asked(), "b", kept()).wait(LIMIT_S)
    await store.close()
    assert work.runs == ["a", "b"]


async def test_a_failed_job_is_retried_under_its_id(store, work):
    work.failures = [OutOfMemory("Too large.")]
    job = store.submit(asked(shown="kept for that"), "a", kept())
    await job.wait(LIMIT_S)
    assert job.can_be_retried
    store.retry(job)
    assert (job.status, job.error) == (Status.QUEUED, None)
    await job.wait(LIMIT_S)
    assert job.outcome() == image("kept for that")
    assert (store.counts().retried, store.counts().failed, store.counts().completed) == (1, 1, 1)
    assert not job.can_be_retried
    with pytest.raises(ValueError, match="completed cannot be retried"):
        store.retry(job)


async def test_purging_takes_what_waits_and_leaves_what_runs(store, work):
    running = store.submit(asked(hangs=True), "a", kept())
    await reached(running, Status.RUNNING)
    waiting = [store.submit(asked(waits=True), name, kept()) for name in "bc"]
    awaited = store.submit(asked(waits=True), "d", kept(kept=False))
    assert store.purge() == 2
    assert [job.status for job in waiting] == [Status.CANCELLED] * 2
    assert (running.status, awaited.status) == (Status.RUNNING, Status.QUEUED)


async def test_the_same_id_and_payload_is_the_same_job(store, work):
    first = store.submit(asked(shown="x"), "a", kept())
    assert store.submit(asked(shown="x"), "a", kept()) is first
    await first.wait(LIMIT_S)
    assert store.submit(asked(shown="x"), "a", kept()) is first
    assert work.runs == ["a"]
    with pytest.raises(InvalidRequest, match="another request") as refused:
        store.submit(asked(shown="y"), "a", kept())
    assert refused.value.field == "Idempotency-Key"


async def test_the_same_id_again_after_a_failure_is_another_try(store, work):
    work.failures = [OutOfMemory("Too large.")]
    job = store.submit(asked(), "a", kept())
    await job.wait(LIMIT_S)
    assert store.submit(asked(), "a", kept()) is job
    await job.wait(LIMIT_S)
    assert job.status is Status.COMPLETED


async def test_a_job_that_only_callers_wait_for_ends_with_the_last_of_them(store, work):
    job = store.submit(asked(hangs=True), "a", kept(kept=False))
    assert store.submit(asked(hangs=True), "a", kept(kept=False)) is job
    store.leave(job)
    await settled()
    assert not job.over
    store.leave(job)
    assert job.status is Status.CANCELLED
    with pytest.raises(JobNotFound):
        store.find("a")


async def test_followers_see_every_step_and_the_end(store, work):
    job = store.submit(asked(waits=True), "a", kept())

    async def follow():
        return [item.step async for item in job.watch()]

    followers = [asyncio.create_task(follow()) for _ in range(2)]
    await settled()
    work.go.set()
    assert await asyncio.gather(*followers) == [[1], [1]]
    assert [item.step for item in job.take_unread()] == [1]
    assert job.take_unread() == []
    assert job.take_answer() == image()
    assert job.take_answer() is None


async def test_of_the_previews_only_the_last_is_held_and_whoever_looks_now_and_then_sees_it(work):
    job = JobRecord("a", asked(), JobOptions())
    one, two = (Raster("RGB", 1, 1, bytes([value] * 3)) for value in (1, 2))
    for step, preview in enumerate((one, two, None)):
        job.advance(Progress("inference", step, 3, preview=preview))
    assert job.progress == Progress("inference", 2, 3, preview=two)
    assert [item.preview for item in job.take_unread()] == [None, None, None]


async def test_everyone_is_told_of_each_end_once(work):
    told = []
    store = JobStore(work, hooks=StoreHooks(ended=told.append))
    done = store.submit(asked(), "a", kept())
    await done.wait(LIMIT_S)
    store.cancel(store.submit(asked(hangs=True), "b", kept()))
    await settled()
    await store.close()
    assert [(job.id, job.status) for job in told] == [("a", Status.COMPLETED), ("b", Status.CANCELLED)]


async def test_closing_stops_all_work(store, work):
    jobs = [store.submit(asked(hangs=True), name, kept()) for name in "ab"]
    await asyncio.gather(*(reached(job, Status.RUNNING) for job in jobs))
    with suppress(asyncio.CancelledError):
        await store.close()
    assert sorted(work.stopped) == ["a", "b"]
