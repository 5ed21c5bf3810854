"""POST /run and /runsync: what callers of either kind read, how failures look, and who hangs up."""

import base64
import http.client
import json
import threading

import httpx
import pytest
from fastapi import Request
from starlette.exceptions import HTTPException

from tests.answers import files_of
from tests.fakes.web_worker import WebWorker
from tests.transport.web.doors import hang_up_when_drawn
from tests.transport.web.uploads import ADMITTED, noise
from tests.waiting import until
from worker.transport.web.incoming import Incoming

APPLE = {"prompt": "an apple", "seed": 3}


@pytest.mark.parametrize("path", ["/run", "/runsync"])
@pytest.mark.parametrize("body", [APPLE, {"input": APPLE}])
def test_the_answer_is_there_at_the_top_and_in_runpods_wrapping(served, path, body):
    answer = served.http.post(path, json=body)
    assert answer.status_code == 200
    found = answer.json()
    assert files_of(found) == files_of(found["output"]) == [found["image"]]
    assert base64.b64decode(found["image"]).startswith(b"\x89PNG")
    assert (found["status"], found["seed"], found["output"]["seed"]) == ("COMPLETED", 3, 3)
    assert found["lightning_enabled"] is False
    assert isinstance(found["delayTime"], int)
    assert isinstance(found["executionTime"], int)


