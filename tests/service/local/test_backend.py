"""One device, one thread: who runs when, who lets go when, and what a hung device costs."""

import asyncio
import time
from dataclasses import replace

import pytest

from tests.catalog.corpus import sparse_file, stored
from tests.fakes.engine import FakeEngine, make_context
from tests.waiting import LIMIT_S
from worker.core.errors import DeviceLost, JobTimeout, LoadFailed, SourceError, WorkerError
from worker.service.local import batching
from worker.store.store import Store


async def begun(context, **fields):
    """A job that waits inside its first step."""
    context.engine.gate.clear()
    task = asyncio.create_task(context.draw(**fields))
    assert await asyncio.to_thread(context.engine.inside.wait, LIMIT_S)
    return task


async def queued(context, count):
    """Wait until so many jobs wait for a place, for company or for the engine."""
    async with asyncio.timeout(LIMIT_S):
        while (await context.ask(action="status"))["jobs"]["queued"] != count:
            await asyncio.sleep(0.005)


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def let_go(context):
    """Wait until the engine has no work."""
    async with asyncio.timeout(LIMIT_S):
        while context.engine.inside.is_set():
            await asyncio.sleep(0.005)


async def lost(context):
    """Wait until the device counts as lost."""
    async with asyncio.timeout(LIMIT_S):
        while (await context.ask(action="status"))["status"] != "lost":
            await asyncio.sleep(0.005)


async def test_jobs_run_one_after_the_other(context):
    answers = await asyncio.gather(*(context.draw(seed=seed) for seed in range(20)))
    assert [answer["seed"] for answer in answers] == [*range(20)]
    assert len(context.engine.ran) == 20
    assert context.engine.overlaps == 0


async def test_a_job_cancelled_in_the_queue_is_gone_at_once(context):
    running = await begun(context, prompt="first")
    waiting = asyncio.create_task(context.draw(prompt="second"))
    await queued(context, 1)
    await cancelled(waiting)
    assert context.engine.inside.is_set()
    context.engine.gate.set()
    await running
    assert [job.prompt for job in context.engine.ran] == ["first"]


async def test_a_running_job_that_is_cancelled_returns_once_the_engine_let_go(context):
    running = await begun(context)
    await cancelled(running)
    assert not context.engine.inside.is_set()
    assert context.engine.ran[0].stop.cancelled


async def test_the_next_job_starts_only_when_the_cancelled_one_let_go(context):
    running = await begun(context, prompt="first")
    context.engine.alive.clear()  # in a long step
    following = asyncio.create_task(context.draw(prompt="second"))
    running.cancel()
    await asyncio.sleep(0.1)
    assert not running.done()
    running.cancel()  # impatience changes nothing
    await asyncio.sleep(0.05)
    assert not running.done()
    assert [job.prompt for job in context.engine.ran] == ["first"]
    context.engine.alive.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    context.engine.gate.set()
    assert (await following)["prompt"] == "second"
    assert context.engine.overlaps == 0


async def test_a_deadline_in_the_queue_is_a_timeout_and_never_reaches_the_engine(context):
    running = await begun(context, prompt="first")
    with pytest.raises(JobTimeout, match=r"timeout_s of 0\.2 seconds") as failure:
        await context.draw(prompt="second", timeout_s=0.2)
    assert failure.value.field == "timeout_s"
    assert failure.value.retryable
    context.engine.gate.set()
    await running
    assert [job.prompt for job in context.engine.ran] == ["first"]


async def test_a_deadline_while_running_stops_at_the_next_step(context, clock):
    running = await begun(context, timeout_s=60)
    await clock.pass_by(60)
    with pytest.raises(JobTimeout):
        await running
    await let_go(context)
    context.engine.gate.set()
    assert (await context.draw())["image"]


@pytest.fixture
def hung(context, monkeypatch):
    """A context whose engine hangs in its first step until the test is over."""
    monkeypatch.setattr(batching, "STUCK_GRACE_S", 0.2)
    context.engine.alive.clear()
    yield context
    context.engine.alive.set()
    context.engine.gate.set()


async def test_a_step_that_never_ends_costs_the_device(hung, clock):
    running = asyncio.create_task(hung.draw(timeout_s=60))
    await asyncio.to_thread(hung.engine.inside.wait, LIMIT_S)
    await clock.pass_by(60)
    with pytest.raises(JobTimeout):  # its caller waits for nothing
        await running
    await lost(hung)
    with pytest.raises(DeviceLost, match=r"did not stop within 0\.2 seconds"):
        await hung.draw()


