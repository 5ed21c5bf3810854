"""Who is let in: places, queue, work; and what a worker that is being stopped still does."""

import asyncio

import pytest

from tests.fakes.engine import FakeEngine, make_context
from tests.waiting import LIMIT_S, settled
from worker.core.errors import Overloaded, ParameterOutOfRange, ShuttingDown


async def started(context, count):
    """Wait until so many jobs have their places or wait for one."""
    admission = context.worker.operations.generation.admission
    async with asyncio.timeout(LIMIT_S):
        # One is at the device; the others were checked and have their files.
        while not context.engine.inside.is_set() or (admission.running, admission.queued) != (1, count - 1):
            await asyncio.sleep(0.005)
    return admission


@pytest.fixture
def held(tmp_path):
    """A worker that works on one job, lets one more wait, and whose engine stands still until its gate opens."""
    engine = FakeEngine()
    engine.gate.clear()
    return make_context(tmp_path, engine, max_concurrent_jobs=1, max_queued_jobs=1)


async def test_one_more_than_fits_is_told_when_to_come_back(held):
    first = asyncio.create_task(held.draw(seed=1))
    await started(held, 1)
    second = asyncio.create_task(held.draw(seed=2))
    admission = await started(held, 2)
    assert (admission.running, admission.queued) == (1, 1)
    with pytest.raises(Overloaded, match="1 jobs in work and 1 waiting") as refused:
        await held.draw(seed=3)
    assert refused.value.retryable
    assert refused.value.details["retry_after_s"] >= 1
    held.engine.gate.set()
    assert [(await job)["seed"] for job in (first, second)] == [1, 2]
    assert [job.seeds for job in held.engine.ran] == [(1,), (2,)]
    assert (await held.draw(seed=4))["seed"] == 4  # there is room again


async def test_a_job_that_waits_for_its_place_times_out_and_gives_way(held):
    first = asyncio.create_task(held.draw(seed=1))
    await started(held, 1)
    with pytest.raises(Exception, match=r"timeout_s of 0\.2 seconds"):
        await held.draw(seed=2, timeout_s=0.2)
    assert held.worker.operations.generation.admission.queued == 0
    held.engine.gate.set()
    assert (await first)["seed"] == 1


async def test_a_job_that_is_cancelled_while_it_waits_leaves_its_place(held):
    first = asyncio.create_task(held.draw(seed=1))
    await started(held, 1)
    second = asyncio.create_task(held.draw(seed=2))
    await started(held, 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    third = asyncio.create_task(held.draw(seed=3))
    await started(held, 2)
    held.engine.gate.set()
    assert [(await job)["seed"] for job in (first, third)] == [1, 3]


@pytest.mark.parametrize(
    ("sent", "field"), [({"num_inference_steps": 100}, "num_inference_steps"), ({"num_images": 8}, "num_images")]
)
async def test_too_much_work_is_refused_with_the_numbers(tmp_path, sent, field):
    context = make_context(tmp_path, max_pixel_steps=64 * 64 * 5 * 4)
    assert await context.draw(width=64, height=64, num_images=4)
    with pytest.raises(ParameterOutOfRange, match="at most 81,920") as refused:
        await context.draw(width=64, height=64, **sent)
    assert refused.value.field == field
    assert len(context.engine.ran) == 1


async def test_a_stopping_worker_finishes_what_it_has_and_takes_no_more(held):
    running = asyncio.create_task(held.draw(seed=1))
    admission = await started(held, 1)
    closing = asyncio.create_task(admission.close(30))
    await settled()
    with pytest.raises(ShuttingDown, match="takes no more jobs") as refused:
        await held.draw(seed=2)
    assert refused.value.retryable
    assert not closing.done()
    held.engine.gate.set()
    assert (await running)["seed"] == 1
    await closing


async def test_what_is_not_finished_in_time_fails_with_a_reason(held):
    jobs = [asyncio.create_task(held.draw(seed=seed)) for seed in (1, 2)]
    admission = await started(held, 2)
    await admission.close(0.1)  # though the gate stays shut
    for job in jobs:
        with pytest.raises(ShuttingDown, match="could not finish the job in time"):
            await job
    assert not held.engine.inside.is_set()  # the device is free again


async def test_models_yaml_is_read_again_and_a_mistake_changes_nothing(tmp_path, caplog):
    context = make_context(tmp_path)
    path = tmp_path / "models.yaml"
    before = path.read_text()
    path.write_text(before.replace('"tiny": {', '"fresh": {"source": "file:models/sd1"}, "tiny": {', 1))
    context.worker.reload()
    assert "fresh" in context.worker.registry.models
    assert (await context.draw(model="fresh"))["model"] == "fresh"
    path.write_text("models:\n  tiny: {nonsense: 1}\n")
    context.worker.reload()
    assert "models.yaml is not reloaded" in caplog.text
    assert "models.yaml:2" in caplog.text
    assert (await context.draw(model="fresh"))["model"] == "fresh"