def test_any_action_is_answered(served):
    found = served.http.post("/run", json={"input": {"action": "models"}}).json()
    assert {model["id"] for model in found["output"]["models"]} >= {"tiny", "any"}
    assert "lightning_enabled" not in found


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"json": {"prompt": "x", "widht": 5}}, 400, "unknown_parameter"),
        ({"json": {"prompt": "x", "model": "nope"}}, 400, "model_not_found"),
        ({"json": {"prompt": "x", "model": "org/sdxl"}}, 502, "source_unavailable"),
        ({"json": [1]}, 400, "invalid_request"),
        ({"json": {"input": {"prompt": "x"}, "webhok": "https://a.example"}}, 400, "unknown_parameter"),
        ({"json": {"input": {"prompt": "x"}, "policy": {"ttl": "long"}}}, 400, "parameter_out_of_range"),
        ({"json": {"input": {"prompt": "x"}, "webhook": "http://127.0.0.1/x"}}, 400, "invalid_request"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "invalid_request"),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "invalid_request"),
        ({"content": b'{"prompt": "x"}', "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"content": b'{"prompt": "x"}'}, 415, "unsupported_media_type"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_status_and_one_shape_and_nothing_runs(served, sent, status, code):
    answer = served.http.post("/run", **sent)
    found = answer.json()
    assert (answer.status_code, found["code"]) == (status, code)
    assert isinstance(found["error"], str)
    assert isinstance(found["retryable"], bool)
    assert found["request_id"] == answer.headers["x-request-id"]
    assert served.context.engine.ran == []
    assert served.context.builder.built == 0


def test_what_the_framework_refuses_has_the_same_shape(served):
    for method, path, status, code in [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/run", 405, "method_not_allowed"),
    ]:
        answer = served.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_body_that_says_that_it_is_too_large_is_refused_unread(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", "/run")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "999999999")
    connection.endheaders()
    answer = connection.getresponse()
    body = json.load(answer)
    assert (answer.status, body["code"]) == (413, "request_too_large")
    assert "120 MB" in body["error"]
    assert "MAX_BODY_MB" in body["error"]
    connection.close()


async def test_a_body_that_turns_out_too_large_is_read_no_further():
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    with pytest.raises(HTTPException) as refused:
        await Incoming(250).read(Request(ADMITTED | {"headers": []}, receive))
    assert (refused.value.status_code, len(read)) == (413, 3)


@pytest.mark.parametrize(
    ("sent", "comes_back"),
    [("mine-1.2:3_4", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False), ("a\tb", False)],
)
def test_a_request_id_comes_back_if_it_is_safe(served, sent, comes_back):
    answer = served.http.get("/ping", headers={"X-Request-ID": sent})
    assert (answer.headers["x-request-id"] == sent) is comes_back
    assert answer.headers["x-request-id"]


def test_the_same_idempotency_key_is_drawn_once(served):
    headers = {"Idempotency-Key": "one"}
    first = served.http.post("/run", json={"prompt": "x"}, headers=headers).json()
    again = served.http.post("/run", json={"prompt": "x"}, headers=headers).json()
    assert (again["id"], again["seed"], again["image"]) == (first["id"], first["seed"], first["image"])
    assert len(served.context.engine.ran) == 1
    served.http.post("/run", json={"prompt": "x"}, headers={"Idempotency-Key": "two"})
    assert len(served.context.engine.ran) == 2
    assert served.http.post("/run", json={"prompt": "x"}, headers={"Idempotency-Key": "k" * 256}).status_code == 400


def test_an_idempotency_key_is_free_again_when_its_first_request_failed_or_is_forgotten(tmp_path, clock):
    with WebWorker(tmp_path, job_retention_seconds=1000, result_cache_seconds=0) as served:
        headers = {"Idempotency-Key": "one"}

        def status(**sent):
            return served.http.post("/run", json=sent, headers=headers).status_code

        assert status(prompt="x", widht=1) == 400
        assert status(prompt="x", width=64) == 200
        assert status(prompt="y", width=64) == 400
        clock.forward(1001)
        assert status(prompt="y", width=64) == 200
        assert [job.prompt for job in served.context.engine.ran] == ["x", "y"]


def test_answers_that_are_remembered_are_bounded(tmp_path):
    with WebWorker(tmp_path, job_retention_mb=0.1, result_cache_seconds=0) as served:
        served.context.engine.pixels = lambda job, seed: noise(128, 128)  # some 65 kB of base64 each
        for word in "abc":
            answer = served.http.post("/run", json={"prompt": word}, headers={"Idempotency-Key": word})
            assert answer.status_code == 200
        again = served.http.post("/run", json={"prompt": "c"}, headers={"Idempotency-Key": "c"})
        assert again.json() == answer.json()
        assert len(served.context.engine.ran) == 3
        served.http.post("/run", json={"prompt": "a"}, headers={"Idempotency-Key": "a"})  # gone, and not refused
        assert len(served.context.engine.ran) == 4
        served.http.post("/run", json={"prompt": "nobody's"})
        assert served.http.post("/run", json={"prompt": "nobody's"}).status_code == 200
        assert len(served.context.engine.ran) == 6


def test_who_hangs_up_takes_his_job_back(served):
    engine = served.context.engine
    engine.gate.clear()
    hang_up_when_drawn(served, "/run", APPLE)
    assert engine.ran
    until(lambda: not engine.inside.is_set())  # though the gate is still shut
    engine.gate.set()
    assert served.http.post("/run", json=APPLE).json()["seed"] == 3


def test_one_of_two_who_share_a_job_may_hang_up(served):
    engine = served.context.engine
    engine.gate.clear()
    headers, found = {"Idempotency-Key": "shared"}, []

    def ask():
        found.append(httpx.post(f"{served.origin}/run", json=APPLE, headers=headers, timeout=60).json())

    waiting = threading.Thread(target=ask)
    waiting.start()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.origin}/run", json=APPLE, headers=headers, timeout=httpx.Timeout(10, read=0.5))
    engine.gate.set()
    waiting.join()
    assert found[0]["seed"] == 3
    assert len(engine.ran) == 1


def test_blanks_beside_the_input_say_nothing(served):
    policy = {"executionTimeout": 0, "ttl": "", "lowPriority": False}
    for body in (
        {"input": APPLE, "webhook": "", "policy": policy, "s3Config": {}},
        {"input": APPLE, "webhook": None, "policy": None, "s3Config": None},
        {"input": APPLE, "policy": [], "s3Config": {"endpointUrl": "", "bucketName": ""}},
        {"input": None, **APPLE},
        {"input": APPLE, "policy": {"executionTimeout": "60000"}},
    ):
        assert served.http.post("/run", json=body).status_code == 200, body


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("path", ["/run", "/runsync", "/v2/x/runsync", "/v1/images/generations", "/inspect"])
def test_one_wrapper_too_many_is_told_at_every_door(served, path):
    wrapped = {"input": {"input": APPLE}} if "run" in path else {"input": APPLE}
    answer = served.http.post(path, json=wrapped)
    assert "one wrapper too many" in answer.text
    assert served.context.engine.ran == []
