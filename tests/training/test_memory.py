"""The memory of a training, told before it begins: what learns to the byte, and what does not fit with its numbers."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.training.conftest import CLASSES
from tests.training.test_jobs import FEW, ask, sent
from worker.core.training import TrainingOptions
from worker.service.introspection.device import DeviceIntrospection
from worker.training.memory import learnt_bytes


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("sd1", {"targets": "all"}),
        pytest.param("flux", {"optimizer": "lion", "ema": 0.9, "targets": "attention"}, marks=pytest.mark.slow),
        pytest.param("sd1", {"method": "full"}, marks=pytest.mark.slow),
        pytest.param("sdxl", {"method": "lokr", "optimizer": "lion"}, marks=pytest.mark.slow),
    ],
)
def test_what_learns_is_counted_to_the_byte_before_the_weights_are_there(trainer, tiny, family, options):
    made = trainer(family, **options)
    made.step()
    learning = [each for _, each in made.learner.learning]
    state = [value for each in made._optimizer.state.values() for value in each.values()]
    moments = sum(value.nbytes for value in state if hasattr(value, "nbytes") and value.ndim)
    taken = 2 * sum(each.nbytes for each in learning) + moments  # they and their gradients
    (config,) = [
        *tiny.folder.glob(f"{family}/unet/config.json"),
        *tiny.folder.glob(f"{family}/transformer/config.json"),
    ]
    shape = json.loads(config.read_text())
    assert learnt_bytes(shape, TrainingOptions(rank=2, **options)) == taken
    assert learnt_bytes(shape, TrainingOptions(method="embedding")) == 0
    assert learnt_bytes({"_class_name": "Nobodys"}, TrainingOptions()) is None


def most_bytes(work):
    """The most bytes that were taken at once while something was at work."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    sizes = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(("again", "most"), [(True, 2.5), (False, 10.0)])
def test_the_way_back_takes_no_more_than_the_formula_says(trainer, family, again, most):
    made = trainer(family)
    if again:
        made.denoiser.enable_gradient_checkpointing()
    made.step()  # which makes the optimizer's state
    with torch.no_grad():
        forward = most_bytes(lambda: made._loss(made._next(made._lessons), made._random(9), 0.0, weight=None))
    assert forward < most_bytes(made.step) < most * forward


async def test_a_plan_tells_the_memory_and_refuses_what_does_not_fit_with_numbers(trains, images, monkeypatch):
    worker, job = trains(), FEW | {"action": "train_plan", "data": sent(images), "name": "mine"}
    few, many = await ask(worker, job), await ask(worker, job | {"rank": 256, "targets": "all", "batch_size": 4})
    assert few["fits"]
    assert few["memory"]["total_gb"] > 0
    assert many["memory"]["learnt_gb"] > few["memory"]["learnt_gb"]
    assert many["memory"]["activations_gb"] >= few["memory"]["activations_gb"]
    plan_of = DeviceIntrospection.plan_of

    async def crowded(self, model):
        report = await plan_of(self, model)
        return replace(report, free_bytes=report.plan.weight_bytes)

    monkeypatch.setattr(DeviceIntrospection, "plan_of", crowded)
    full = await ask(worker, job)
    assert full["fits"] is False
    assert "GiB are free on" in full["reason"]
    assert "batch_size" in full["reason"]
