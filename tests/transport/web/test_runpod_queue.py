"""RunPod's API by hand: every state, and what the official clients do not show."""

import base64
import hashlib
import hmac
import json
import threading
import time

import pytest

from tests import waiting
from tests.fakes.bucket import FakeBucket
from tests.fakes.web_worker import Listener, WebWorker
from worker.core.errors import OutOfMemory

APPLE = {"input": {"prompt": "an apple", "seed": 3}}


def until(served, job_id, *states):
    def look():
        return (found := served.http.get(f"/v2/any/status/{job_id}").json())["status"] in states and found

    return waiting.until(look)


def submit(served, body=APPLE, **headers):
    answer = served.http.post("/v2/any/run", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "IN_QUEUE"
    return answer.json()["id"]


def test_a_job_is_handed_in_and_asked_for_later(served):
    job_id = submit(served)
    found = until(served, job_id, "COMPLETED")
    assert found["output"]["seed"] == 3
    assert found.keys() == {"id", "status", "delayTime", "executionTime", "output"}
    assert until(served, job_id, "COMPLETED") == found  # as often as one likes


@pytest.mark.parametrize("path", ["/v2/any/runsync", "/run"])
def test_a_callers_bucket_stands_beside_the_input(tmp_path, path):
    with FakeBucket() as bucket, WebWorker(tmp_path, allow_private_urls=True) as served:
        answer = served.http.post(path, json={**APPLE, "s3Config": bucket.s3_config()}).json()
        assert answer["status"] == "COMPLETED", answer
        assert answer["output"]["image_url"].startswith(bucket.endpoint)
        assert len(bucket.objects) == 1


def test_a_running_job_shows_its_progress_and_can_be_cancelled(served):
    served.context.engine.gate.clear()
    job_id = submit(served)
    found = until(served, job_id, "IN_PROGRESS")
    assert found["output"]["phase"] == "load"
    assert served.http.get("/v2/any/health").json()["jobs"]["inProgress"] == 1
    answer = served.http.post(f"/v2/any/cancel/{job_id}").json()
    assert answer == {"id": job_id, "status": "CANCELLED"}
    served.context.engine.gate.set()
    assert served.http.post("/run", json=APPLE).status_code == 200
    found = until(served, job_id, "CANCELLED")
    assert found["error"] == "The job was cancelled."
    assert served.http.get("/v2/any/health").json()["jobs"]["inProgress"] == 0


def test_a_failed_job_says_why_as_a_runpod_worker_does_and_is_retried(served):
    served.context.engine.failures = [OutOfMemory("Too large.", field="width")]
    job_id = submit(served, **{"X-Request-ID": "the-one"})
    found = until(served, job_id, "FAILED")
    assert found["error"] == "Too large."
    assert (found["output"]["code"], found["output"]["field"]) == ("gpu_oom", "width")
    assert found["output"]["request_id"] == "the-one"
    assert served.http.post(f"/v2/any/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert until(served, job_id, "COMPLETED", "FAILED")["output"]["seed"] == 3
    assert served.http.post(f"/v2/any/retry/{job_id}").status_code == 400
    jobs = served.http.get("/v2/any/health").json()["jobs"]
    assert (jobs["retried"], jobs["failed"], jobs["completed"]) == (1, 1, 1)


def test_a_job_that_the_queue_has_no_room_for_is_refused_and_not_taken_and_failed(tmp_path):
    with WebWorker(tmp_path, max_concurrent_jobs=1, max_queued_jobs=1) as served:
        served.context.engine.gate.clear()
        taken = [submit(served, {"input": {"prompt": word}}) for word in "ab"]
        answer = served.http.post("/v2/any/run", json={"input": {"prompt": "c"}})
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        served.context.engine.gate.set()
        for job_id in taken:
            until(served, job_id, "COMPLETED")
        assert served.http.post("/run", json={"prompt": "c"}).status_code == 200


def test_a_bad_request_is_a_failed_job_that_never_ran(served):
    job_id = submit(served, {"input": {"prompt": "x", "model": "nope"}})
    assert until(served, job_id, "FAILED")["output"]["code"] == "model_not_found"
    assert served.context.builder.built == 0


def test_the_policy_limits_the_run_and_the_life_of_a_job(served):
    served.context.engine.gate.clear()
    slow = submit(served, APPLE | {"policy": {"executionTimeout": 1000, "lowPriority": True}})
    assert "executionTimeout" in until(served, slow, "TIMED_OUT")["error"]
    short = submit(served, APPLE | {"policy": {"ttl": 1000}})
    path = f"/v2/any/status/{short}"
    answer = waiting.until(lambda: (found := served.http.get(path)).status_code != 200 and found)
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    served.context.engine.gate.set()


def test_runsync_waits_a_while_and_then_says_how_far_it_is(served):
    assert served.http.post("/v2/any/runsync", json=APPLE).json()["output"]["seed"] == 3
    served.context.engine.gate.clear()
    found = served.http.post("/v2/any/runsync?wait=1000", json=APPLE).json()
    assert found["status"] == "IN_PROGRESS"
    served.context.engine.gate.set()
    assert until(served, found["id"], "COMPLETED")["id"].startswith("sync-")
    answer = served.http.post("/v2/any/runsync?wait=5", json=APPLE)
    assert (answer.status_code, answer.json()["field"]) == (400, "wait")


def test_a_stream_has_each_step_once_and_then_the_answer(served):
    job_id = submit(served)
    until(served, job_id, "COMPLETED")
    first = served.http.get(f"/v2/any/stream/{job_id}").json()
    steps = [chunk["output"] for chunk in first["stream"]]
    assert [item["step"] for item in steps if item.get("phase") == "inference"] == [1, 2, 3]
    assert steps[-1]["seed"] == 3
    assert served.http.get(f"/v2/any/stream/{job_id}").json() == {"status": "COMPLETED", "stream": []}


def test_purging_cancels_what_waits(served):
    served.context.engine.gate.clear()
    running = submit(served)
    until(served, running, "IN_PROGRESS")
    waiting = [submit(served) for _ in range(3)]
    assert served.http.post("/v2/any/purge-queue").json() == {"removed": 3, "status": "completed"}
    for job_id in waiting:
        until(served, job_id, "CANCELLED")
    served.context.engine.gate.set()
    until(served, running, "COMPLETED")


def test_the_same_key_is_the_same_job_and_another_request_under_it_is_refused(served):
    headers = {"Idempotency-Key": "one"}
    first = submit(served, **headers)
    until(served, first, "COMPLETED")
    again = served.http.post("/v2/any/run", json=APPLE, headers=headers).json()
    assert again == {"id": first, "status": "COMPLETED"}
    other = served.http.post("/v2/any/run", json={"input": {"prompt": "y"}}, headers=headers)
    assert (other.status_code, other.json()["field"]) == (400, "Idempotency-Key")
    assert len(served.context.engine.ran) == 1


@pytest.mark.parametrize("path", ["status", "stream", "cancel", "retry"])
def test_an_unknown_job_is_404(served, path):
    answer = served.http.request("POST" if path in ("cancel", "retry") else "GET", f"/v2/any/{path}/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_a_webhook_is_called_again_until_it_is_taken_and_signed(tmp_path, monkeypatch):
    secret = "whsec_" + base64.b64encode(b"a secret key").decode()
    monkeypatch.setattr("worker.transport.web.webhooks.PAUSES_S", (0.05, 0.05))
    with Listener([500, 503]) as there, WebWorker(tmp_path, allow_private_urls=True, webhook_secret=secret) as served:
        job_id = submit(served, APPLE | {"webhook": f"{there.origin}/hook"})
        assert there.wait_until(lambda: len(there.requests) == 3)
        status = until(served, job_id, "COMPLETED")
        time.sleep(0.2)
        assert len(there.requests) == 3
    seen = there.requests[-1]
    assert json.loads(seen.body) == status
    signed = f"{job_id}.{seen.headers['webhook-timestamp']}.".encode() + seen.body
    expected = base64.b64encode(hmac.new(b"a secret key", signed, hashlib.sha256).digest()).decode()
    assert seen.headers["webhook-id"] == job_id
    assert seen.headers["webhook-signature"] == f"v1,{expected}"


def test_a_job_that_ends_while_the_server_stops_is_still_told_of(tmp_path):
    with Listener() as there:
        with WebWorker(tmp_path, allow_private_urls=True) as served:
            served.context.engine.gate.clear()
            job_id = submit(served, APPLE | {"webhook": f"{there.origin}/hook"})
            until(served, job_id, "IN_PROGRESS")
            threading.Timer(0.5, served.context.engine.gate.set).start()
        (seen,) = there.requests
    told = json.loads(seen.body)
    assert (told["id"], told["status"]) == (job_id, "COMPLETED")
    assert told["output"]["image"]


def test_a_job_that_no_grace_is_left_for_is_told_of_as_failed(tmp_path):
    with Listener() as there:
        with WebWorker(tmp_path, allow_private_urls=True, shutdown_grace_seconds=0) as served:
            served.context.engine.gate.clear()
            job_id = submit(served, APPLE | {"webhook": f"{there.origin}/hook"})
            until(served, job_id, "IN_PROGRESS")
        (seen,) = there.requests
    told = json.loads(seen.body)
    assert (told["id"], told["status"], told["output"]["code"]) == (job_id, "FAILED", "shutting_down")


def test_a_webhook_into_the_workers_own_network_is_refused_and_never_called(served, monkeypatch):
    monkeypatch.setattr("worker.transport.web.webhooks.PAUSES_S", (0.05, 0.05))
    with Listener() as there:
        for url in (f"{there.origin}/hook", f"https://127.0.0.1:{there.port}/hook", "file:///etc/passwd"):
            answer = served.http.post("/v2/any/run", json=APPLE | {"webhook": url})
            if answer.status_code == 200:  # the name is only looked up when it is called
                until(served, answer.json()["id"], "COMPLETED")
            else:
                assert answer.json()["field"] == "webhook"
        time.sleep(0.2)
        assert there.requests == []
