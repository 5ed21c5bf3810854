"""A model with an upscaler of its own, on real pipelines: what is enlarged, counted, replayed, batched and kept."""

import asyncio
import json

import numpy as np
import pytest

from tests.asking import perform
from tests.images import encoded, gradient, pixels
from tests.upscalers import enlarged, upscaler
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.errors import ModelNotFound


@pytest.fixture(scope="module")
def shop(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    upscaler(root / "models/large.safetensors", "compact")
    own = {"upscale": {"model": "large", "scale": 4}, "dtype": "float32"}
    entries = {
        "small": {"source": f"file:{zoo}/models/sd1"} | own,
        "large": {"source": "file:models/large.safetensors"},
    }
    (root / "models.yaml").write_text(json.dumps({"models": entries}))
    roots = {"models_yaml": root / "models.yaml", "allowed_model_dirs": [zoo, root], "volume_dir": root / "volume"}
    return Settings(**roots, default_model="small", device="cpu", warm_up=False, batch_size=4, batch_timeout_ms=500)


async def test_what_comes_back_is_enlarged_counted_and_replayed(shop):
    worker = build_worker(shop)
    fields = {"prompt": "an apple", "seed": 3, "num_inference_steps": 2}
    answer = await perform(worker, fields, "first")
    alone = await perform(worker, fields | {"upscale": False}, "second")
    assert (answer["width"], answer["height"]) == (256, 256)
    assert (alone["width"], alone["height"]) == (64, 64)
    assert np.array_equal(pixels(answer), enlarged("compact", pixels(alone)))
    assert answer["usage"]["pixel_steps"] == alone["usage"]["pixel_steps"] == 2 * 64 * 64
    for each in (answer, alone):
        again = await perform(worker, each["reproduce"]["input"], f"{each['width']} again")
        assert np.array_equal(pixels(again), pixels(each))
    # Of a size that was named, a width and a height suffice: so did answers before there was an upscaler.
    small = await perform(worker, fields | {"width": 64, "height": 64}, "third")
    assert np.array_equal(pixels(small), pixels(alone))
    assert {*worker.engine.resident_models} == {"small", "large"}  # at one resident model: neither evicts the other


async def test_a_preloaded_model_has_its_upscaler_beside_it(shop):
    worker = build_worker(shop)
    await perform(worker, {"action": "preload"})
    assert {*worker.engine.resident_models} == {"small", "large"}
    await worker.operations.device.check("small")
    file, aside = (shop.models_yaml.parent / "models" / name for name in ("large.safetensors", "gone.safetensors"))
    file.rename(aside)
    try:
        with pytest.raises(ModelNotFound, match=r"large\.safetensors"):
            await build_worker(shop).operations.device.check("small")
    finally:
        (shop.models_yaml.parent / "models/gone.safetensors").rename(
            shop.models_yaml.parent / "models/large.safetensors"
        )


async def test_jobs_of_one_batch_are_enlarged_each(shop):
    worker = build_worker(shop)
    await perform(worker, {"action": "preload"})
    jobs = [{"prompt": f"number {seed}", "seed": seed, "num_inference_steps": 2} for seed in range(3)]
    together = await asyncio.gather(*(perform(worker, job, f"batched-{job['seed']}") for job in jobs))
    assert [answer["timings"]["batch_size"] for answer in together] == [3, 3, 3]
    for job, answer in zip(jobs, together, strict=True):
        small = await perform(worker, job | {"upscale": False}, f"alone-{job['seed']}")
        # A batch gives the same images within 1 of 255, of which the upscaler makes a little more.
        difference = np.abs(pixels(answer).astype(int) - enlarged("compact", pixels(small)))
        assert difference.mean() < 0.5
    assert not np.array_equal(pixels(together[0]), pixels(together[1]))


async def test_an_image_keeps_its_size_though_it_is_drawn_smaller(shop):
    worker, sent = build_worker(shop), encoded(gradient(256, 256))
    job = {"prompt": "x", "seed": 1, "image": sent, "strength": 0.5, "num_inference_steps": 8}
    redrawn = await perform(worker, job, "redrawn")
    assert (redrawn["width"], redrawn["height"], redrawn["usage"]["pixel_steps"]) == (256, 256, 4 * 64 * 64)
    kept = await perform(worker, {"prompt": "x", "image": sent, "strength": 0}, "kept")
    assert np.array_equal(pixels(kept), gradient(256, 256))
