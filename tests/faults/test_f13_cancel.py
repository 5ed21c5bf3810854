"""F13: a job is cancelled in any phase: at most the step that runs is finished, and the next image is as ever."""

import asyncio
import threading

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import SecretStr

from tests.asking import perform
from tests.engine.test_generation import draw
from tests.images import encoded, gradient, pixels
from tests.net.servers import RawServer, silence
from worker.app.build import build_worker
from worker.engine import engine as engine_module
from worker.net.bucket import Bucket
from worker.service.jobs import delivery
from worker.service.local.provisioning import Provisioner

BUCKET = {
    "bucket_endpoint_url": "http://127.0.0.1:9",
    "bucket_name": "b",
    "bucket_access_key_id": SecretStr("k"),
    "bucket_secret_access_key": SecretStr("s"),
}
STEPS = 3  # of a job of the tiny model
# Where a job is held while it is cancelled, and whether its model is loaded then.
HELD = {
    "a download": (Provisioner, "provide", True),
    "a load": (engine_module, "load_pipeline", False),
    "a step": (UNet2DConditionModel, "forward", True),
    "the decoding": (AutoencoderKL, "decode", True),
    "the encoding": (delivery, "encode", True),
    "an upload": (Bucket, "put", True),
}


class Held:
    """Holds the first call of a function until it may go on."""

    def __init__(self, monkeypatch, place, name):
        self.inside, self.go_on = threading.Event(), threading.Event()
        original = getattr(place, name)

        def hold(*arguments, **keywords):
            self.inside.set()
            assert self.go_on.wait(60)
            return original(*arguments, **keywords)

        monkeypatch.setattr(place, name, hold)


@pytest.fixture
def worker(settings):
    return build_worker(settings.model_copy(update={"allow_private_urls": True, **BUCKET}))


@pytest.fixture
def steps(monkeypatch):
    """The steps that the tiny model has taken."""
    taken = []
    forward = UNet2DConditionModel.forward

    def counted(*arguments, **keywords):
        taken.append(threading.get_ident())
        return forward(*arguments, **keywords)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    return taken


async def cancelled(task, go_on, steps):
    """Cancel, let what was held go on, and return the steps that were taken after that."""
    task.cancel()
    await asyncio.sleep(0.05)
    before = len(steps)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    return len(steps) - before


async def left_nothing(worker, phase, later, expected, figures):
    async with asyncio.timeout(60):
        while worker.engine.running is not None:
            await asyncio.sleep(0.01)
    figures("F13", f"steps after a cancel during {phase}", later, at_most=1)
    differ = int((pixels(await draw(worker)) != expected).sum())
    figures("F13", f"values that differ in the next image ({phase})", differ, at_most=0)


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("phase", HELD)
async def test_a_job_is_cancelled(worker, steps, monkeypatch, figures, phase):
    place, name, is_loaded = HELD[phase]
    expected = pixels(await draw(worker))
    if not is_loaded:
        await perform(worker, {"action": "unload", "model": "tiny"}, "unload")
    with monkeypatch.context() as patched:
        held = Held(patched, place, name)
        sent = {"output": {"delivery": "s3"}} if phase == "an upload" else {}
        task = asyncio.create_task(draw(worker, prompt="cancelled", **sent))
        try:
            assert await asyncio.to_thread(held.inside.wait, 60)
            later = await cancelled(task, held.go_on, steps)
        finally:
            held.go_on.set()
    await left_nothing(worker, phase, later, expected, figures)


async def test_a_job_is_cancelled_while_its_image_is_fetched(worker, steps, figures):
    expected = pixels(await draw(worker))
    pool = worker.operations.pools.images
    with RawServer(silence()) as slow:
        task = asyncio.create_task(draw(worker, image=slow.url()))
        async with asyncio.timeout(60):
            while not pool.active:
                await asyncio.sleep(0.005)
        later = await cancelled(task, threading.Event(), steps)
    figures("F13", "steps of a job whose image never came", later, at_most=0)
    await left_nothing(worker, "an image's fetch", later, expected, figures)


async def test_a_job_is_cancelled_in_the_queue(worker, steps, monkeypatch, figures):
    expected = pixels(await draw(worker))
    with monkeypatch.context() as patched:
        held = Held(patched, AutoencoderKL, "decode")
        first = asyncio.create_task(draw(worker, prompt="first"))
        try:
            assert await asyncio.to_thread(held.inside.wait, 60)
            waiting = asyncio.create_task(draw(worker, image=encoded(gradient(64, 64))))
            async with asyncio.timeout(60):
                while (await perform(worker, {"action": "status"}, "status"))["jobs"]["queued"] != 1:
                    await asyncio.sleep(0.005)
            later = await cancelled(waiting, held.go_on, steps)
        finally:
            held.go_on.set()
        await first
    assert len(steps) == 2 * STEPS, "of the two jobs that were wanted"
    await left_nothing(worker, "the wait in the queue", later, expected, figures)
