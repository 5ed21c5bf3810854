"""What a model's last jobs took here, as its plan says it."""

from types import SimpleNamespace

import pytest

from tests.asking import perform
from tests.fakes.engine import make_context
from worker.core.result import Timings, Usage
from worker.service.usage.pace import KEPT, Paces


def record(model="tiny", outcome="ok", seconds=2.0, megapixel_steps=4.0, usd=None):
    usage = Usage(seconds, 1, int(megapixel_steps * 1e6), 0, 0, usd)
    return SimpleNamespace(
        outcome=outcome, model=model, timings=Timings(inference_s=seconds), usage=usage, encode_s=0.0
    )


def test_the_pace_is_the_median_of_the_last_jobs_of_a_model():
    paces = Paces()
    assert paces.of("tiny") is None
    for seconds in (2.0, 4.0, 400.0):
        paces.note(record(seconds=seconds, usd=seconds / 100))
    pace = paces.of("tiny")
    assert (pace.jobs, pace.seconds, pace.usd) == (3, 1.0, pytest.approx(0.01))
    for _ in range(KEPT):
        paces.note(record(seconds=8.0))
    assert (paces.of("tiny").jobs, paces.of("tiny").seconds, paces.of("tiny").usd) == (KEPT, 2.0, None)
    assert paces.of("other") is None


def test_what_failed_or_is_not_registered_or_draws_nothing_is_not_counted():
    paces = Paces()
    for each in (record(outcome="gpu_oom"), record(model="unregistered"), record(model=""), record(megapixel_steps=0)):
        paces.note(each)
    assert paces.of("tiny") is None
    assert paces.of("unregistered") is None


async def test_a_plan_tells_it_after_the_first_job(tmp_path):
    worker = make_context(tmp_path, gpu_price_per_hour=3.6).worker
    assert "measured" not in await perform(worker, {"action": "plan", "model": "tiny"})
    await perform(worker, {"prompt": "x", "num_inference_steps": 5})
    measured = (await perform(worker, {"action": "plan", "model": "tiny"}))["measured"]
    assert measured["jobs"] == 1
    assert measured["s_per_megapixel_step"] > 0
    assert measured["usd_per_megapixel_step"] > 0
