"""One job leaves no trace in the next: not its adapters, its scheduler, its failure or its cancel."""

import asyncio
import random

import numpy as np
import pytest
import torch

from tests.engine.test_generation import draw
from tests.pictures import encoded, gradient, pixels
from worker.core.errors import OutOfMemory, WorkerError


def on_engine(worker, work):
    """Run `work(pipe)` on the resident pipeline, in the engine's own thread."""
    return worker.engine.submit(lambda engine: work(next(iter(engine._pool._residents.values())).pipe), "test").result()


def failing_once(pipe, part, error):
    """Make the next call of a component raise `error`; every later one works."""
    module = getattr(pipe, part)
    name = "decode" if part == "vae" else "forward"
    original = getattr(module, name)

    def raise_once(*args, **kwargs):
        delattr(module, name)
        raise error

    assert callable(original)
    setattr(module, name, raise_once)


async def test_whatever_came_before_a_plain_job_draws_the_same(worker, zoo):
    lora = f"file:{zoo}/models/lora.safetensors"
    picture = encoded(gradient(64, 64))

    async def styled():
        await draw(worker, loras=[{"model": lora, "weight": 0.8}], prompt="other")

    async def sampled():
        await draw(worker, scheduler="DPM++ 2M Karras", guidance_scale=3, num_inference_steps=5)

    async def from_picture():
        await draw(worker, image=picture, strength=0.6, loras=[lora])

    async def refused_adapter():
        with pytest.raises(WorkerError):
            await draw(worker, loras=[lora, f"file:{zoo}/models/sd1.safetensors"])

    async def failed_midway():
        on_engine(worker, lambda pipe: failing_once(pipe, "vae", RuntimeError("broken")))
        with pytest.raises(WorkerError):
            await draw(worker, loras=[lora], scheduler="euler_a")

    async def other_size():
        await draw(worker, width=96, height=32, num_images=2)

    async def cancelled():
        task = asyncio.create_task(draw(worker, loras=[lora], num_inference_steps=150, width=128, height=128))
        while worker.engine.running is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.engine.running is None  # the thread has let go when the cancellation comes through

    expected = pixels(await draw(worker))
    before = [cancelled, styled, sampled, from_picture, refused_adapter, failed_midway, other_size]
    order = random.Random(0)
    for _ in range(30):
        await order.choice(before)()
        assert np.array_equal(pixels(await draw(worker)), expected)


async def test_short_memory_at_the_end_is_survived_with_tiles_and_said(worker):
    expected = pixels(await draw(worker)).astype(int)
    on_engine(worker, lambda pipe: failing_once(pipe, "vae", torch.OutOfMemoryError("CUDA out of memory")))
    answer = await draw(worker)
    assert "tiles" in answer["warnings"][0]
    assert np.abs(pixels(answer) - expected).mean() < 8
    again = await draw(worker)
    assert again["warnings"] == []
    assert np.array_equal(pixels(again), expected)


async def test_memory_that_stays_short_is_an_error_and_the_next_job_is_clean(worker):
    expected = pixels(await draw(worker))

    def always(pipe):
        def fail(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB at /secret/path")

        pipe.vae.decode = fail

    on_engine(worker, always)
    with pytest.raises(OutOfMemory) as failure:
        await draw(worker)
    assert failure.value.code == "gpu_oom"
    assert "secret" not in failure.value.message
    assert np.array_equal(pixels(await draw(worker)), expected)


async def test_a_sticky_error_ends_the_workers_service(worker):
    from worker.core.errors import DeviceLost

    await draw(worker)
    on_engine(worker, lambda pipe: failing_once(pipe, "vae", RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(DeviceLost):
        await draw(worker)
    with pytest.raises(DeviceLost):
        await draw(worker)
