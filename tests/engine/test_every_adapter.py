"""Something of every kind beside the model: jobs that share a call, and jobs that are stopped in the middle of one."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.asking import perform
from tests.engine.test_batches import assert_same
from tests.images import encoded, gradient, pixels
from tests.waiting import LIMIT_S
from worker.app.build import Worker
from worker.app.queue import build_door

TEXTS = ({"prompt": "red", "seed": 1}, {"prompt": "a green pear beside a blue plum", "seed": 2}, {"seed": 3})
IMAGE, OTHER = encoded(gradient(64, 64)), encoded(255 - gradient(64, 64))
_ids = itertools.count()


def beside(models: Path) -> Mapping[str, Mapping[str, Any]]:
    """What every job of a batch sends, by a name for it; the files lie below `models`."""
    folder = f"file:{models}/companions"
    control = {"model": f"{folder}/control-sd1", "image": IMAGE}
    sketch = {"model": f"{folder}/t2i-sd1", "image": IMAGE}
    shown = {"model": f"{folder}/ip-sd1.safetensors", "images": [IMAGE, OTHER], "scale": 0.8}
    word = {"model": f"{folder}/word-sd1.safetensors", "token": "zzz"}
    style = {"model": f"{folder}/style.safetensors", "weight": 0.7}
    lora = {"model": f"file:{models}/lora.safetensors", "weight": 0.8}
    flux_control = {"model": f"{folder}/control-flux", "image": IMAGE}
    return {
        "lora": {"model": "sd1", "loras": [lora]},
        "controlnet": {"model": "sd1", "controlnets": [control]},
        "controlnet of a part of the steps": {"model": "sd1", "controlnets": [control | {"scale": 0.6, "end": 0.5}]},
        "canny": {"model": "sd1", "controlnets": [control | {"preprocess": "canny"}]},
        "t2i adapter": {"model": "sd1", "controlnets": [sketch]},
        "two t2i adapters": {"model": "sd1", "controlnets": [sketch, sketch | {"image": OTHER, "scale": 0.5}]},
        "controlnet from an image": {"model": "sd1", "image": OTHER, "strength": 0.7, "controlnets": [control]},
        "ip adapter": {"model": "sd1", "ip_adapters": [shown]},
        "embedding": {"model": "sd1", "embeddings": [word], "negative_prompt": "a zzz"},
        "hypernetwork": {"model": "sd1", "hypernetworks": [style]},
        "vae": {"model": "sd1", "vae": f"{folder}/vae"},
        "clip skip": {"model": "sd1", "clip_skip": 2},
        "weights": {"model": "sd1", "prompt_weighting": "a1111", "negative_prompt": "a (red:1.4) [apple]"},
        "all": {
            **{"model": "sd1", "loras": [lora], "controlnets": [control], "ip_adapters": [shown], "clip_skip": 1},
            **{"embeddings": [word], "hypernetworks": [style], "vae": f"{folder}/vae", "negative_prompt": "zzz"},
        },
        "xl lora": {"model": "sdxl", "loras": [f"file:{models}/lora-sdxl.safetensors"]},
        "xl controlnet": {"model": "sdxl", "controlnets": [control | {"model": f"{folder}/control-sdxl"}]},
        "xl ip adapter": {
            "model": "sdxl",
            "ip_adapters": [{"model": f"{folder}/ip-sdxl.safetensors", "image": OTHER}],
        },
        "xl embedding": {"model": "sdxl", "embeddings": [word | {"model": f"{folder}/word-sdxl.safetensors"}]},
        "xl clip skip": {"model": "sdxl", "clip_skip": 1},
        "flux lora": {"model": "flux", "loras": [f"file:{models}/lora-flux.safetensors"]},
        "flux controlnet": {"model": "flux", "controlnets": [flux_control]},
    }


NAMES = tuple(beside(Path()))
OF_EACH_KIND = tuple(name for name in NAMES if name not in ("canny", "two t2i adapters") and not name.startswith("xl"))


@pytest.fixture(scope="module")
def workers(task_worker):
    """One that draws jobs one by one, and one that draws three in a call."""
    return task_worker(), task_worker(batch_size=3, batch_timeout_ms=10_000)


async def ask(worker, **fields):
    payload = {"prompt": "a zzz apple", "width": 64, "height": 64, **fields}
    return await perform(worker, payload, f"batched-{next(_ids)}", lambda progress: None)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", NAMES)
async def test_a_batch_draws_what_each_job_draws_alone(workers, zoo, name):
    alone, batching = workers
    fields = beside(zoo / "models")[name]
    jobs = [{**fields, **text} for text in TEXTS]
    answers = await asyncio.gather(*(ask(batching, **job) for job in jobs))
    assert [answer["timings"]["batch_size"] for answer in answers] == [3, 3, 3]
    for answer, job in zip(answers, jobs, strict=True):
        assert_same(pixels(answer), pixels(await ask(alone, **job)))


class Halt:
    """Holds a denoiser before its `at`-th step until it may go on."""

    def __init__(self, at: int) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self._at, self._count = at, 0

    def __call__(self, denoiser: torch.nn.Module, given: Any) -> None:
        self._count += 1
        if self._count == self._at:
            self.inside.set()
            self.go_on.wait(LIMIT_S)


@asynccontextmanager
async def halted(worker: Worker, model: str, at: int) -> AsyncIterator[Halt]:
    """`model`, loaded, with its denoiser held before a step."""
    await perform(worker, {"action": "preload", "model": model}, "preload", lambda progress: None)
    halt = Halt(at)

    def hook(engine: Any) -> Any:
        pipe = [*engine._pool._residents.values()][-1].pipe
        return (getattr(pipe, "unet", None) or pipe.transformer).register_forward_pre_hook(halt)

    handle = await asyncio.to_thread(lambda: worker.engine.submit(hook, "hook").result())
    try:
        yield halt
    finally:
        halt.go_on.set()
        handle.remove()


@pytest.fixture(scope="module")
def shared(task_worker):
    """One worker for all cancelled jobs, and what each next job draws where nothing came before it."""
    return task_worker(max_resident_models=3), {}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", OF_EACH_KIND)
async def test_what_comes_after_a_cancelled_job_is_as_if_it_had_never_been(shared, workers, zoo, name):
    """The platform's stop in the middle of the steps, with something of every kind beside the model."""
    worker, plain = shared
    fields = dict(beside(zoo / "models")[name])
    door = build_door(worker, concurrency=1)
    job = {"prompt": "a zzz apple", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 4, **fields}
    bare = {name: job[name] for name in ("prompt", "seed", "width", "height", "num_inference_steps", "model")}
    fresh, _ = workers
    if job["model"] not in plain:
        plain[job["model"]] = pixels(await ask(fresh, **bare))
    async with halted(worker, job["model"], at=2) as halt:
        task = asyncio.create_task(door.handle({"id": f"stopped-{name}", "input": job}))
        assert await asyncio.to_thread(halt.inside.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        halt.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert worker.engine.running is None
    for sent, expected in ((bare, plain[job["model"]]), (job, pixels(await ask(fresh, **job)))):
        answer = await door.handle({"id": f"next-{name}", "input": sent})
        assert "error" not in answer
        assert np.array_equal(pixels(answer), expected)
