"""Accepting a job and answering a schema: what is derived of the model on the way, and how often."""

import pytest

from tests.derivations import counted
from tests.fakes.engine import ServerContext
from tests.service.accepting.test_inputs import image


@pytest.mark.parametrize("fields", [{}, {"image": True}, {"model": "fast"}], ids=["text", "image", "lightning"])
async def test_an_accepted_job_derives_each_fact_once(context: ServerContext, monkeypatch, fields) -> None:
    fields = fields | ({"image": image(64, 64)} if "image" in fields else {})
    await context.accept(**fields)  # what the model is, is detected with its first job
    derivations = counted(monkeypatch)
    job = await context.accept(**fields)
    assert derivations.named("architecture") == derivations.named("tasks") == 1
    assert derivations["fit_of", (job.call.spec.id, job.call.task, job.call.pipeline), "[(), ()]"] == 1
    assert not derivations.repeated()


async def test_a_schema_of_a_served_model_derives_each_fact_once(context: ServerContext, monkeypatch) -> None:
    await context.ask(action="schema")
    derivations = counted(monkeypatch)
    await context.ask(action="schema")
    assert derivations.named("architecture") == 1
    assert not derivations.repeated()
