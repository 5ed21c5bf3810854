"""A server counts as ready once the models that it should have are there, and says which of them are not."""

import asyncio

import pytest

from tests.fakes.engine import FakeEngine, make_context
from tests.fakes.web_worker import WebWorker
from tests.waiting import LIMIT_S, until
from worker.core.errors import CorruptFile, LoadFailed, SourceUnavailable
from worker.service.introspection import readiness
from worker.service.introspection.device import DeviceIntrospection


def health(served, status):
    """What /health says once it has this status."""
    return until(lambda: (said := served.http.get("/health").json())["status"] == status and said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_id": "file:missing/model.safetensors"}, "file:missing/model.safetensors"),
        ({"preload_models": ("tiny", "nosuch")}, "nosuch"),
        ({"preload_models": ("org/sdxl",)}, "org/sdxl"),  # offline, and never fetched
    ],
)
@pytest.mark.parametrize("warm_up", [True, False])
def test_a_model_that_should_be_ready_and_cannot_be_had(tmp_path, changes, said, warm_up):
    with WebWorker(tmp_path, warm_up=warm_up, **changes) as served:
        assert said in health(served, "failed")["reason"]
        for path in ("/ready", "/ping"):
            answer = served.http.get(path)
            assert (answer.status_code, answer.json()["status"]) == (503, "failed")
            assert said in answer.json()["reason"]
        workers = served.http.get("/v2/local/health").json()["workers"]
        assert (workers["unhealthy"], workers["ready"]) == (1, 0)
        status = served.http.post("/run", json={"action": "status"}).json()["output"]
        assert (status["status"], said in status["reason"]) == ("failed", True)
        assert served.http.post("/run", json={"prompt": "x", "model": "tiny"}).status_code == 200


def test_a_model_that_fails_to_load_keeps_a_server_from_being_ready_until_it_is_loaded(tmp_path):
    engine = FakeEngine()
    engine.load_failures = [LoadFailed("tiny could not be loaded.")]
    with WebWorker(tmp_path, warm_up=True, engine=engine) as served:
        assert "tiny could not be loaded." in health(served, "failed")["reason"]
        assert served.http.get("/ready").status_code == 503
        assert served.http.post("/run", json={"prompt": "x"}).status_code == 200  # which has it loaded
        assert served.http.get("/ready").json() == {"status": "ready"}
        assert "reason" not in served.http.get("/health").json()


async def test_a_source_that_answers_later_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "PAUSES_S", (0.01,))
    context = make_context(tmp_path)
    ready = context.worker.operations.readiness
    answers = [SourceUnavailable("The Hub does not answer."), CorruptFile("It is damaged."), None]

    async def preload(model, emit):
        if (failure := answers.pop(0)) is not None:
            raise failure

    monkeypatch.setattr(DeviceIntrospection, "preload", lambda self, model, emit: preload(model, emit))
    await ready.prepare(loaded=True)
    assert ready.problems() == ("tiny: The Hub does not answer.",)
    retrying = asyncio.create_task(ready.retry(loaded=True))
    async with asyncio.timeout(LIMIT_S):
        while ready.problems():
            await asyncio.sleep(0.01)
    retrying.cancel()
    assert answers == []


async def test_models_read_anew_are_tried_again(tmp_path):
    context = make_context(tmp_path, preload_models=("later",))
    worker = context.worker
    warming = asyncio.create_task(worker.warm_up())
    async with asyncio.timeout(LIMIT_S):
        while not worker.operations.readiness.problems():
            await asyncio.sleep(0.01)
        models = worker.settings.models_yaml
        models.write_text(models.read_text().replace('["small"]', '["small", "later"]'))
        await asyncio.to_thread(worker.reload)
        while worker.operations.readiness.problems():
            await asyncio.sleep(0.01)
    warming.cancel()
