"""Send a recorded conversation to a worker that is composed as in production, over an engine that draws flat images.

A file is `{"worker": {…}, "exchanges": [{"name", "send", "answer"}, …]}`. `worker` holds settings, and `door: queue`
for the handler that RunPod's SDK calls, `engine: real` for the demo model, `pixels: noise` for images that do not
compress. A `send` has one of

* `path`, and if need be `method`, `headers`, `json`, or `body` and `type`, or `form` and `files`: an HTTP request;
* `socket`: messages for a WebSocket, and between them the types of the messages to wait for;
* `job`: what RunPod's SDK hands to the handler;
* `hook`: nothing is sent, the next webhook is the answer;

and beside it `engine` (`hold`, `release`, or `fail` with the name of an error), done before; `until`, a text that the
answer must have, else it is asked again; `save`, names for values of the answer by their dotted paths, which later
requests write as `{name}`; `pixels: false` where the seed is the worker's choice. The name is the request's id.
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.contract.recorded.masks import HEADERS, described, masked
from tests.contract.recorded.sending import file, filled
from tests.fakes.engine import FakeEngine, make_context
from tests.fakes.web_worker import Listener, Serving, WebGateway, WebWorker
from tests.transport.web.uploads import noise
from tests.waiting import LIMIT_S, connect
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import PROJECT_DIR, Settings
from worker.core import errors

FOLDER = Path(__file__).parent / "exchanges"
_MODELS = Path(__file__).parent / "shelf/models.yaml"
# Settings of the worker behind a gateway.
_OF_THE_WORKER = {"max_response_mb", "allow_unregistered_models"}
_WIDTH = 140
_PATIENCE_S = LIMIT_S

Answer = dict[str, Any]


@dataclass
class Stage:
    """A worker that is spoken to, and what was learnt from it."""

    ask: Callable[[str, dict[str, Any]], Answer]
    engine: FakeEngine | None
    pixels: bool
    known: dict[str, str] = field(default_factory=dict)


def play(
    conversation: dict[str, Any], folder: Path, *, by_gateway: bool = False, at_once: Container[str] = ()
) -> dict[str, Any]:
    """Have the whole conversation with a new worker whose files are in `folder`; return it with today's answers.

    `by_gateway` has it with a gateway before that worker; for the exchanges named `at_once` any first answer will do.
    """
    exchanges = []
    with ExitStack() as stack:
        stage = stack.enter_context(_stage(conversation["worker"], folder, by_gateway))
        for exchange in conversation["exchanges"]:
            name, send = exchange["name"], exchange["send"]
            if stage.engine is not None and "engine" in send:
                _command(stage.engine, send["engine"])
            if name in at_once:
                send = {key: part for key, part in send.items() if key != "until"}
            answer = _asked(stage, name, send)
            for key, path in send.get("save", {}).items():
                stage.known[key] = _at(answer, path)
            pixels = stage.pixels and send.get("pixels", True)
            exchanges.append({"name": name, "send": exchange["send"], "answer": masked(answer, stage.known, pixels)})
    return {"worker": conversation["worker"], "exchanges": exchanges}


def read(path: Path) -> dict[str, Any]:
    """Return a recorded conversation."""
    found: dict[str, Any] = _parsed(path.read_text())
    return found


def written(value: Any) -> str:
    """Return a conversation as the text of its file: keys in their order, numbers as they were written."""
    return re.sub(r'"\\u0000([^"]+)"', r"\1", _lines(value, 0)) + "\n"


def _parsed(data: str | bytes) -> Any:
    return json.loads(data, parse_float=lambda literal: f"\0{literal}")  # 1e-05 is not 0.00001


def _lines(value: Any, depth: int) -> str:
    whole = json.dumps(value, ensure_ascii=False)
    if len(whole) + depth <= _WIDTH or not isinstance(value, dict | list) or not value:
        return whole
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        parts = [
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {_lines(part, depth + 1)}" for key, part in value.items()
        ]
    else:
        parts = [f"{pad}{_lines(part, depth + 1)}" for part in value]
    return ("{\n%s\n%s}" if isinstance(value, dict) else "[\n%s\n%s]") % (",\n".join(parts), " " * depth)


def _asked(stage: Stage, name: str, send: dict[str, Any]) -> Answer:
    ends = time.monotonic() + _PATIENCE_S
    while True:
        words = {key: filled(part, stage.known) for key, part in send.items() if key not in ("body", "files")}
        answer = stage.ask(name, send | words)
        if send.get("until", "") in json.dumps(answer) or time.monotonic() > ends:
            return answer
        time.sleep(0.01)


def _command(engine: FakeEngine, command: str) -> None:
    if command == "hold":
        engine.gate.clear()
    elif command == "release":
        engine.gate.set()
    else:
        kind = getattr(errors, command.removeprefix("fail "), RuntimeError)
        engine.failures.append(kind("The engine of a test fails."))


def _at(answer: Any, path: str) -> str:
    for part in path.split("."):
        answer = answer[int(part)] if isinstance(answer, list) else answer[part]
    return str(answer)


@contextmanager
def _stage(setup: dict[str, Any], folder: Path, by_gateway: bool) -> Iterator[Stage]:
    settings = {name: filled(value, {}) for name, value in setup.items() if name not in ("door", "engine", "pixels")}
    if setup.get("door") == "queue":
        with asyncio.Runner() as runner:
            yield _queue(runner, setup.get("engine") == "real", settings, folder)
        return
    noisy = setup.get("pixels") == "noise"
    if noisy:  # what becomes of it in JPEG and WebP may differ between machines
        settings["engine"] = FakeEngine(lambda job, seed: noise(int(job.params["width"]), int(job.params["height"])))
    with ExitStack() as stack:
        hooks = stack.enter_context(Listener())
        engine = settings.pop("engine", FakeEngine())
        if by_gateway:  # which keeps the rules of its callers; the worker behind it has its usual ones
            own = {
                name: settings[name] for name in ("max_response_mb", "allow_unregistered_models") if name in settings
            }
            worker = stack.enter_context(WebWorker(folder / "worker", engine=engine, models_yaml=_MODELS, **own))
            replicas = {"one": {"url": worker.origin, "usd_per_hour": settings.get("gpu_price_per_hour", 0)}}
            served: Serving = stack.enter_context(WebGateway(folder, replicas, models_yaml=_MODELS, **settings))
        else:
            served = stack.enter_context(WebWorker(folder, engine=engine, models_yaml=_MODELS, **settings))
        known = {"hooks": hooks.origin, "origin": served.origin, "host": served.origin.removeprefix("http://")}

        def ask(name: str, send: dict[str, Any]) -> Answer:
            if "socket" in send:
                return _conversed(served, name, send)
            if "hook" in send:
                assert hooks.wait_until(lambda: hooks.requests)
                seen = hooks.requests.pop(0)
                return {"headers": sorted(seen.headers), "json": _parsed(seen.body)}
            return _requested(served.http, name, send)

        yield Stage(ask, engine, not noisy, known)


def _queue(runner: asyncio.Runner, real: bool, settings: dict[str, Any], folder: Path) -> Stage:
    if real:
        own = Settings(volume_dir=folder / "volume", outputs_dir=folder / "outputs", device="cpu", warm_up=False)
        worker, engine = build_worker(own), None
    else:
        context = make_context(folder, models_yaml=_MODELS, **settings)
        worker, engine = context.worker, context.engine
    door = build_door(worker, concurrency=1)

    def ask(name: str, send: dict[str, Any]) -> Answer:
        # As it is posted.
        return {"json": _parsed(json.dumps(runner.run(door.handle({"id": name, **send["job"]}))))}

    return Stage(ask, engine, not real, {"project": str(PROJECT_DIR)})


def _requested(http: httpx.Client, name: str, send: dict[str, Any]) -> Answer:
    headers = {"X-Request-ID": name, **send.get("headers", {})}
    options: dict[str, Any] = {}
    if "json" in send:
        options["json"] = send["json"]
    elif "files" in send or "form" in send:
        options["files"] = [(field, ("image.png", file(words))) for field, words in send.get("files", [])]
        options["data"] = send.get("form", {})
    elif "body" in send:
        options["content"] = file(send["body"])
        headers["Content-Type"] = send["type"]
    return _heard(http.request(send.get("method", "GET"), send["path"], headers=headers, **options))


def _heard(answer: httpx.Response) -> Answer:
    kind = answer.headers.get("content-type", "")
    found: Answer = {
        "status": answer.status_code,
        "headers": {name: value for name, value in answer.headers.items() if name not in HEADERS},
    }
    if not answer.content:
        pass
    elif kind == "application/json":
        found["json"] = _parsed(answer.content)
        if answer.content not in _styles(json.loads(answer.content)):
            found["written"] = "in another way"
    elif kind.startswith("text/event-stream"):
        found["events"] = [_event(block) for block in answer.text.split("\n\n")]
    elif described(answer.content):
        found["file"] = base64.b64encode(answer.content).decode()
    elif kind.startswith("text/plain; version"):  # of Prometheus: names and labels
        found["lines"] = sorted(
            {line if line[:1] == "#" else line.rpartition(" ")[0] for line in answer.text.split("\n")}
        )
    else:
        found["text"] = answer.text
    return found


def _styles(value: Any) -> tuple[bytes, ...]:
    """How a door may write JSON: without spaces and escapes."""
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),)


def _event(block: str) -> dict[str, Any]:
    lines = [line.partition(": ")[::2] for line in block.split("\n") if line]
    return {name: _parsed_or_text(value) if name == "data" else value for name, value in lines}


def _parsed_or_text(value: str) -> Any:
    try:
        return _parsed(value)
    except ValueError:  # Replicate's events hold plain texts
        return value


def _conversed(served: Serving, name: str, send: dict[str, Any]) -> Answer:
    heard: list[Any] = []
    headers = {"X-Request-ID": name, **send.get("headers", {})}
    try:
        with connect(f"ws://127.0.0.1:{served.port}/ws", additional_headers=headers, max_size=None) as socket:
            for turn in send["socket"]:
                if isinstance(turn, dict):
                    socket.send(json.dumps(turn))
                    continue
                heard.append(_parsed(socket.recv(timeout=_PATIENCE_S)))
                while heard[-1]["type"] != turn:
                    heard.append(_parsed(socket.recv(timeout=_PATIENCE_S)))
    except InvalidStatus as refused:
        return {"status": refused.response.status_code}
    except ConnectionClosed as closed:
        return {"messages": heard, "closed": closed.rcvd.code if closed.rcvd else None}
    return {"messages": heard}
