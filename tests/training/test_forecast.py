"""The time of a model's first training, estimated from what serving has learnt of it."""

from dataclasses import replace

import pytest

from tests.training.test_jobs import FEW, PROMPT, ask, sent
from worker.catalog.call import Model
from worker.catalog.detector import detect
from worker.core.answer import Pace, PlanReport
from worker.core.device import LoadPlan
from worker.core.model import Kind, ModelSource, ModelSpec, Outline
from worker.core.training import DatasetFacts, TrainingOptions, TrainingPlan
from worker.service.training.forecast import passes, seconds_by_serving


def model(family, **defaults):
    spec = ModelSpec(id="x", source=ModelSource(scheme="hf", locator="org/x"), defaults=defaults)
    return Model(spec, replace(detect(Outline()), kind=Kind.PIPELINE, architecture=family))


@pytest.mark.parametrize(
    ("family", "defaults", "device", "expected"),
    [
        ("sd1", {}, "cpu", 1.5),
        ("sd1", {}, "cuda", 2.0),
        ("sd1", {"guidance_scale": 1.0}, "cpu", 3.0),
        ("flux1", {}, "cuda", 4.0),  # its guidance is told to the model: one pass
    ],
)
def test_a_step_is_forward_and_backward_against_what_serving_takes(family, defaults, device, expected):
    assert passes(model(family, **defaults), device) == expected


def test_the_estimate_counts_every_image_at_its_size(tmp_path):
    facts = DatasetFacts("d", 3, 3, 3, 0, 0, smallest=64, largest=64, faults=())
    plan = TrainingPlan("n", "x", facts, {(1000, 1000): 2, (500, 1000): 1}, 1.0)
    loading = LoadPlan(tmp_path, "P", "float32", "cpu", "none", 1, 1)
    report = PlanReport("x", "sd1", "P", (), None, 1, 512, "CPU", 1, plan=loading, pace=Pace(3, 0.5))
    options = TrainingOptions(steps=10, batch_size=2)
    told = seconds_by_serving(model("sd1"), options, plan, report)
    assert told == pytest.approx(0.5 * 1.5 * 20 * 2.5 / 3)
    twice = seconds_by_serving(model("sd1"), options.model_copy(update={"class_prompt": "a dog"}), plan, report)
    assert twice == pytest.approx(2 * told)
    assert seconds_by_serving(model("sd1"), options, plan, replace(report, pace=None)) is None


async def test_a_model_that_was_served_has_its_first_training_estimated(trains, images):
    worker = trains(gpu_price_per_hour=3.6)
    job = FEW | {"action": "train_plan", "data": sent(images), "resolution": 64}
    before = await ask(worker, job)
    assert (before["expected_s"], before["expected_from"]) == (None, None)
    await ask(worker, {"prompt": PROMPT, "width": 64, "height": 64})
    after = await ask(worker, job)
    pace = (await ask(worker, {"action": "plan", "model": "tiny"}))["measured"]["s_per_megapixel_step"]
    pixels = sum(size["width"] * size["height"] * size["images"] for size in after["sizes"]) / 4
    assert after["expected_from"] == "serving"
    assert after["expected_s"] == pytest.approx(pace * pixels / 1e6 * 3 * 1.5, abs=2e-3)
    assert after["expected_usd"] == pytest.approx(after["expected_s"] / 1000, abs=1e-5)
