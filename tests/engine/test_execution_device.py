"""The device of a pipeline that stays on it: known for the length of a call, and searched for where parts move."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import group_offloading

from tests.asking import perform
from worker.core.device import LoadPlan
from worker.engine.execution_device import device_known

PLAN = LoadPlan(Path(), "", "float32", "cpu", "none", 0, 0)


@pytest.fixture
def searches(monkeypatch):
    """The modules that diffusers has looked through."""
    seen = []
    real = group_offloading._get_group_onload_device
    monkeypatch.setattr(
        group_offloading, "_get_group_onload_device", lambda module: seen.append(module) or real(module)
    )
    return seen


def test_a_device_is_searched_for_only_where_parts_move(zoo, searches):
    pipe = DiffusionPipeline.from_pretrained(zoo / "models" / "sd1")
    with device_known(pipe, PLAN):
        searches.clear()
        assert pipe._execution_device == torch.device("cpu")
        assert searches == []
    for change in ({"offload": "group"}, {"offload": "model"}, {"offload": "sequential"}, {"cards": {"unet": 1}}):
        with device_known(pipe, replace(PLAN, **change)):
            assert pipe._execution_device == torch.device("cpu")
        assert len(searches) > 0
        searches.clear()
    assert pipe._execution_device == torch.device("cpu")
    assert len(searches) > 0  # nothing is known once the call is over


def test_a_part_on_a_device_goes_before_one_in_the_hosts_memory(zoo):
    pipe = DiffusionPipeline.from_pretrained(zoo / "models" / "sd1")
    pipe.components["text_encoder"].to("cpu")
    pipe.unet.to("meta")  # the only other device at hand: where nothing is
    with device_known(pipe, PLAN):
        assert pipe._execution_device.type == "cpu"


async def test_a_job_searches_for_no_device(worker, searches):
    await perform(worker, {"prompt": "a red apple", "seed": 7}, "first")
    searches.clear()
    await perform(worker, {"prompt": "a red apple", "seed": 8}, "second")
    assert searches == []
