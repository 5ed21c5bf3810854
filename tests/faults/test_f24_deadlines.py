"""F24: a deadline from the first byte of a job to the last of its answer, whatever the job is waiting for."""

import asyncio
import threading
import time

import pytest

from tests.fakes.engine import make_context
from tests.net.servers import RawServer, silence, trickle
from tests.service.jobs.working import asked
from worker.core.errors import JobTimeout
from worker.net.bucket import Bucket
from worker.service.jobs import delivery
from worker.service.jobs.record import JobOptions, Status
from worker.service.jobs.store import JobStore
from worker.service.local.provisioning import Provisioner
from worker.transport.job_input import read_input

TIMEOUT_S = 0.5


@pytest.fixture
def open_context(tmp_path):
    return make_context(tmp_path, OFFLINE=False, allow_private_urls=True, allow_unregistered_models=True)


class Blockade:
    """Work that is not to be interrupted, until the test is over."""

    def __init__(self):
        self.over = threading.Event()
        self.begun = threading.Event()

    def __call__(self, *args, **options):
        self.begun.set()
        assert self.over.wait(60)
        raise AssertionError("nobody waits for this any more")


@pytest.fixture
def blockade():
    blockade = Blockade()
    yield blockade
    blockade.over.set()


async def late(figures, phase, work):
    """Expect the end of `work` at its deadline, while whatever it waits for goes on."""
    began = time.monotonic()
    with pytest.raises(JobTimeout, match=r"timeout_s of 0\.5 seconds") as failure:
        await asyncio.wait_for(work, 30)
    seconds = time.monotonic() - began - TIMEOUT_S
    figures("F24", f"the answer after the deadline: {phase}", seconds, "s", at_most=2, momentary=True)
    assert failure.value.field == "timeout_s"


@pytest.mark.parametrize(
    ("phase", "answer"),
    [
        ("an image that never comes", silence()),
        ("an image by the byte", trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")),
        ("an image in chunks", trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")),
    ],
)
async def test_a_slow_image(open_context, figures, phase, answer):
    with RawServer(answer) as slow:
        await late(figures, phase, open_context.draw(image=slow.url(), timeout_s=TIMEOUT_S))
        assert slow.answered == 0
        images = open_context.worker.operations.pools.images
        async with asyncio.timeout(30):  # the thread is free again, though the server goes on
            while images.active:
                await asyncio.sleep(0.005)
    assert open_context.builder.built == 0


async def test_a_slow_header(open_context, figures):
    with RawServer(silence()) as slow:
        work = open_context.draw(model=slow.url("/m.safetensors"), timeout_s=TIMEOUT_S)
        await late(figures, "a model's header", work)
        headers = open_context.worker.operations.pools.headers
        async with asyncio.timeout(30):
            while headers.active:
                await asyncio.sleep(0.005)


async def test_the_wait_for_a_thread(open_context, figures, blockade):
    checks = open_context.worker.operations.pools.checks
    holding = [asyncio.create_task(checks.run(blockade.over.wait, 60)) for _ in range(checks.threads)]
    while checks.active < checks.threads:
        await asyncio.sleep(0.005)
    await late(figures, "waiting for a thread", open_context.draw(timeout_s=TIMEOUT_S))
    assert checks.waiting == 0
    blockade.over.set()
    await asyncio.gather(*holding)


async def test_a_slow_download(open_context, figures, blockade, monkeypatch):
    monkeypatch.setattr(Provisioner, "provide", blockade)
    await late(figures, "a download", open_context.draw(timeout_s=TIMEOUT_S))
    assert open_context.worker.operations.pools.downloads.active == 1  # until the thread has stopped


@pytest.mark.parametrize("phase", ["load", "step"])
async def test_the_device_alone_waits_for_what_cannot_be_interrupted(open_context, figures, phase):
    engine = open_context.engine
    await open_context.draw()
    if phase == "load":
        engine.load_seconds = 3.0
    else:
        engine.alive.clear()
    try:
        work = open_context.draw(prompt="late", timeout_s=TIMEOUT_S)
        await late(figures, f"a {phase}", work)
        assert open_context.worker.engine.running is not None  # the device is taken
        engine.load_seconds = 0.0
        following = asyncio.create_task(open_context.draw(prompt="next"))
        await asyncio.sleep(0.05)
        assert engine.calls[-1] == ["late"]
    finally:
        engine.alive.set()
    assert (await following)["prompt"] == "next"
    assert engine.overlaps == 0


async def test_slow_encoding(open_context, figures, blockade, monkeypatch):
    await open_context.draw()
    monkeypatch.setattr(delivery, "encode", blockade)
    await late(figures, "encoding", open_context.draw(timeout_s=TIMEOUT_S))
    assert blockade.begun.is_set()


async def test_a_slow_bucket(tmp_path, figures, blockade, monkeypatch):
    bucket = {"endpoint_url": "http://127.0.0.1:9", "name": "b", "access_key_id": "k", "secret_access_key": "s"}
    context = make_context(tmp_path, **{f"bucket_{name}": value for name, value in bucket.items()})
    await context.draw()
    monkeypatch.setattr(Bucket, "put", blockade)
    await late(figures, "an upload", context.draw(timeout_s=TIMEOUT_S, output={"delivery": "s3"}))
    assert blockade.begun.is_set()


async def test_the_deadline_counts_from_a_requests_first_byte(open_context):
    """The body of a request may take its time, and that is the job's."""
    store = JobStore(open_context.worker.operations.perform)
    options = JobOptions(received_at=time.monotonic() - 100)
    record = store.submit(read_input({"prompt": "x", "timeout_s": 99}), "a", options)
    await record.wait(30)
    assert (record.status, record.error.code) == (Status.TIMED_OUT, "job_timeout")
    assert open_context.builder.built == 0


async def test_the_execution_timeout_counts_while_an_image_is_fetched(open_context, figures):
    store = JobStore(open_context.worker.operations.perform)
    with RawServer(silence()) as slow:
        began = time.monotonic()
        record = store.submit(
            read_input({"prompt": "x", "image": slow.url()}), "a", JobOptions(execution_timeout_s=TIMEOUT_S)
        )
        assert await record.wait(30)
        seconds = time.monotonic() - began - TIMEOUT_S
        assert slow.answered == 0
    assert record.status is Status.TIMED_OUT
    assert "executionTimeout of 500 ms" in record.error.message
    figures("F24", "the answer after executionTimeout: a slow image", seconds, "s", at_most=2, momentary=True)


async def test_the_execution_timeout_does_not_count_while_a_job_waits_in_the_queue():
    gone = asyncio.Event()

    async def perform(job, job_id, emit, caller):
        await gone.wait()
        raise JobTimeout("It waited to its end.")

    store = JobStore(perform)
    record = store.submit(asked(), "a", JobOptions(execution_timeout_s=0.02))
    await asyncio.sleep(0.1)
    assert not record.over
    gone.set()
    await record.wait(30)