async def test_who_waits_behind_a_hung_job_is_told_at_once(hung, clock):
    first = asyncio.create_task(hung.draw(timeout_s=60))
    await asyncio.to_thread(hung.engine.inside.wait, LIMIT_S)
    waiting = [asyncio.create_task(hung.draw()), asyncio.create_task(hung.ask(action="plan"))]
    waiting.append(asyncio.create_task(hung.ask(action="preload")))
    await queued(hung, 1)
    await clock.pass_by(60)
    got = await asyncio.wait_for(asyncio.gather(first, *waiting, return_exceptions=True), LIMIT_S)
    assert [type(error) for error in got] == [JobTimeout] + [DeviceLost] * 3
    with pytest.raises(DeviceLost):  # and who comes later, without waiting for anything
        await hung.draw()
    assert len(hung.engine.ran) == 1


async def test_a_cancelled_job_that_hangs_costs_the_device_too(hung):
    running = asyncio.create_task(hung.draw())
    await asyncio.to_thread(hung.engine.inside.wait, LIMIT_S)
    await cancelled(running)
    with pytest.raises(DeviceLost):
        await hung.draw()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_model_that_loads_for_long_does_not_cost_the_device(hung, how, clock):
    """A load cannot be interrupted, and reading many gigabytes takes longer than any step."""
    hung.engine.alive.set()
    hung.engine.load_seconds = 0.8
    running = asyncio.create_task(hung.draw(timeout_s=60))
    await asyncio.to_thread(hung.engine.loading.wait, LIMIT_S)
    if how == "cancel":
        running.cancel()
    else:
        await clock.pass_by(60)
    with pytest.raises(asyncio.CancelledError if how == "cancel" else JobTimeout):
        await running
    assert (await hung.ask(action="status"))["status"] == "ready"
    hung.engine.load_seconds = 0
    assert (await hung.draw())["image"]


async def test_an_engine_that_cannot_be_built_is_tried_again(context):
    context.builder.failures = [LoadFailed("No driver.")]
    with pytest.raises(LoadFailed):
        await context.draw()
    assert (await context.draw())["image"]
    assert context.builder.built == 2


async def test_a_cancelled_download_is_stopped(context, monkeypatch):
    seen = []

    def slow(self, source, variant, emit, stop):
        seen.append("began")
        try:
            while True:
                time.sleep(0.01)
                stop.check()
        finally:
            seen.append("ended")

    monkeypatch.setattr(Store, "ensure", slow)
    running = asyncio.create_task(context.draw())
    while not seen:
        await asyncio.sleep(0.01)
    await cancelled(running)
    downloads = context.worker.operations.pools.downloads
    async with asyncio.timeout(LIMIT_S):
        while downloads.active:
            await asyncio.sleep(0.005)
    assert seen == ["began", "ended"]
    assert context.builder.built == 0


async def test_files_that_are_not_to_be_had_build_no_engine(context):
    with pytest.raises(SourceError):
        await context.draw(model="org/sdxl")
    assert context.builder.built == 0


async def test_seconds_are_told_where_they_were_spent(tmp_path):
    engine = FakeEngine()
    context = make_context(tmp_path, engine)
    context.builder.seconds = 0.3
    began = time.monotonic()
    cold = (await context.draw())["timings"]
    assert cold["load_s"] >= 0.55  # the fake says 0.25, building it took 0.3
    # No second is told twice.
    assert cold["queue_s"] + cold["load_s"] - 0.25 <= time.monotonic() - began
    running = await begun(context)
    began = time.monotonic()
    waiting = asyncio.create_task(context.draw())
    await queued(context, 1)
    await asyncio.sleep(0.3)
    engine.gate.set()
    await running
    warm = (await waiting)["timings"]
    assert warm["queue_s"] >= 0.25
    assert warm["load_s"] >= 0.25
    assert warm["queue_s"] + warm["load_s"] - 0.25 <= time.monotonic() - began
    assert (warm["inference_s"], warm["download_s"], warm["batch_size"]) == (0.5, 0.0, 1)


async def test_a_lora_that_was_fetched_counts_as_download(context, tmp_path, monkeypatch):
    lora = sparse_file(tmp_path / "models/lora.safetensors", stored("lora-sd1-kohya"))
    ensure = Store.ensure

    def fetching(self, source, variant, emit, stop):
        files = ensure(self, source, variant, emit, stop)
        if source.locator != str(lora):
            return files
        time.sleep(0.1)
        return replace(files, bytes_downloaded=1000)

    monkeypatch.setattr(Store, "ensure", fetching)
    answer = await context.draw(loras=[f"file:{lora}"])
    assert answer["usage"]["bytes_downloaded"] == 1000
    assert answer["timings"]["download_s"] >= 0.1


async def test_a_lora_of_another_family_is_refused_before_anything_loads(context, tmp_path):
    lora = sparse_file(tmp_path / "models/lora.safetensors", stored("lora-sdxl-kohya"))
    with pytest.raises(WorkerError) as failure:
        await context.draw(loras=[f"file:{lora}"])
    assert (failure.value.code, failure.value.field) == ("incompatible_adapter", "loras")
    assert context.builder.built == 0
