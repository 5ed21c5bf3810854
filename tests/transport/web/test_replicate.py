"""Replicate's HTTP API, as its clients call it."""

import asyncio
import base64
import hashlib
import io
import json
import threading
import time
from datetime import UTC, datetime

import pytest
from PIL import Image

from tests.fakes.web_worker import Listener, WebWorker
from tests.transport.web.uploads import png
from tests.waiting import until
from worker.core.errors import JobTimeout
from worker.service.jobs.record import JobOptions, JobRecord
from worker.service.jobs.record import Status as JobStatus
from worker.transport import prediction_pages
from worker.transport.web.replicate_schema import Asked, encode_prediction
from worker.wire.request import decode_input

INPUT = {"prompt": "an apple", "width": 64, "height": 64, "seed": 7}
TINY = hashlib.sha256(b"tiny").hexdigest()
WAIT = {"Prefer": "wait"}


def create(served, path="/v1/models/local/tiny/predictions", headers=WAIT, **body):
    answer = served.http.post(path, json={"input": INPUT, **body}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_prediction_is_waited_for_and_its_output_is_the_file(served):
    prediction = create(served, input=INPUT | {"num_outputs": 2, "output_format": "webp", "go_fast": True})
    assert prediction["status"] == "succeeded" and prediction["error"] is None
    assert (prediction["model"], prediction["version"]) == ("tiny", TINY)
    assert prediction["metrics"]["image_count"] == 2 and prediction["completed_at"] >= prediction["created_at"]
    assert "go_fast has no effect here." in prediction["logs"]
    kind, _, data = prediction["output"][1].partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)
    again = served.http.get(f"/v1/predictions/{prediction['id']}").json()
    assert again == prediction


@pytest.mark.parametrize(
    ("version", "model"),
    [("local/tiny", "tiny"), (TINY, "tiny"), (f"any/small:{TINY}", "tiny"), ("tiny", "tiny"), ("org/sdxl", "org/sdxl")],
)
def test_a_model_is_named_by_version_alias_or_owner(served, version, model):
    assert create(served, "/v1/predictions", headers={}, version=version)["model"] == model


def test_an_unknown_version_is_refused_and_an_unknown_model_fails(served):
    answer = served.http.post("/v1/predictions", json={"version": "f" * 64, "input": INPUT})
    assert answer.status_code == 400
    assert answer.json().keys() >= {"title", "detail", "status", "code"} and answer.json()["code"] == "model_not_found"
    failed = create(served, "/v1/models/no/where/predictions")
    assert (failed["status"], failed["error_code"]) == ("failed", "model_not_found")
    assert "no/where" in failed["error"] and failed["output"] is None


def test_while_it_is_under_way_it_is_starting_so_that_clients_ask_on(served):
    engine = served.context.engine
    engine.gate.clear()
    prediction = create(served, headers={"Prefer": "wait=1"})
    assert prediction["status"] == "starting" and prediction["output"] is None
    assert served.http.get(prediction["urls"]["get"]).json()["status"] in ("starting", "processing")
    cancelled = served.http.post(prediction["urls"]["cancel"]).json()
    assert (cancelled["status"], cancelled["error"]) == ("canceled", None)
    engine.gate.set()
    assert served.http.get("/v1/predictions/nobody").status_code == 404


def test_a_shape_is_drawn_in_the_models_own_number_of_pixels(served):
    create(served, input={"prompt": "x", "aspect_ratio": "16:9", "num_inference_steps": 2})
    job = served.context.engine.ran[-1]
    assert (job.params["width"], job.params["height"]) == (88, 48)  # of 64x64, on a grid of 8
    answer = served.http.post(
        "/v1/models/local/tiny/predictions", json={"input": {"prompt": "x", "aspect_ratio": "wide"}}
    )
    assert answer.status_code == 400 and "aspect_ratio" in answer.json()["detail"]


def test_a_stream_has_the_logs_the_output_and_an_end(served):
    prediction = create(served)
    answer = served.http.get(prediction["urls"]["stream"])
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in part.split("\n")) for part in answer.text.strip().split("\n\n")]
    assert [event["event"] for event in events] == ["logs", "output", "done"]
    assert events[0]["data"].startswith("100%|") and events[0]["data"].endswith("| 3/3")
    assert events[1]["data"] == prediction["output"][0] and events[2]["data"] == "{}"


def test_behind_https_the_output_is_an_address(served):
    headers = WAIT | {"X-Forwarded-Proto": "https"}
    prediction = create(served, headers=headers)
    (url,) = prediction["output"]
    assert url == f"https://127.0.0.1:{served.port}/v1/predictions/{prediction['id']}/output/0"
    file = served.http.get(url.partition(str(served.port))[2])
    assert (file.status_code, file.headers["content-type"]) == (200, "image/png")
    assert served.http.get(f"/v1/predictions/{prediction['id']}/output/1").status_code == 404


