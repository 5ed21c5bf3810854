"""On a CUDA device: the same images, offloading, and memory that comes back. Skipped where there is none."""

import numpy as np
import pytest
import torch

from tests.asking import perform
from tests.engine.test_generation import draw
from tests.images import pixels
from worker.app.build import build_worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture
def cuda(settings):
    return build_worker(settings.model_copy(update={"device": "cuda"}))


async def test_an_image_is_close_to_the_cpus_and_repeats(cuda, worker):
    first = pixels(await draw(cuda)).astype(int)
    assert np.abs(first - pixels(await draw(worker))).mean() < 8  # bfloat16 against float32
    assert np.array_equal(first, pixels(await draw(cuda)))


async def test_a_lora_comes_off_exactly(cuda, zoo):
    before = pixels(await draw(cuda))
    await draw(cuda, loras=[f"file:{zoo}/models/lora.safetensors"])
    assert np.array_equal(pixels(await draw(cuda)), before)


async def test_unloading_gives_the_memory_back(cuda):
    await draw(cuda)
    used = torch.cuda.memory_allocated()
    await perform(cuda, {"action": "unload", "model": "tiny"}, "u", lambda progress: None)
    assert torch.cuda.memory_allocated() < used / 2


@pytest.mark.parametrize("offload", ["group", "model", "sequential"])
async def test_offloading_draws_the_same(cuda, monkeypatch, offload):
    expected = pixels(await draw(cuda)).astype(int)
    await perform(cuda, {"action": "unload", "model": "tiny"}, "u", lambda progress: None)
    from dataclasses import replace

    from worker.engine import engine

    real = engine.make_plan
    monkeypatch.setattr(engine, "make_plan", lambda *a, **k: replace(real(*a, **k), offload=offload))
    answer = await draw(cuda)
    assert np.abs(pixels(answer) - expected).max() <= 2
    assert answer["usage"]["peak_memory_gb"] > 0
