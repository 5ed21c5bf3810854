"""F23: what is slow for one caller delays nobody else: links, models, uploads, webhooks."""

import asyncio
import re
import threading
import time
from pathlib import Path

import pytest

import worker
from tests.fakes.engine import make_context
from tests.net.servers import RawServer, silence, trickle
from tests.service.jobs.working import Work, asked
from worker.core.errors import Overloaded, RateLimited
from worker.net.bucket import Bucket
from worker.service.jobs.record import JobOptions
from worker.service.jobs.store import JobStore, StoreHooks
from worker.service.limits.pools import Pool
from worker.service.local.provisioning import Provisioner
from worker.transport.job_input import read_input
from worker.transport.web.webhooks import Webhooks

ROOT = Path(worker.__file__).parent


@pytest.fixture
def open_context(tmp_path):
    """A worker that opens any link, as its tests' servers have private addresses."""
    return make_context(tmp_path, OFFLINE=False, allow_private_urls=True, allow_unregistered_models=True)


async def until(reached):
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.005)


async def given_up(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def delay_of_a_plain_job(context, tasks):
    """Generate while all `tasks` stand still; return the seconds."""
    began = time.monotonic()
    answer = await context.draw(timeout_s=30)
    seconds = time.monotonic() - began
    assert answer["image"]
    assert not any(task.done() for task in tasks), "the slow ones are still under way"
    return seconds, answer


def test_nothing_uses_the_threads_that_everything_would_share():
    shared = re.compile(r"to_thread|run_in_executor|run_in_threadpool|anyio")
    assert [str(path) for path in ROOT.rglob("*.py") if shared.search(path.read_text("utf-8"))] == []


async def test_a_job_and_every_question_leave_asyncios_own_threads_alone(tmp_path):
    context = make_context(tmp_path)
    await context.draw()
    for action in ("models", "schema", "inspect", "plan", "status", "preload", "unload"):
        await context.ask(action=action)
    assert asyncio.get_running_loop()._default_executor is None


@pytest.mark.parametrize("count", [14, 64])
async def test_slow_image_links_delay_no_other_job(open_context, figures, count):
    await open_context.draw()  # the engine is built
    with RawServer(trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", pause=1)) as slow:
        jobs = [asyncio.create_task(open_context.draw(image=slow.url(f"/{index}"))) for index in range(count)]
        await until(lambda: slow.connections == count)
        seconds, answer = await delay_of_a_plain_job(open_context, jobs)
        await given_up(jobs)
    figures("F23", f"a plain job beside {count} slow image links", seconds, "s", at_most=1, momentary=True)
    assert answer["timings"]["queue_s"] < seconds
    await until(lambda: not open_context.worker.operations.pools.images.active)  # their sockets are shut


async def test_slow_links_delay_no_job_with_a_link_of_its_own(open_context, figures):
    image = Path(__file__).parents[2] / "docs" / "demo.png"
    content = image.read_bytes()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    await open_context.draw()
    with RawServer(silence()) as slow, RawServer(lambda connection, _: connection.sendall(head + content)) as quick:
        jobs = [asyncio.create_task(open_context.draw(image=slow.url(f"/{index}"))) for index in range(64)]
        await until(lambda: slow.connections == 64)
        began = time.monotonic()
        assert (await open_context.draw(image=quick.url(), timeout_s=30))["image"]
        figures(
            "F23",
            "a job with a quick link beside 64 slow ones",
            time.monotonic() - began,
            "s",
            at_most=2,
            momentary=True,
        )
        assert not any(job.done() for job in jobs)
        await given_up(jobs)


@pytest.mark.parametrize("action", ["inspect", "schema", "plan"])
async def test_questions_about_slow_models_delay_no_job_and_no_other_question(open_context, figures, action):
    await open_context.draw()
    with RawServer(silence()) as slow:
        asking = [
            asyncio.create_task(open_context.ask(action=action, model=slow.url(f"/{index}.safetensors")))
            for index in range(64)
        ]
        await until(lambda: slow.connections == 64)
        seconds, _ = await delay_of_a_plain_job(open_context, asking)
        assert (await open_context.ask(action="inspect", model="any"))["model"] == "any"
        await given_up(asking)
    figures("F23", f"a plain job beside 64 slow questions: {action}", seconds, "s", at_most=1, momentary=True)
    await until(lambda: not open_context.worker.operations.pools.headers.active)


async def test_slow_downloads_take_neither_places_nor_threads_from_others(tmp_path, monkeypatch, figures):
    context = make_context(tmp_path, max_concurrent_jobs=2)
    await context.draw()
    provide, begun, over = Provisioner.provide, [], threading.Event()

    def slow(self, job, emit):
        if job.call.spec.id == "any":
            begun.append(job)
            assert over.wait(60)
        return provide(self, job, emit)

    monkeypatch.setattr(Provisioner, "provide", slow)
    jobs = [asyncio.create_task(context.draw(model="any")) for _ in range(64)]
    try:
        await until(lambda: len(begun) == 64)
        seconds, _ = await delay_of_a_plain_job(context, jobs)
    finally:
        over.set()
    figures("F23", "a plain job beside 64 slow downloads", seconds, "s", at_most=1, momentary=True)
    assert len(await asyncio.gather(*jobs)) == 64


async def test_waiting_for_a_thread_counts_as_waiting(open_context):
    pools = open_context.worker.operations.pools
    over = threading.Event()
    holding = [asyncio.create_task(pools.checks.run(over.wait, 60)) for _ in range(pools.checks.threads)]
    await until(lambda: pools.checks.active == pools.checks.threads)
    job = asyncio.create_task(open_context.draw())
    await until(lambda: pools.checks.waiting == 1)
    exposition = open_context.worker.metrics.exposition().decode()
    assert 'imgworker_pool_waiting{pool="checks"} 1.0' in exposition
    assert f'imgworker_pool_active{{pool="checks"}} {pools.checks.threads}.0' in exposition
    await asyncio.sleep(0.1)
    over.set()
    assert (await job)["timings"]["queue_s"] >= 0.1
    await asyncio.gather(*holding)


@pytest.mark.parametrize("action", ["models", "status", "schema", "inspect", "plan", "preload", "unload", "generate"])
async def test_every_action_counts_against_its_callers_rate(tmp_path, action):
    context = make_context(tmp_path, rate_limit_per_minute=2)
    fields = {"prompt": "x"} if action == "generate" else {"action": action}

    async def ask(caller):
        return await context.worker.operations.perform(read_input(fields), "job", lambda progress: None, caller)

    await ask("one")
    await ask("one")
    with pytest.raises(RateLimited) as refused:
        await ask("one")
    assert refused.value.details["retry_after_s"] >= 1
    await ask("another")


async def test_more_questions_than_fit_are_told_when_to_come_back(tmp_path):
    context = make_context(
        tmp_path,
        OFFLINE=False,
        allow_private_urls=True,
        allow_unregistered_models=True,
        max_concurrent_jobs=1,
        max_queued_jobs=1,
    )
    with RawServer(silence()) as slow:
        asking = [
            asyncio.create_task(context.ask(action="inspect", model=slow.url(f"/{index}.safetensors")))
            for index in range(2)
        ]
        await until(lambda: slow.connections == 2)
        with pytest.raises(Overloaded) as refused:
            await context.ask(action="inspect")
        assert refused.value.details["retry_after_s"] >= 1
        assert (await context.draw())["image"]  # jobs have places of their own
        await given_up(asking)
    assert (await context.ask(action="inspect"))["model"] == "tiny"


async def test_slow_uploads_delay_no_other_answer(tmp_path, monkeypatch, figures):
    settings = {"endpoint_url": "http://127.0.0.1:9", "name": "b", "access_key_id": "k", "secret_access_key": "s"}
    context = make_context(tmp_path, **{f"bucket_{name}": value for name, value in settings.items()})
    await context.draw()
    begun, over = [], threading.Event()

    def put(self, key, body, content_type):
        begun.append(key)
        assert over.wait(60)
        return f"https://bucket.example/{key}"

    monkeypatch.setattr(Bucket, "put", put)
    jobs = [asyncio.create_task(context.draw(output={"delivery": "s3"})) for _ in range(64)]
    try:
        await until(lambda: len(begun) == 64)
        seconds, _ = await delay_of_a_plain_job(context, jobs)
    finally:
        over.set()
    figures("F23", "a plain job beside 64 slow uploads", seconds, "s", at_most=1, momentary=True)
    for answer in await asyncio.gather(*jobs):
        assert answer["image_url"].startswith("https://bucket.example/")


async def test_a_slow_receiver_of_webhooks_delays_no_other():
    called, over = [], threading.Event()

    class Sender:
        def post(self, url, job_id, body):
            if "slow" in url:
                assert over.wait(60)
            called.append(url)

    webhooks = Webhooks(Sender(), Pool("webhooks", 4))
    work = Work()
    store = JobStore(work, hooks=StoreHooks(ended=webhooks.notify))
    for index in range(20):
        store.submit(asked(), f"slow {index}", JobOptions(webhook="https://slow.example/hook"))
    await until(lambda: len(work.runs) == 20)
    store.submit(asked(), "quick", JobOptions(webhook="https://quick.example/hook"))
    try:
        await until(lambda: called)
        assert called == ["https://quick.example/hook"]
    finally:
        over.set()
    await until(lambda: len(called) == 21)
    await store.close()
    await webhooks.close()


async def test_a_webhook_is_called_though_its_jobs_time_is_over():
    called = []

    class Sender:
        def post(self, url, job_id, body):
            called.append(job_id)

    webhooks = Webhooks(Sender(), Pool("webhooks", 1))
    store = JobStore(Work(), hooks=StoreHooks(ended=webhooks.notify))
    hangs = JobOptions(webhook="https://x.example/", execution_timeout_s=0.05)
    store.submit(asked(hangs=True), "late", hangs)
    await until(lambda: called == ["late"])
    await store.close()
    await webhooks.close()