def test_an_upload_is_an_input_and_nothing_is_kept(served):
    file = served.http.post("/v1/files", files={"content": ("a.png", png(64, 64), "image/png")})
    assert file.status_code == 201
    body = file.json()
    assert (body["size"], body["content_type"]) == (len(png(64, 64)), "image/png")
    assert body["checksums"]["sha256"] == hashlib.sha256(png(64, 64)).hexdigest()
    prediction = create(served, input=INPUT | {"image": body["urls"]["get"], "prompt_strength": 0.4})
    assert served.context.engine.ran[-1].params["strength"] == 0.4
    assert len(prediction["input"]["image"]) < 100  # it is not said back
    assert served.http.get(f"/v1/files/{body['id']}").status_code == 404


def test_a_model_has_the_schema_of_its_inputs_and_openais_clients_read_the_same_path(served):
    model = served.http.get("/v1/models/local/tiny").json()
    assert (model["owner"], model["name"], model["latest_version"]["id"]) == ("local", "tiny", TINY)
    schemas = model["latest_version"]["openapi_schema"]["components"]["schemas"]
    assert schemas["Input"]["properties"].keys() >= {"prompt", "num_outputs", "aspect_ratio", "num_inference_steps"}
    assert "model" not in schemas["Input"]["properties"] and schemas["Output"]["type"] == "array"
    assert "#/$defs/" not in json.dumps(schemas)
    sdxl = served.http.get("/v1/models/org/sdxl").json()
    assert (sdxl["id"], sdxl["object"], sdxl["name"], sdxl["owned_by"]) == ("org/sdxl", "model", "sdxl", "org")
    escaped = served.http.get("/v1/models/org%2Fsdxl").json()
    assert escaped.keys() == {"id", "object", "created", "owned_by"}
    versions = served.http.get("/v1/models/local/tiny/versions").json()["results"]
    assert versions == [served.http.get(f"/v1/models/local/tiny/versions/{TINY}").json()]
    for path in ("/v1/models/no/where", f"/v1/models/local/tiny/versions/{'f' * 64}"):
        assert served.http.get(path).json().keys() >= {"title", "detail", "status"}


def test_webhooks_tell_of_the_start_the_output_and_the_end_each_with_an_id_of_its_own(tmp_path):
    secret = "whsec_" + base64.b64encode(b"a secret of some length").decode()
    with Listener() as listener, WebWorker(tmp_path, allow_private_urls=True, webhook_secret=secret) as served:
        done = threading.Event()
        create(served, webhook=f"{listener.origin}/hook", webhook_events_filter=["start", "output", "completed"])
        for _ in range(500):
            if len(listener.requests) == 3 or done.wait(0.01):
                break
        bodies = [json.loads(request.body) for request in listener.requests]
        assert sorted(body["status"] for body in bodies) == ["processing", "starting", "succeeded"]
        assert len({request.headers["webhook-id"] for request in listener.requests}) == 3
        answer = served.http.post(
            "/v1/models/local/tiny/predictions",
            json={"input": INPUT, "webhook": f"{listener.origin}/hook", "webhook_events_filter": ["never"]},
        )
        assert answer.status_code == 400


def test_each_webhook_of_logs_has_an_id_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.transport.web.replicate_predictions._LOGS_EVERY_S", 0.0)
    secret = "whsec_" + base64.b64encode(b"a secret of some length").decode()
    with Listener() as listener, WebWorker(tmp_path, allow_private_urls=True, webhook_secret=secret) as served:
        engine = served.context.engine
        engine.steps = 200
        monkeypatch.setattr(engine.gate, "wait", lambda _: time.sleep(0.05 * (len(listener.requests) < 2)) or True)
        create(served, webhook=f"{listener.origin}/hook", webhook_events_filter=["logs", "completed"])
        until(lambda: any(json.loads(request.body)["status"] == "succeeded" for request in listener.requests))
        ids = [request.headers["webhook-id"] for request in listener.requests]
    assert len(ids) > 2 and len({*ids}) == len(ids)


class SlowListener(Listener):
    """Takes its time for each webhook, and notes how many came at once."""

    under_way = most = 0

    async def _take(self, request):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.1)
        self.under_way -= 1
        return await super()._take(request)


def test_webhooks_of_a_prediction_come_in_order_and_what_is_outdated_does_not_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.transport.web.webhooks.PAUSES_S", (0.05, 0.05))
    failures = [500, 500, 500, 500]  # of the start, the output, and twice of the end
    with SlowListener(failures) as listener, WebWorker(tmp_path, allow_private_urls=True) as served:
        create(served, webhook=f"{listener.origin}/hook", webhook_events_filter=["start", "output", "completed"])
        until(lambda: len(listener.requests) >= 5 and not listener.under_way)
        told = [json.loads(request.body)["status"] for request in listener.requests]
    assert told == ["starting", "processing", "succeeded", "succeeded", "succeeded"]
    assert listener.most == 1


