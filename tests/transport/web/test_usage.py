"""What was drawn, added up: for whoever runs the worker, over HTTP."""

import hashlib
import time

import pytest

from tests.fakes.web_worker import WebWorker
from tests.waiting import until
from worker.core.errors import OutOfMemory

ANNA, OPERATOR = "anna's own secret key", "the operator's own key"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def guarded(tmp_path):
    keys = f"anna:{hashlib.sha256(ANNA.encode()).hexdigest()}"
    with WebWorker(tmp_path, api_keys=keys, admin_keys=OPERATOR, gpu_price_per_hour=2.0) as served:
        yield served


def asked(served, jobs, **query):
    """The answer once this many jobs are written down, which happens beside their answers."""

    def look():
        answer = served.http.get("/usage", params=query, headers=bearer(OPERATOR))
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return sum(total["jobs"] for total in found["usage"].values()) == jobs and found

    return until(look)


def test_the_operator_is_told_what_each_caller_drew(guarded):
    drawn = guarded.http.post("/run", json={"prompt": "x", "num_images": 2}, headers=bearer(ANNA)).json()
    guarded.context.engine.failures = [OutOfMemory("Too large.")]
    assert guarded.http.post("/run", json={"prompt": "y"}, headers=bearer(ANNA)).status_code == 503
    found = asked(guarded, 2, by="caller")
    assert found["by"] == "caller"
    assert found["usage"].keys() == {"anna"}
    total = found["usage"]["anna"]
    assert (total["jobs"], total["failed"], total["images"]) == (2, 1, 2)
    assert total["pixel_steps"] == drawn["usage"]["pixel_steps"]
    assert total["cost_usd"] == pytest.approx(drawn["usage"]["cost_usd"], abs=1e-8)
    assert asked(guarded, 2, by="model", days=1)["usage"].keys() == {"tiny"}
    assert asked(guarded, 2)["usage"].keys() == {time.strftime("%Y-%m-%d", time.gmtime())}


def test_nobody_else_is_told(guarded):
    answer = guarded.http.get("/usage", headers=bearer(ANNA))
    assert (answer.status_code, answer.json()["code"]) == (403, "access_denied")
    assert guarded.http.get("/usage").status_code == 401


def test_a_query_that_makes_no_sense_is_refused_by_name(guarded):
    for query in ({"by": "prompt"}, {"days": 0}, {"days": "many"}, {"days": 10**9}):
        answer = guarded.http.get("/usage", params=query, headers=bearer(OPERATOR))
        assert (answer.status_code, answer.json()["field"]) == (400, *query)
