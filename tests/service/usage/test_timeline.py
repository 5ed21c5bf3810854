"""Where the seconds went: the moments of a start in order, and each caller's own jobs by their stages."""

import pytest

from tests.asking import perform
from tests.fakes.engine import make_context
from worker.core import moments
from worker.core.errors import InvalidOutput
from worker.service.operations import Operations


async def test_a_job_is_shown_by_its_stages_to_its_caller_alone(tmp_path):
    context = make_context(tmp_path)
    operations: Operations = context.worker.operations
    await perform(context.worker, {"prompt": "x", "model": "tiny"}, "first", caller="ann")
    context.engine.failures = [InvalidOutput("Black.")]
    with pytest.raises(InvalidOutput):
        await perform(context.worker, {"prompt": "x"}, "second", caller="ann")
    await perform(context.worker, {"prompt": "x"}, "third", caller="bob")
    answer = await perform(context.worker, {"action": "timeline"}, "asked", caller="ann")
    assert [(job["id"], job["outcome"]) for job in answer["jobs"]] == [("second", "invalid_output"), ("first", "ok")]
    (first,) = [job for job in answer["jobs"] if job["id"] == "first"]
    assert first["model"] == "tiny"
    names = [stage["stage"] for stage in first["stages"]]
    assert {"accept", "inference", "encode"} <= set(names)
    assert all(stage["seconds"] >= 0 for stage in first["stages"])
    assert not operations.timeline(None).jobs


def test_the_moments_of_a_start_come_in_their_order_each_at_its_first_time(monkeypatch):
    monkeypatch.setattr(moments, "_noted", {})
    for name in ("imports", "engine", "imports"):
        moments.note(name)
    (first, at), (second, later) = moments.of_start()
    assert (first, second) == ("imports", "engine")
    assert 0 < at <= later
