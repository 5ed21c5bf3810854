"""Every door that draws, as one callable each: asked the same everywhere, and what it said, whatever its shape."""

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.fakes.web_worker import WebWorker
from tests.transport.web.uploads import png
from tests.waiting import LIMIT_S, connect

_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass(frozen=True)
class Said:
    """What a door answered, read by those who know its shape only."""

    status: int
    """Of HTTP; 0 in a conversation that goes on."""
    code: str | None = None
    """The error's; None when something was drawn."""
    sentence: str = ""
    retry_after: str | None = None
    models: list[str] = field(default_factory=list)
    """Those that are listed because another was asked for."""


Ask = Callable[[WebWorker, dict[str, Any], dict[str, str]], Said]


def _plain(answer: httpx.Response) -> Said:
    """The worker's own shape."""
    if answer.status_code < 400:
        return _drawn(answer)
    return _error(answer.json(), answer)


def _error(body: dict[str, Any], answer: httpx.Response) -> Said:
    assert {"error", "code", "retryable", "request_id"} <= body.keys() <= {
        "error", "code", "retryable", "request_id", "field", "hint", "details", "supported_models"
    }  # fmt: skip
    assert body["request_id"] == answer.headers["x-request-id"]
    return Said(
        answer.status_code,
        body["code"],
        body["error"],
        answer.headers.get("retry-after"),
        body.get("details", {}).get("supported_models", []),
    )


def _drawn(answer: httpx.Response) -> Said:
    assert answer.status_code == 200
    assert answer.content
    return Said(200)


def _hub(answer: httpx.Response) -> Said:
    """Hugging Face's: the same, and what its client reads from headers."""
    said = _plain(answer)
    if said.code is not None:
        assert answer.headers["x-error-code"] == said.code
        assert answer.headers["x-error-message"][:20] == said.sentence[:20]
        assert answer.json().get("supported_models", []) == said.models
    return said


