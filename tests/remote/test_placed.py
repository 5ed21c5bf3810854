"""A gateway before two workers on real ports: each model stays where it is, and a plan says so before a job is sent."""

import pytest

from tests.fakes.web_worker import WebGateway, WebWorker


@pytest.fixture
def workers(tmp_path):
    with WebWorker(tmp_path / "a") as first, WebWorker(tmp_path / "b") as second:
        # One after the other: FastAPI hides a warning of pydantic's at an app's first request, and Python's list of
        # hidden warnings is one for all threads.
        assert [worker.http.get("/health").status_code for worker in (first, second)] == [200, 200]
        yield first, second


@pytest.fixture
def gateway(tmp_path, workers):
    replicas = {
        name: {"url": worker.origin, "vram_gb": 48, "usd_per_hour": 3.6}
        for name, worker in zip("ab", workers, strict=True)
    }
    with WebGateway(tmp_path / "gateway", replicas) as served:
        yield served


def draw(gateway, model, seed):
    request = {"model": model, "prompt": "an apple", "width": 64, "height": 64, "seed": seed}
    return gateway.http.post("/runsync", json={"input": request}).json()["output"]["placement"]


def tiers(gateway, model):
    report = gateway.http.post("/plan", json={"model": model}).json()
    return {tier["tier"]: tier for tier in report["tiers"]}


def test_two_models_on_two_replicas_do_not_take_turns_and_plan_tells_where_each_is(gateway, workers):
    before = tiers(gateway, "tiny")
    assert {name: tier["model_is"] for name, tier in before.items()} == {"a": "disk", "b": "disk"}
    places = [draw(gateway, model, seed)["replica"] for seed in range(5) for model in ("tiny", "any")]
    assert places == ["a", "b"] * 5
    for worker, model in zip(workers, ("tiny", "any"), strict=True):
        assert {job.call.spec.id for job in worker.context.engine.ran} == {model}
    # A plan asks no worker, and sends no job anywhere.
    after = tiers(gateway, "tiny")
    assert (after["a"]["model_is"], after["a"]["chosen"], after["a"]["moved_gb"]) == ("resident", True, 0.0)
    assert (after["b"]["model_is"], after["b"]["chosen"]) == ("disk", False)
    # How long each would take is measured here and now; which of them is sooner is in test_placement's tables.
    assert all(after[name]["expected_s"] > 0 and after[name]["expected_usd"] > 0 for name in ("a", "b"))
    assert sum(len(worker.context.engine.ran) for worker in workers) == 10


def test_the_reason_names_what_was_weighed(gateway):
    first, second = draw(gateway, "tiny", 1), draw(gateway, "tiny", 2)
    assert first["reason"].startswith("a: tiny is on its disk")
    assert second["reason"].startswith("a: tiny is resident") and "next is b" in second["reason"]
