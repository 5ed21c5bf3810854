"""A job as it happens: over a WebSocket and as server-sent events."""

import base64
import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests import waiting
from tests.fakes.web_worker import WebWorker
from tests.waiting import connect

APPLE = {"prompt": "an apple", "seed": 3}


def talk(served, **options):
    return connect(f"ws://127.0.0.1:{served.port}/ws", max_size=None, **options)


def say(socket, **message):
    socket.send(json.dumps(message))


def until(socket, *kinds):
    """All messages up to the first of one of these types."""
    found = []
    while not found or found[-1]["type"] not in kinds:
        found.append(json.loads(socket.recv(timeout=60)))
    return found


def test_a_socket_sees_every_step_a_preview_and_the_result(served):
    with talk(served) as socket:
        say(socket, type="run", id="mine", input=APPLE | {"previews": True})
        found = until(socket, "result", "failed")
    assert [item["type"] for item in found] == ["accepted"] + ["progress"] * (len(found) - 2) + ["result"]
    assert {item["id"] for item in found} == {"mine"}
    steps = [item for item in found if item.get("phase") == "inference"]
    assert [(item["step"], item["total"]) for item in steps] == [(1, 3), (2, 3), (3, 3)]
    assert base64.b64decode(steps[0]["preview"]).startswith(b"\xff\xd8")
    assert (found[-1]["seed"], found[-1]["status"], "output" in found[-1]) == (3, "COMPLETED", False)


def test_without_previews_there_are_none(served):
    with talk(served) as socket:
        say(socket, type="run", input=APPLE)
        assert not [item for item in until(socket, "result") if "preview" in item]


def test_a_job_is_cancelled_and_the_socket_lives_on(served):
    served.context.engine.gate.clear()
    with talk(served) as socket:
        say(socket, type="run", id="long", input=APPLE)
        until(socket, "progress")
        say(socket, type="cancel", id="long")
        assert until(socket, "failed")[-1]["code"] == "job_cancelled"
        served.context.engine.gate.set()
        say(socket, type="run", id="long", input=APPLE)
        assert until(socket, "result", "failed")[-1]["seed"] == 3


def test_several_jobs_share_a_socket(served):
    with talk(served) as socket:
        for seed in range(4):
            say(socket, type="run", id=str(seed), input={"prompt": "x", "seed": seed})
        seeds = {}
        while len(seeds) < 4:
            last = until(socket, "result", "failed")[-1]
            seeds[last["id"]] = last["seed"]
    assert seeds == {str(seed): seed for seed in range(4)}


def test_with_the_socket_end_its_jobs(served):
    served.context.engine.gate.clear()
    with talk(served) as socket:
        say(socket, type="run", input=APPLE)
        until(socket, "progress")
    waiting.until(lambda: not served.context.engine.inside.is_set())
    served.context.engine.gate.set()


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize(
    "sent",
    [
        *("", "{", "[]", "[" * 50_000, b"{}"),
        *('{"type": "draw"}', '{"type": "cancel", "id": "none"}', '{"type": "run", "id": 5}'),
    ],
)  # fmt: skip
def test_nonsense_is_answered_and_nothing_runs(served, sent):
    with talk(served) as socket:
        socket.send(sent)
        answer = json.loads(socket.recv(timeout=60))
        assert (answer["type"], answer["code"]) == ("failed", "invalid_request")
        assert served.context.builder.built == 0
        say(socket, type="run", input={"action": "models"})
        assert until(socket, "result")


def test_a_bad_request_fails_in_the_usual_words(served):
    with talk(served) as socket:
        say(socket, type="run", id="a", input={"prompt": "x", "widht": 5})
        last = until(socket, "failed")[-1]
    assert (last["code"], last["field"], last["id"]) == ("unknown_parameter", "widht", "a")


def test_one_socket_has_only_so_many_jobs(served):
    served.context.engine.gate.clear()
    with talk(served) as socket:
        for seed in range(17):
            say(socket, type="run", id=str(seed), input={"prompt": "x", "seed": seed})
        last = until(socket, "failed")[-1]
        assert (last["id"], last["code"]) == ("16", "overloaded")
        served.context.engine.gate.set()


def test_a_page_of_another_site_is_turned_away(served):
    with pytest.raises(InvalidStatus, match="403"):
        talk(served, origin="https://evil.example")
    with talk(served, origin=served.origin) as socket:
        say(socket, type="run", input={"action": "models"})
        assert until(socket, "result")


def test_a_message_without_end_closes_the_socket(tmp_path):
    with (
        WebWorker(tmp_path, max_body_mb=1) as served,
        talk(served) as socket,
        pytest.raises(ConnectionClosed, match="1009"),
    ):
        socket.send("x" * 2_000_000)
        socket.recv(timeout=60)


def events_of(answer):
    found = []
    for block in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def hand_in(served, **fields):
    return served.http.post("/v2/any/run", json={"input": APPLE | fields}).json()["id"]


def test_events_tell_of_the_steps_and_end_with_the_result(served):
    served.context.engine.gate.clear()
    job_id = hand_in(served, previews=True)
    with httpx.stream("GET", f"{served.origin}/events/{job_id}", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        served.context.engine.gate.set()
        answer.read()
    found = events_of(answer)
    assert [kind for kind, _ in found] == ["progress"] * (len(found) - 1) + ["result"]
    steps = [data for _, data in found if data.get("phase") == "inference"]
    assert [data["step"] for data in steps] == [1, 2, 3]
    assert base64.b64decode(steps[0]["preview"])
    assert found[-1][1]["output"]["seed"] == 3


def test_events_of_a_finished_job_are_its_end_and_a_browser_comes_no_more(served):
    job_id = hand_in(served, model="nope")
    answer = served.http.get(f"/events/{job_id}")
    assert [kind for kind, _ in events_of(answer)] == ["failed"]
    assert events_of(answer)[0][1]["output"]["code"] == "model_not_found"
    assert "id: end" in answer.text
    assert served.http.get(f"/events/{job_id}", headers={"Last-Event-ID": "end"}).status_code == 204
    assert served.http.get("/events/nothing").status_code == 404


def test_a_follower_who_leaves_changes_nothing(served):
    served.context.engine.gate.clear()
    job_id = hand_in(served)
    with httpx.stream("GET", f"{served.origin}/events/{job_id}", timeout=60) as answer:
        next(answer.iter_text())
    served.context.engine.gate.set()
    assert events_of(served.http.get(f"/events/{job_id}"))[-1][1]["status"] == "COMPLETED"
