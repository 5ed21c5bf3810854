"""One job leaves no trace in the next: not its adapters, its scheduler, its failure or its cancel."""

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from tests.engine.test_generation import draw
from tests.engine.visits import Visit, pay, visits
from tests.images import pixels
from worker.core.errors import OutOfMemory


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


@pytest.fixture(scope="module")
def alone(task_worker, zoo) -> Mapping[str, tuple[str, ...]]:
    """What each visit gets from a worker that never drew anything else; for one that fails, its error's code."""
    rows = visits(zoo / "models")
    return {visit.name: (visit.fails,) if visit.fails else asyncio.run(pay(task_worker(), visit)) for visit in rows}


@pytest.mark.slow
def test_every_visit_draws_something_else(alone):
    """Two equal images could not tell which job left a trace in which."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, answer in alone.items():
        names.setdefault(answer, []).append(name)
    images = {answer: visits for answer, visits in names.items() if len(answer[0]) > 100}
    # Tiles do not show in an image as small as one, and without its Lightning LoRA a model is any other.
    assert [group for group in images.values() if len(group) > 1] == [
        ["plain", "no lightning"],
        ["lightning", "tight"],
    ]


def dealt(rows: Sequence[Visit], orders: int, seed: int) -> list[list[Visit]]:
    """Every row once, in `orders` random orders of a model or two: most rows meet what another one has left."""
    dice = random.Random(seed)
    models = [*dict.fromkeys(visit.fields["model"] for visit in rows)]
    dice.shuffle(models)
    cards = sorted(dice.sample(rows, len(rows)), key=lambda visit: models.index(visit.fields["model"]))
    ends = [len(cards) * order // orders for order in range(orders + 1)]
    return [dice.sample(cards[start:end], end - start) for start, end in itertools.pairwise(ends)]


async def in_orders(worker, orders, alone):
    """Draw the visits of all `orders`, and compare every one with what it draws alone."""
    before = torch.get_rng_state()
    for order in orders:
        past: list[str] = []
        for visit in order:
            assert await pay(worker, visit) == alone[visit.name], f"{visit.name} after {', '.join(past)}"
            past.append(visit.name)
            models = [name for name in worker.engine.resident_models if name != "esrgan"]  # upscalers stay beside
            assert len(models) <= worker.settings.max_resident_models
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("residents", [1, 2])
async def test_whatever_came_before_a_job_draws_what_it_draws_alone(task_worker, zoo, alone, residents):
    worker = task_worker(max_resident_models=residents)
    await in_orders(worker, dealt(visits(zoo / "models"), 15, seed=residents), alone)  # thirty orders in all


@pytest.mark.slow
@pytest.mark.timeout(900)  # with one resident nearly every visit loads its model
@pytest.mark.parametrize("residents", [1, 2])
async def test_long_orders_of_visits_leave_no_trace_either(task_worker, zoo, alone, residents):
    orders = [order for seed in range(100, 106) for order in dealt(visits(zoo / "models"), 5, seed)]
    await in_orders(task_worker(max_resident_models=residents), orders, alone)


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