def _form(answer: httpx.Response) -> Said:
    """That of /edit."""
    if answer.status_code < 400:
        return _drawn(answer)
    body = answer.json()
    assert body.keys() == {"error", "detail", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    _, _, listed = body["detail"].partition(" There are ")
    models = listed.rstrip(".").split(", ") if listed else []
    return Said(answer.status_code, body["error"], body["detail"], answer.headers.get("retry-after"), models)


def _openai(answer: httpx.Response) -> Said:
    """OpenAI's; a stream that is refused is answered like everything else."""
    if answer.status_code < 400:
        assert "error" not in answer.text
        return _drawn(answer)
    problem = answer.json()["error"]
    assert {"message", "type", "code", "param"} <= problem.keys()
    assert answer.headers["x-should-retry"] in ("true", "false")
    return Said(
        answer.status_code,
        problem["code"],
        problem["message"],
        answer.headers.get("retry-after"),
        problem.get("supported_models", []),
    )


def _job(served: WebWorker, answer: httpx.Response) -> Said:
    """RunPod's: a job that is refused at the door, or fails by and by."""
    if answer.status_code >= 400:
        return _plain(answer)
    headers = {"Authorization": answer.request.headers.get("authorization", "")}
    job, ends = answer.json(), time.monotonic() + LIMIT_S
    while job["status"] not in _OVER and time.monotonic() < ends:
        time.sleep(0.01)
        job = served.http.get(f"/v2/any/status/{job['id']}", headers=headers).json()
    if job["status"] == "COMPLETED":
        return Said(200)
    assert {"id", "status", "error", "output"} <= job.keys()
    rest = job["output"]
    return Said(200, rest["code"], job["error"], models=rest.get("details", {}).get("supported_models", []))


def _fields(sent: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "x", "width": 64, "height": 64, **sent}


def _at(path: str, read: Callable[[httpx.Response], Said], wrapped: bool = False) -> Ask:
    def ask(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
        body = {"input": _fields(sent)} if wrapped else _fields(sent)
        return read(served.http.post(path, json=body, headers=headers))

    return ask


def _runpod(path: str) -> Ask:
    def ask(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
        return _job(served, served.http.post(path, json={"input": _fields(sent)}, headers=headers))

    return ask


def _inference(path: str = "/diffusers/generate") -> Ask:
    def ask(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
        fields = _fields(sent)
        body = {"inputs": fields.pop("prompt"), "parameters": fields}
        model = fields.pop("model", None)
        if path.endswith("/"):
            return _hub(served.http.post(f"{path}{model or 'tiny'}", json=body, headers=headers))
        return _hub(served.http.post(path, json=body | {"model_id": model or "tiny"}, headers=headers))

    return ask


def _upload(path: str, read: Callable[[httpx.Response], Said]) -> Ask:
    def ask(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
        form = {"prompt": "x", **sent}
        return read(served.http.post(path, files={"image": png(64, 64)}, data=form, headers=headers))

    return ask


def _images(**more: Any) -> Ask:
    def ask(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
        body = {"prompt": "x", "size": "64x64", **more, **sent}
        return _openai(served.http.post("/v1/images/generations", json=body, headers=headers))

    return ask


def _web_ui(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
    """AUTOMATIC1111's, with our own fields by its names where it has them."""
    fields = _fields(sent)
    settings = {"sd_model_checkpoint": fields.pop("model")} if "model" in fields else {}
    renamed = {"num_images": "batch_size", "num_inference_steps": "steps"}
    payload = {renamed.get(name, name): value for name, value in fields.items()} | {"override_settings": settings}
    answer = served.http.post("/sdapi/v1/txt2img", json=payload, headers=headers)
    if answer.status_code < 400:
        return _drawn(answer)
    problem = answer.json()
    assert problem["detail"] == problem["errors"]
    return _named(answer.status_code, problem["error"], problem["detail"], answer)


def _prediction(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
    """Replicate's: what shows only when a job is looked into is a prediction that failed."""
    fields = _fields(sent)
    body = {"version": fields.pop("model", "tiny"), "input": fields}
    answer = served.http.post("/v1/predictions", json=body, headers={**headers, "Prefer": "wait"})
    found = answer.json()
    if answer.status_code >= 400:
        assert {"title", "detail", "status", "code"} <= found.keys() and found["status"] == answer.status_code
        return _named(answer.status_code, found["code"], found["detail"], answer)
    assert answer.status_code == 201
    return Said(200) if found["status"] == "succeeded" else _named(200, found["error_code"], found["error"], answer)


def _named(status: int, code: str, text: str, answer: httpx.Response) -> Said:
    sentence, _, models = text.partition(" There are ")
    names = [name.strip() for name in models.rstrip(".").split(",") if name.strip()]
    return Said(status, code, sentence, answer.headers.get("retry-after"), names)


def _socket(served: WebWorker, sent: dict[str, Any], headers: dict[str, str]) -> Said:
    """A conversation: not opened, ended, or answered with what failed."""
    try:
        with connect(f"ws://127.0.0.1:{served.port}/ws", additional_headers=headers, max_size=None) as socket:
            socket.send(json.dumps({"type": "run", "id": "mine", "input": _fields(sent)}))
            found: dict[str, Any] = {"type": "accepted"}
            while found["type"] not in ("result", "failed"):
                found = json.loads(socket.recv(timeout=60))
    except InvalidStatus as refused:
        return Said(refused.response.status_code, "unauthenticated")
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return Said(closed.rcvd.code, "request_too_large")
    if found["type"] == "result":
        return Said(0)
    assert {"type", "id", "error", "code", "retryable", "request_id"} <= found.keys()
    details = found.get("details", {})
    seconds = details.get("retry_after_s")
    waits = None if seconds is None else str(seconds)
    return Said(0, found["code"], found["error"], waits, details.get("supported_models", []))


DOORS: dict[str, Ask] = {
    "run": _at("/run", _plain),
    "run, as input": _at("/run", _plain, wrapped=True),
    "runsync": _at("/runsync", _plain),
    "v2 run": _runpod("/v2/any/run"),
    "v2 runsync": _runpod("/v2/any/runsync"),
    "socket": _socket,
    "diffusers": _inference(),
    "diffusers, by path": _inference("/diffusers/generate/"),
    "models": _inference("/models/"),
    "edit": _upload("/edit", _form),
    "openai": _images(),
    "openai, url": _images(response_format="url"),
    "openai, stream": _images(stream=True),
    "openai, edit": _upload("/v1/images/edits", _openai),
    "a1111": _web_ui,
    "replicate": _prediction,
}
# Where another number than the usual one is right: this door knows 400, 503 and 504 only,
_EDIT = {413: 400, 429: 503}
# and a WebSocket has its own: an answer inside it has none, the handshake's only refusal is 403, and 1009 is "too big".
_SOCKET = {401: 403, 413: 1009, 400: 0, 429: 0, 503: 0}


def number_at(door: str, usual: int, *, inside: bool) -> int:
    """Return the number with which `door` says what is usually said with another.

    `inside` is what shows only when a job is looked into: one that was handed in has failed then, as on RunPod.
    """
    if inside and door.startswith(("v2", "replicate")):
        return 200
    return {"edit": _EDIT, "socket": _SOCKET}.get(door, {}).get(usual, usual)


def hang_up_when_drawn(served: WebWorker, path: str, body: dict[str, Any]) -> None:
    """Send a request, and hang up once the engine draws for it."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    assert served.context.engine.inside.wait(LIMIT_S)
    connection.close()
