"""Results over every limit: read in parts from /v2/…/stream, and files that are sent in pieces."""

import base64
import io
import json

import httpx
import pytest
import runpod
from PIL import Image

from tests.fakes.engine import FakeEngine
from tests.fakes.web_worker import WebWorker
from tests.streams import documented_reader
from tests.transport.web.uploads import noise
from worker.transport.web.runpod_schema import PARTS_A_LOOK

LARGE = noise(1280, 1024)  # nearly four megabytes, and five as base64
ASKED = {"prompt": "x", "seed": 3, "num_images": 2, "output": {"delivery": "stream"}}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    engine = FakeEngine(lambda job, seed: LARGE)
    with WebWorker(tmp_path_factory.mktemp("large"), engine=engine, max_response_mb=0.5) as worker:
        yield worker


def test_runpods_client_puts_together_what_is_over_the_limit(large, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{large.origin}/v2")
    chunks = list(runpod.Endpoint("any", api_key="none").run({"input": ASKED}).stream())
    parts = [chunk for chunk in chunks if "data" in chunk]
    assert len(parts) > PARTS_A_LOOK
    assert max(len(json.dumps({"output": part})) for part in parts) <= 1_000_000
    answer = documented_reader()(chunks)
    assert (answer["format"], answer["warnings"], answer["seeds"]) == ("png", [], [3, 4])
    for text in answer["images"]:
        assert Image.open(io.BytesIO(base64.b64decode(text))).tobytes() == LARGE.data


def test_a_status_and_a_webhook_have_all_of_such_an_answer_but_its_files(large):
    status = large.http.post("/v2/any/runsync", json={"input": ASKED}).json()
    assert status["status"] == "COMPLETED"
    assert (status["output"]["images"], status["output"]["seeds"], "image" in status["output"]) == ([], [3, 4], False)
    look = large.http.get(f"/v2/any/stream/{status['id']}").json()
    assert len(look["stream"]) >= PARTS_A_LOOK
    assert sum("data" in chunk["output"] for chunk in look["stream"]) == PARTS_A_LOOK


@pytest.mark.parametrize("path", ["/run", "/runsync"])
def test_who_cannot_read_a_stream_is_refused_before_anything_is_drawn(served, path):
    answer = served.http.post(path, json=ASKED)
    assert (answer.status_code, answer.json()["field"]) == (400, "output")
    assert "/v2/{endpoint}/run" in answer.json()["error"]
    assert served.context.builder.built == 0


def test_a_door_of_files_sends_one_whole_and_says_how_long_it_is(tmp_path):
    ask = {"model_id": "tiny", "inputs": "x"}
    with (
        WebWorker(tmp_path, engine=FakeEngine(lambda job, seed: LARGE)) as served,
        httpx.stream("POST", f"{served.origin}/diffusers/generate", json=ask, timeout=60) as answer,
    ):
        pieces = list(answer.iter_raw())
    assert len(pieces) > 1
    body = b"".join(pieces)
    assert int(answer.headers["content-length"]) == len(body)
    assert Image.open(io.BytesIO(body)).size == (1280, 1024)
