"""What there is and how the server is, without a weight being loaded."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fakes.web_worker import WebWorker
from tests.waiting import until
from worker.core.errors import DeviceLost


def test_the_registry_and_each_of_its_models(served):
    listed = served.http.get("/models").json()["models"]
    assert {model["id"] for model in listed} >= {"tiny", "org/sdxl"}
    assert served.http.get("/models/org/sdxl").json()["id"] == "org/sdxl"
    assert served.http.get("/models/org%2Fsdxl").json()["id"] == "org/sdxl"
    assert served.http.get("/models/small").json()["id"] == "tiny"  # an alias
    schema = served.http.get("/models/tiny/schema").json()
    assert schema["properties"]["num_inference_steps"]["default"] == 5
    assert served.http.get("/models/org/sdxl/schema").status_code == 200
    assert served.context.builder.built == 0


@pytest.mark.parametrize("path", ["/models/nope", "/models/nope/schema"])
def test_an_unknown_model_is_404(served, path):
    answer = served.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_inspecting_and_planning(served):
    assert served.http.post("/inspect", json={"model": "tiny"}).json()["architecture"] == "sd1"
    assert served.http.post("/inspect", json={}).json()["model"] == "tiny"
    assert served.http.post("/plan", json={"model": "small"}).json()["device"] == "Fake GPU"
    for body in ({"model": "tiny", "prompt": "x"}, {"action": "generate"}, [], {"model": 5}):
        assert served.http.post("/inspect", json=body).status_code == 400
    assert served.http.post("/inspect", json={"model": "nope"}).json()["code"] == "model_not_found"
    assert served.context.engine.ran == []


def test_health_from_the_start_to_the_end(tmp_path):
    with WebWorker(tmp_path, warm_up=True, builds_later=True) as served:
        assert served.http.get("/ping").status_code == 204
        assert served.http.get("/ready").status_code == 503
        health = served.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "starting")
        with ThreadPoolExecutor(1) as early:
            first = early.submit(served.http.post, "/run", json={"prompt": "x"})
            served.context.builder.gate.set()
            assert first.result().status_code == 200  # those who come early wait
        until(lambda: served.http.get("/ready").status_code == 200)
        assert served.http.get("/ping").json() == {"status": "ready"}
        assert served.http.get("/ready").status_code == 200
        found = served.http.get("/health").json()
        assert (found["status"], found["gpu_available"], found["resident_models"]) == ("ready", False, ["tiny"])
        served.context.engine.failures = [DeviceLost("The device is gone.")]
        assert served.http.post("/run", json={"prompt": "y"}).status_code == 503
        for path in ("/health", "/ping", "/ready"):
            assert (served.http.get(path).status_code, served.http.get(path).json()["status"]) == (503, "lost")


def test_without_a_warm_up_it_is_ready_at_once(served):
    assert served.http.get("/ready").status_code == 200
    assert served.context.builder.built == 0


def test_every_line_of_a_request_carries_its_id(served, caplog):
    from worker.service.usage.request_id import RequestIdFilter

    caplog.handler.addFilter(RequestIdFilter())
    with caplog.at_level(logging.INFO, "worker"):
        served.http.post("/run", json={"prompt": "x"}, headers={"X-Request-ID": "mine"})
        served.context.engine.failures = [ValueError("odd")]
        answer = served.http.post("/run", json={"prompt": "y"}, headers={"X-Request-ID": "other"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "other")
    lines = [(record.request_id, record.name) for record in caplog.records if record.name.startswith("worker")]
    assert {name for name, _ in lines} == {"mine", "other"}
