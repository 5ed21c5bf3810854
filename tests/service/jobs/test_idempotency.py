"""The memory of answered jobs: a job that is delivered twice is drawn once."""

import asyncio
import time

import pytest

from tests.fakes.engine import make_context
from worker.core.errors import InvalidOutput, WorkerError
from worker.core.image import Raster
from worker.core.model import Task
from worker.core.request import GenerationRequest
from worker.core.result import Artifact, JobResult, Reproduction, Timings, Usage
from worker.service.jobs.idempotency import JobLedger

REQUEST = GenerationRequest(prompt="x")


def result(size=10):
    return JobResult(
        artifacts=(Artifact("j", Raster("L", size, 1, bytes(size)), 1),),
        model="m",
        revision=None,
        task=Task.TEXT_TO_IMAGE,
        prompt="x",
        parameters={},
        loras=(),
        timings=Timings(),
        usage=Usage(0, 1, 1, 0, 0),
        reproduce=Reproduction("m", (), {}, {}),
    )


class Runs:
    """Work that is counted, and waits for `gate` when there is one."""

    def __init__(self, size=10, gate=None):
        self.count = 0
        self.size = size
        self.gate = gate

    async def __call__(self):
        self.count += 1
        if self.gate is not None:
            await self.gate.wait()
        return result(self.size)


async def once(context, job_id, **fields):
    return await context.draw(job_id, **fields)


async def test_the_same_delivery_later_is_answered_from_memory(context):
    first = await once(context, "a")
    again = await once(context, "a")
    assert again["images"] == first["images"]
    assert again["seed"] == first["seed"]  # drawn at random, so once
    assert len(context.engine.ran) == 1


async def test_the_same_delivery_at_the_same_time_joins(context):
    answers = await asyncio.gather(*(once(context, "a") for _ in range(4)))
    assert len({answer["image"] for answer in answers}) == 1
    assert len(context.engine.ran) == 1


async def test_another_input_or_another_id_is_another_job(context):
    await once(context, "a", seed=1)
    await once(context, "a", seed=2)
    await once(context, "a", seed=1, width=32)
    await once(context, "b", seed=1)
    assert len(context.engine.ran) == 4


async def test_an_error_is_not_remembered(context):
    context.engine.failures = [InvalidOutput("Black.")]
    with pytest.raises(InvalidOutput):
        await once(context, "a")
    assert (await once(context, "a"))["images"]
    assert len(context.engine.ran) == 2


async def test_an_error_reaches_everyone_who_joined(context):
    context.engine.failures = [InvalidOutput("Black.")]
    got = await asyncio.gather(*(once(context, "a") for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in got] == [InvalidOutput] * 3


async def test_a_request_with_broken_text_is_refused_and_not_unforeseen(context):
    with pytest.raises(WorkerError) as failure:
        await once(context, "a", clip_skip="\ud800")
    assert failure.value.field == "clip_skip"


async def test_who_joined_a_cancelled_delivery_still_gets_a_result(context):
    context.engine.gate.clear()
    first = asyncio.create_task(once(context, "a"))
    await asyncio.to_thread(context.engine.inside.wait, 30)
    others = [asyncio.create_task(once(context, "a")) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    context.engine.gate.set()
    answers = await asyncio.gather(*others)
    assert len({answer["image"] for answer in answers}) == 1
    assert len(context.engine.ran) == 2  # the cancelled one, and one for all the others
    await once(context, "a")
    assert len(context.engine.ran) == 2


async def test_who_joined_can_be_cancelled_alone():
    ledger, gate = JobLedger(60), asyncio.Event()
    runs = Runs(gate=gate)
    first, second = (asyncio.create_task(ledger.once("a", REQUEST, runs)) for _ in range(2))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert (await first).model == "m"
    assert runs.count == 1


async def test_results_are_forgotten_after_their_time(monkeypatch):
    ledger, runs, now = JobLedger(60), Runs(), time.monotonic()
    await ledger.once("a", REQUEST, runs)
    monkeypatch.setattr(time, "monotonic", lambda: now + 59)
    await ledger.once("a", REQUEST, runs)
    assert runs.count == 1
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    await ledger.once("a", REQUEST, runs)
    assert runs.count == 2


async def test_no_time_means_no_memory():
    ledger, runs = JobLedger(0), Runs()
    for _ in range(2):
        await ledger.once("a", REQUEST, runs)
    assert runs.count == 2


async def test_the_oldest_results_make_room():
    ledger, runs = JobLedger(60, max_bytes=250), Runs(size=100)
    for job_id in ("a", "b", "c"):
        await ledger.once(job_id, REQUEST, runs)
    assert runs.count == 3
    await ledger.once("c", REQUEST, runs)
    await ledger.once("b", REQUEST, runs)
    assert runs.count == 3
    await ledger.once("a", REQUEST, runs)
    assert runs.count == 4


async def test_a_result_beyond_all_room_is_answered_but_not_kept():
    ledger, runs = JobLedger(60, max_bytes=50), Runs(size=100)
    for _ in range(2):
        assert (await ledger.once("a", REQUEST, runs)).model == "m"
    assert runs.count == 2


async def test_the_operator_decides_how_long(tmp_path):
    context = make_context(tmp_path, result_cache_seconds=0)
    for _ in range(2):
        await once(context, "a", seed=1)
    assert len(context.engine.ran) == 2
