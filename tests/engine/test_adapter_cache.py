"""What stays ready beside resident pipelines."""

import gc

import pytest
import torch
from torch import nn

from worker.engine.adapters.adapter_cache import AdapterCaches


def filled(caches, denoiser, *names):
    with caches.opened(denoiser) as cache:
        return [cache.take(name, lambda name=name: name.upper()) for name in names]


def held(caches, denoiser):
    with caches.opened(denoiser) as cache:
        return [*cache]


def test_a_job_has_all_that_it_takes_and_the_last_ones_stay():
    caches, denoiser = AdapterCaches(2), nn.Linear(1, 1)
    assert filled(caches, denoiser, "a", "b", "c") == ["A", "B", "C"]
    assert held(caches, denoiser) == ["b", "c"]
    filled(caches, denoiser, "b", "d")
    assert held(caches, denoiser) == ["b", "d"]


@pytest.mark.parametrize(
    ("error", "left"), [(torch.OutOfMemoryError("CUDA out of memory"), []), (ValueError("shapes"), ["a", "b"])]
)
def test_where_memory_runs_out_nothing_stays(error, left):
    caches, denoiser, other = AdapterCaches(2), nn.Linear(1, 1), nn.Linear(1, 1)
    filled(caches, other, "a")
    with pytest.raises(type(error)), caches.opened(denoiser) as cache:
        cache.take("a", str)
        cache.take("b", str)
        raise error
    assert held(caches, denoiser) == left
    assert held(caches, other) == ["a"]


def test_what_cannot_be_loaded_is_not_there():
    caches, denoiser = AdapterCaches(2), nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), caches.opened(denoiser) as cache:
        cache.take("a", lambda: 1 / 0)
    assert held(caches, denoiser) == []


def test_a_shelf_goes_with_its_pipeline():
    caches, denoiser = AdapterCaches(2), nn.Linear(1, 1)
    filled(caches, denoiser, "a")
    del denoiser
    gc.collect()
    assert len(caches) == 0
