"""What stays ready beside resident pipelines."""

import gc

import pytest
import torch
from torch import nn

from worker.engine.adapters.shelf import Shelves


def filled(shelves, denoiser, *names):
    with shelves.opened(denoiser) as shelf:
        return [shelf.take(name, lambda name=name: name.upper()) for name in names]


def held(shelves, denoiser):
    with shelves.opened(denoiser) as shelf:
        return [*shelf]


def test_a_job_has_all_that_it_takes_and_the_last_ones_stay():
    shelves, denoiser = Shelves(2), nn.Linear(1, 1)
    assert filled(shelves, denoiser, "a", "b", "c") == ["A", "B", "C"]
    assert held(shelves, denoiser) == ["b", "c"]
    filled(shelves, denoiser, "b", "d")
    assert held(shelves, denoiser) == ["b", "d"]


@pytest.mark.parametrize(
    ("error", "left"), [(torch.OutOfMemoryError("CUDA out of memory"), []), (ValueError("shapes"), ["a", "b"])]
)
def test_where_memory_runs_out_nothing_stays(error, left):
    shelves, denoiser, other = Shelves(2), nn.Linear(1, 1), nn.Linear(1, 1)
    filled(shelves, other, "a")
    with pytest.raises(type(error)), shelves.opened(denoiser) as shelf:
        shelf.take("a", str)
        shelf.take("b", str)
        raise error
    assert held(shelves, denoiser) == left
    assert held(shelves, other) == ["a"]


def test_what_cannot_be_loaded_is_not_there():
    shelves, denoiser = Shelves(2), nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), shelves.opened(denoiser) as shelf:
        shelf.take("a", lambda: 1 / 0)
    assert held(shelves, denoiser) == []


def test_a_shelf_goes_with_its_pipeline():
    shelves, denoiser = Shelves(2), nn.Linear(1, 1)
    filled(shelves, denoiser, "a")
    del denoiser
    gc.collect()
    assert len(shelves) == 0