def test_the_secret_of_webhooks_is_not_told_to_those_who_ask(tmp_path):
    secret = "whsec_" + base64.b64encode(b"a secret of some length").decode()
    with WebWorker(tmp_path, webhook_secret=secret) as served:
        answer = served.http.get("/v1/webhooks/default/secret")
    assert answer.status_code == 403 and answer.json().keys() >= {"title", "detail", "status"}
    assert "WEBHOOK_SECRET" in answer.json()["detail"] and secret not in answer.text


def test_predictions_are_each_callers_own(tmp_path):
    ann, ben = "0123456789abcdefghij", "abcdefghij0123456789"
    with WebWorker(tmp_path, api_keys=f"{ann},{ben}") as served:
        mine = create(served, headers=WAIT | {"Authorization": f"Token {ann}"})
        path = f"/v1/predictions/{mine['id']}"
        assert served.http.get(path, headers={"Authorization": f"Bearer {ben}"}).status_code == 404
        assert served.http.get(path).status_code == 401
        assert served.http.get(path, headers={"Authorization": f"Bearer {ann}"}).json()["status"] == "succeeded"


def test_a_caller_lists_their_own_predictions_page_by_page_and_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_pages, "PAGE", 2)
    ann, ben = ({"Authorization": f"Bearer {key}"} for key in ("0123456789abcdefghij", "abcdefghij0123456789"))
    with WebWorker(tmp_path, api_keys="0123456789abcdefghij,abcdefghij0123456789") as served:
        ids = [create(served, headers=WAIT | ann)["id"] for _ in range(3)]
        create(served, headers=WAIT | ben)
        first = served.http.get("/v1/predictions", headers=ann).json()
        assert [entry["id"] for entry in first["results"]] == [ids[2], ids[1]] and first["previous"] is None
        (url,) = first["results"][0]["output"]
        assert url == f"http://127.0.0.1:{served.port}/v1/predictions/{ids[2]}/output/0"
        second = served.http.get(first["next"], headers=ann).json()
        assert [entry["id"] for entry in second["results"]] == [ids[0]] and second["next"] is None
        assert served.http.get(second["previous"], headers=ann).json()["results"] == first["results"]
        middle = {"created_before": first["results"][0]["created_at"], "created_after": "2020-01-01"}
        older = served.http.get("/v1/predictions", headers=ann, params=middle).json()
        assert ids[2] not in [entry["id"] for entry in older["results"]]
        assert served.http.get("/v1/predictions?source=web", headers=ann).json()["results"] == []
        for query in ("cursor=%20x", "created_after=monday"):
            assert served.http.get(f"/v1/predictions?{query}", headers=ann).status_code == 400
        account = served.http.get("/v1/account", headers=ann).json()
        assert account["type"] == "user" and account["username"]
        assert served.http.get("/v1/hardware", headers=ann).json() == [{"name": "CPU", "sku": "cpu"}]
        assert served.http.get("/v1/files", headers=ann).json()["results"] == []
        assert served.http.delete("/v1/files/x", headers=ann).status_code == 404
        assert served.http.get("/v1/account").status_code == 401


def test_cancel_after_ends_a_prediction_that_its_caller_no_longer_wants(served):
    engine = served.context.engine
    engine.gate.clear()
    try:
        prediction = create(served, headers={"Cancel-After": "0m5s"})
        assert prediction["deadline"] > prediction["created_at"]
        ends = time.monotonic() + 120
        while prediction["status"] in ("starting", "processing") and time.monotonic() < ends:
            time.sleep(0.1)
            prediction = served.http.get(prediction["urls"]["get"]).json()
    finally:
        engine.gate.set()
    assert prediction["status"] in ("aborted", "canceled") and prediction["error"] is None


@pytest.mark.parametrize(
    ("began", "lived", "status"), [(True, 5, "canceled"), (False, 5, "aborted"), (True, 3, "failed")]
)
def test_its_end_says_whether_work_had_begun_and_another_limit_is_a_failure(began, lived, status):
    record = JobRecord("a", decode_input(INPUT), JobOptions())
    record.finish(JobStatus.TIMED_OUT, None, JobTimeout("late"))
    record.started_at = record.created_at if began else None
    record.finished_at = record.created_at + lived
    asked = Asked("tiny", INPUT, datetime.now(UTC), lifetime_s=5)
    said = encode_prediction(record, asked, "https://host", as_url=True)
    assert said["status"] == status and (said["error"] is None) == (status != "failed")


@pytest.mark.parametrize("text", ["soon", "4s", "2d", "25h", "-5"])
def test_a_time_that_is_none_is_refused(served, text):
    answer = served.http.post(
        "/v1/predictions", json={"version": "tiny", "input": INPUT}, headers={"Cancel-After": text}
    )
    assert answer.status_code == 400 and "Cancel-After" in answer.json()["detail"]
    assert served.context.builder.built == 0
