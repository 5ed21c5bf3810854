"""The tier in the host's memory: a model that made room for another comes back as a copy, within a budget."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.asking import perform
from tests.images import pixels
from worker.core.device import LoadPlan
from worker.engine import engine as engine_module
from worker.engine import machine
from worker.engine.adapters.adapter_cache import AdapterCaches
from worker.engine.pool import PipelinePool
from worker.engine.ram_tier import RamTier, size_of
from worker.engine.resident import Resident

CPU = torch.device("cpu")


class ApartTier(RamTier):
    """A tier whose device is taken to have a memory of its own, so that every copy is made."""

    is_apart = True


def model(name: str, seed: int = 0, **plan: Any) -> Resident:
    torch.manual_seed(seed)
    unet = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval().requires_grad_(False)
    pipe = SimpleNamespace(components={"unet": unet, "tokenizer": object()}, unet=unet)
    fields = {"root": Path(), "pipeline": "x", "dtype": "float32", "device": "cpu", "offload": "none"}
    return Resident(name, LoadPlan(**{**fields, "estimated_bytes": 0, "weight_bytes": 0, **plan}), pipe, None)


SIZE = size_of(model("x"))


def use(pool: PipelinePool, name: str, loads: list[str], make: Callable[..., Resident] = model) -> Resident:
    with pool.lease(name, lambda: loads.append(name) or make(name)) as resident:
        return resident


def addresses(resident: Resident) -> list[int]:
    return [tensor.data_ptr() for tensor in resident.pipe.unet.state_dict().values()]


@pytest.mark.parametrize("tier", [RamTier(CPU), ApartTier(CPU)])
def test_a_model_that_made_room_is_not_loaded_again(tier):
    pool, loads = PipelinePool(1, tier), []
    first = use(pool, "a", loads)
    weights = {key: tensor.clone() for key, tensor in first.pipe.unet.state_dict().items()}
    use(pool, "b", loads)
    assert (pool.models, tier.models) == (["b"], ["a"])
    assert use(pool, "a", loads) is first
    assert (pool.models, tier.models) == (["a"], ["b"])
    assert loads == ["a", "b"]
    assert all(torch.equal(tensor, weights[key]) for key, tensor in first.pipe.unet.state_dict().items())


def test_weights_are_copied_to_the_host_once_and_point_there_while_they_wait():
    tier = ApartTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    first = use(pool, "a", loads)
    on_device = addresses(first)
    use(pool, "b", loads)
    waiting = addresses(first)
    assert not set(waiting) & set(on_device)
    use(pool, "a", loads)
    assert not set(addresses(first)) & set(waiting)
    use(pool, "b", loads)
    assert addresses(first) == waiting
    assert loads == ["a", "b"]


def test_what_was_cast_on_the_device_is_copied_anew():
    tier = ApartTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    first = use(pool, "a", loads)
    for _ in range(2):
        use(pool, "b", loads)
        use(pool, "a", loads)
        layer = first.pipe.unet[0]
        layer.weight.data = layer.weight.data * 2
    weight = layer.weight.clone()
    use(pool, "b", loads)
    use(pool, "a", loads)
    assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("kind", [RamTier, ApartTier])
def test_the_budget_holds_for_all_that_the_tier_has(kind):
    tier = kind(CPU, int(2.5 * SIZE))
    pool, loads = PipelinePool(1, tier), []
    for name in "abcdabcd":
        use(pool, name, loads)
        assert tier.byte_size <= 2.5 * SIZE
    assert tier.models == ["b", "c"]
    assert loads == list("abcdabcd")  # four take turns, and three have room
    loads.clear()
    for name in "cdcd":
        use(pool, name, loads)
    assert loads == []


@pytest.mark.parametrize("limit", [0, SIZE - 1])
def test_without_room_a_model_is_dropped(limit):
    tier = RamTier(CPU, limit)
    pool, loads = PipelinePool(1, tier), []
    for name in "aba":
        use(pool, name, loads)
    assert loads == ["a", "b", "a"]
    assert tier.byte_size == 0


def test_without_a_limit_it_has_half_of_what_is_free(monkeypatch):
    free = 5 * SIZE
    tier = RamTier(CPU)
    monkeypatch.setattr("worker.engine.ram_tier.ram", lambda: (10 * SIZE, free - tier.byte_size))
    pool, loads = PipelinePool(1, tier), []
    for name in "abcd":
        use(pool, name, loads)
    assert tier.models == ["b", "c"]


def test_an_offloaded_model_waits_where_it_is():
    tier = ApartTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    first = use(pool, "a", loads, lambda name: model(name, offload="model"))
    before = addresses(first)
    use(pool, "b", loads)
    assert addresses(first) == before
    assert use(pool, "a", loads) is first
    assert addresses(first) == before


def test_weights_that_do_not_move_are_dropped(monkeypatch):
    tier = ApartTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    use(pool, "a", loads)
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: 1 / 0)
    use(pool, "b", loads)
    assert tier.models == []
    use(pool, "a", loads)
    assert loads == ["a", "b", "a"]


def test_a_model_that_no_longer_fits_is_loaded_by_a_new_plan():
    tier = ApartTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    use(pool, "a", loads, lambda name: model(name, weight_bytes=2**60))
    use(pool, "b", loads)
    use(pool, "a", loads)
    assert loads == ["a", "b", "a"]


def test_unloading_and_short_memory_reach_what_waits():
    tier = RamTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    for name in "abc":
        use(pool, name, loads)
    assert pool.evict_model("a") == 1
    assert tier.models == ["b"]
    pool.evict_unused()
    assert (pool.models, tier.models) == ([], [])


def test_a_model_that_failed_is_not_kept():
    tier = RamTier(CPU)
    pool, loads = PipelinePool(1, tier), []
    use(pool, "a", loads)
    pool.evict("a")
    assert tier.models == []


def test_adapters_that_were_kept_beside_it_are_dropped():
    tier = RamTier(CPU)
    pool, loads, caches = PipelinePool(1, tier), [], AdapterCaches(2)
    first = use(pool, "a", loads)
    with caches.opened(first.pipe.unet) as cache:
        cache.take("x", object)
    assert len(caches) == 1
    use(pool, "b", loads)
    assert len(caches) == 0


def test_a_containers_limit_is_the_memory_that_there_is(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert machine._container(tmp_path) == (1000, 650)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container(tmp_path)[1] == 0
    first = tmp_path / "memory"
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("2000\n")
    (first / "memory.usage_in_bytes").write_text("900\n")
    (first / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\n")
    assert machine._container(tmp_path) == (2000, 800)


async def test_models_that_take_turns_are_loaded_once_and_draw_the_same(task_worker, monkeypatch):
    loads = []
    original = engine_module.load_pipeline
    monkeypatch.setattr(engine_module, "load_pipeline", lambda plan: loads.append(plan.root.name) or original(plan))
    worker = task_worker(max_resident_models=1)
    images: dict[str, np.ndarray] = {}
    for name in ("sd1", "ddim", "sd1", "ddim"):
        answer = await perform(worker, {"model": name, "seed": 3, **({"prompt": "red"} if name == "sd1" else {})})
        assert np.array_equal(images.setdefault(name, pixels(answer)), pixels(answer))
    assert loads == ["sd1", "ddim"]
