"""F7: memory runs out while a model loads, at a step, or while it decodes: a ladder, a typed end, no trace."""

import numpy as np
import pytest
import torch

from tests.engine.test_generation import draw
from tests.engine.test_isolation import failing_once, on_engine
from tests.images import pixels
from worker.core.errors import OutOfMemory
from worker.engine import engine as engine_module
from worker.engine import pool

pytestmark = pytest.mark.slow  # tests/engine/test_isolation.py has the quick half
SHORT = "CUDA out of memory. Tried to allocate 2 GiB"


def staying(pipe, part):
    def fail(*arguments, **keywords):
        raise torch.OutOfMemoryError(SHORT)

    setattr(getattr(pipe, part), "decode" if part == "vae" else "forward", fail)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
async def test_memory_that_was_short_once_still_ends_in_an_image(worker, part, figures):
    expected = pixels(await draw(worker))
    on_engine(worker, lambda pipe: failing_once(pipe, part, torch.OutOfMemoryError(SHORT)))
    survived = "image" in await draw(worker)
    same = np.array_equal(pixels(await draw(worker)), expected)
    figures("F7", f"images drawn though memory was short once ({part})", survived, "", at_least=1)
    figures("F7", f"next images like those before ({part})", same, "", at_least=1)


@pytest.mark.parametrize("part", ["unet", "vae"])
async def test_memory_that_stays_short_is_a_typed_error_and_leaves_no_trace(worker, part, figures):
    expected = pixels(await draw(worker))
    on_engine(worker, lambda pipe: staying(pipe, part))
    with pytest.raises(OutOfMemory) as raised:
        await draw(worker)
    assert "2 GiB at" not in raised.value.message
    same = np.array_equal(pixels(await draw(worker)), expected)
    figures("F7", f"next images like those before, memory short for good ({part})", same, "", at_least=1)


async def test_memory_that_is_short_while_loading_is_a_typed_error_and_the_next_load_works(
    worker, monkeypatch, figures
):
    def fail(plan):
        raise torch.OutOfMemoryError(SHORT)

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "load_pipeline", fail)
        with pytest.raises(OutOfMemory):
            await draw(worker)
    figures("F7", "images after a load that was short of memory", "image" in await draw(worker), "", at_least=1)


async def test_the_ladder_is_gone_down_rung_by_rung(worker, monkeypatch):
    await draw(worker)
    rungs = []
    original = pool.PipelinePool.evict_unused
    monkeypatch.setattr(pool.PipelinePool, "evict_unused", lambda self: rungs.append("evict") or original(self))
    tiled = engine_module._tiled_vae
    monkeypatch.setattr(engine_module, "_tiled_vae", lambda pipe: rungs.append("tiles") or tiled(pipe))
    on_engine(worker, lambda pipe: failing_once(pipe, "vae", torch.OutOfMemoryError(SHORT)))
    await draw(worker)
    assert rungs == ["evict", "tiles"]
