"""docs/errors.md has every code of the source, and every code of it is provoked here: a new one has to be told how."""

import ast
import asyncio
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from aiohttp import web

from tests.catalog.corpus import sparse_file, stored
from tests.conftest import PROJECT
from tests.fakes import FakeServer
from tests.fakes.engine import flat
from tests.fakes.web_worker import Serving, WebGateway, WebWorker
from tests.transport.web.uploads import noise, png
from tests.waiting import connect
from tools.errors_page import PAGE, WORDS, all_codes, page
from worker.app import server
from worker.core import errors
from worker.transport.web.connections import ConnectionLimits

KEY = "a key of nobody else"


class Asking:
    """Servers that are set up as a code needs it, and what they are asked."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, running: ExitStack, usual: WebWorker) -> None:
        self.folder = folder
        self.patch = patch
        self._running = running
        self._usual = usual

    def server(self, **settings: object) -> WebWorker:
        """The usual server; or one of its own, with these settings."""
        served = self._usual
        if settings:
            served = self._running.enter_context(WebWorker(self.folder, **settings))
        engine = served.context.engine
        for undo in (engine.gate.set, engine.alive.set, lambda: setattr(engine, "pixels", flat)):
            self._running.callback(undo)
        return served

    def gateway(self, replicas: dict[str, dict[str, Any]]) -> Serving:
        """A gateway before these workers."""
        return self._running.enter_context(WebGateway(self.folder, replicas))

    def open(self, **settings: object) -> WebWorker:
        """A server that takes any model."""
        return self.server(allow_unregistered_models=True, **settings)

    def run(self, served: Serving | None = None, **fields: object) -> httpx.Response:
        """Ask for an image at /run."""
        return (served or self.server()).http.post("/run", json={"prompt": "an apple", **fields})

    def drawing(self, does: Callable[[], object]) -> httpx.Response:
        """Ask for an image while the engine does this in place of drawing."""
        served = self.server()
        served.context.engine.pixels = lambda job, seed: does()
        return self.run(served)

    def edit(self, served: WebWorker, file: bytes, kind: str = "image/png") -> httpx.Response:
        """Ask for a change of an image at /edit."""
        return served.http.post("/edit", data={"prompt": "blue"}, files={"image": ("file", file, kind)})


class Links(FakeServer):
    """Serves the files of a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the one route."""
        router.add_static("/", self._root)


def on_volume(served: WebWorker, name: str) -> Path:
    path = served.context.worker.settings.volume_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def half(asking: Asking) -> httpx.Response:
    asking.patch.setattr(server, "connection_limits", lambda settings: ConnectionLimits(head_s=0.1))
    with socket.create_connection(("127.0.0.1", asking.open().port), timeout=60) as link:
        link.sendall(b"GET /ping HTTP/1.1\r\nX-Half: ")
        head, _, body = link.recv(65_536).partition(b"\r\n\r\n")
    return httpx.Response(int(head.split()[1]), content=body)


def pickled(asking: Asking) -> httpx.Response:
    served = asking.open()
    path = on_volume(served, "model.ckpt")
    path.write_bytes(b"\x80\x04." + bytes(100))
    return asking.run(served, model=f"file:{path}")


def damaged(asking: Asking) -> httpx.Response:
    served = asking.open()
    path = on_volume(served, "model.safetensors")
    path.write_bytes(struct.pack("<Q", 1_000_000) + b"{}")
    return asking.run(served, model=f"file:{path}")


def of_another_family(asking: Asking) -> httpx.Response:
    served = asking.open()
    path = sparse_file(on_volume(served, "style.safetensors"), stored("lora-sdxl-kohya"))
    return asking.run(served, loras=[f"file:{path}"])


def larger_than_the_cache(asking: Asking) -> httpx.Response:
    (asking.folder / "links").mkdir()
    path = sparse_file(asking.folder / "links/style.safetensors", stored("lora-sd1-kohya"))
    served = asking.open(allow_private_urls=True, cache_max_gb=1e-6, OFFLINE=False)
    with Links(path.parent) as links:
        return asking.run(served, loras=[f"{links.origin}/style.safetensors"])


def crowded(asking: Asking) -> httpx.Response:
    served = asking.server(max_concurrent_jobs=1, max_queued_jobs=0)
    with served.busy():
        return asking.run(served)


def twice(asking: Asking, **settings: object) -> httpx.Response:
    served = asking.server(api_keys=KEY, **settings)
    served.http.headers["Authorization"] = f"Bearer {KEY}"
    assert asking.run(served).status_code == 200
    return asking.run(served)


def late(served: WebWorker) -> WebWorker:
    served.context.engine.gate.clear()
    return served


def failing(served: WebWorker) -> WebWorker:
    served.context.engine.pixels = lambda job, seed: raised_in_torch("sizes of tensors must match")
    return served


def taken_back(asking: Asking) -> dict[str, object]:
    served = late(asking.server())
    with connect(f"ws://127.0.0.1:{served.port}/ws") as socket:
        socket.send(json.dumps({"type": "run", "id": "long", "input": {"prompt": "x"}}))
        while (found := json.loads(socket.recv(timeout=60)))["type"] != "failed":
            if found["type"] == "progress":
                socket.send(json.dumps({"type": "cancel", "id": "long"}))
    return found


def incompressible(asking: Asking) -> httpx.Response:
    served = asking.server(max_response_mb=0.011)
    served.context.engine.pixels = lambda job, seed: noise(256, 256)
    return asking.run(served, width=256, height=256)


def raised_in_torch(text: str) -> None:
    from worker.engine.devices import device_failure

    raise device_failure(RuntimeError(text))


def out_of_memory() -> None:
    import torch

    from worker.engine.devices import device_failure

    raise device_failure(torch.OutOfMemoryError())


def black() -> None:
    from worker.engine.outputs import to_rasters

    to_rasters([np.zeros((8, 8, 3), dtype=np.float32)])


def of_another_kind(folder: Path) -> None:
    """Load a repository whose only part is a scheduler that no class can be made from."""
    from worker.core.device import LoadPlan
    from worker.engine.loader import load_pipeline

    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": [None, None]})
    )
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "none that there is"}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    load_pipeline(LoadPlan(folder, "DDPMPipeline", "float32", "cpu", "none", 0, 0))


def stopping(asking: Asking) -> httpx.Response:
    served = asking.server(shutdown_grace_seconds=1)
    asyncio.run(served.context.worker.operations.generation.admission.close(0))
    return asking.run(served)


def deserted(asking: Asking) -> httpx.Response:
    from worker.remote import backend

    asking.patch.setattr(backend, "PATIENCE_S", 0.0)
    return asking.run(asking.gateway({"gone": {"url": "http://127.0.0.1:9"}}))


def stuck(asking: Asking) -> httpx.Response:
    from worker.service.local import batching

    asking.patch.setattr(batching, "STUCK_GRACE_S", 0.1)
    served = asking.server(shutdown_grace_seconds=1)
    served.context.engine.alive.clear()
    while True:  # at its deadline a caller is free; whoever comes once the device has not let go is told
        answer = asking.run(served, timeout_s=1)
        if answer.json()["code"] != "job_timeout":
            return answer


def started_wrong(asking: Asking) -> dict[str, object]:
    import runpod

    from worker.app.queue import run_serverless

    started: list[dict] = []
    asking.patch.setattr(runpod.serverless, "start", started.append)
    asking.patch.setattr(runpod.serverless, "register_fitness_check", lambda check: None)
    asking.patch.setattr("worker.app.queue.configure_logging", lambda **options: None)
    asking.patch.setattr("sys.argv", ["handler.py"])
    settings = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job", "DEFAULT_MODEL": "nosuch"}
    for name, value in {"RUNPOD_LOG_LEVEL": "INFO", "VOLUME_DIR": str(asking.folder), **settings}.items():
        asking.patch.setenv(name, value)
    run_serverless()
    return asyncio.run(started[0]["handler"]({"id": "a", "input": {"prompt": "x"}}))


PROVOKED: dict[str, Callable[[Asking], httpx.Response | dict[str, object]]] = {
    "internal_error": lambda asking: asking.drawing(lambda: {}["nobody thought of it"]),
    "invalid_request": lambda asking: asking.run(mask_image="AAAA"),
    "unknown_parameter": lambda asking: asking.run(stepps=4),
    "parameter_out_of_range": lambda asking: asking.run(width=1001),
    "invalid_image": lambda asking: asking.run(image="bm8gaW1hZ2U="),
    "model_not_found": lambda asking: asking.run(model="nope"),
    "unsupported_model": lambda asking: asking.run(model="prior"),
    "unsafe_format": pickled,
    "incompatible_adapter": of_another_family,
    "job_not_found": lambda asking: asking.server().http.get("/v2/any/status/nobody"),
    "access_denied": lambda asking: asking.run(asking.open(), model="file:/etc/passwd"),
    "unauthenticated": lambda asking: asking.run(asking.server(api_keys=KEY)),
    "overloaded": crowded,
    "rate_limited": lambda asking: twice(asking, rate_limit_per_minute=1),
    "quota_exceeded": lambda asking: twice(asking, quota_pixel_steps_per_day=30_000),
    "source_unavailable": lambda asking: asking.run(model="org/sdxl"),  # the server is offline
    "corrupt_file": damaged,
    "disk_full": larger_than_the_cache,
    "job_timeout": lambda asking: asking.run(late(asking.server()), timeout_s=0.2),
    "job_cancelled": taken_back,
    "result_too_large": incompressible,
    "engine_failure": lambda asking: asking.drawing(lambda: raised_in_torch("sizes of tensors must match")),
    "gpu_oom": lambda asking: asking.drawing(out_of_memory),
    "load_failed": lambda asking: asking.drawing(lambda: of_another_kind(asking.folder)),
    "invalid_output": lambda asking: asking.drawing(black),
    "shutting_down": stopping,
    "unreachable": deserted,
    "device_lost": stuck,
    "not_found": lambda asking: asking.server().http.get("/nowhere"),
    "method_not_allowed": lambda asking: asking.server().http.delete("/run"),
    "request_too_large": lambda asking: asking.run(asking.server(max_body_mb=0.02), prompt="x" * 30_000),
    "request_timeout": half,
    "address_too_long": lambda asking: asking.server().http.get(f"/{'a' * 9_000}"),
    "headers_too_large": lambda asking: asking.server().http.get("/ping", headers={f"X-{n}": "" for n in range(101)}),
    "unsupported_media_type": lambda asking: asking.server().http.post(
        "/run", content="an apple", headers={"Content-Type": "text/plain"}
    ),
    "invalid_file": lambda asking: asking.edit(asking.server(), b"Dear all,", "text/plain"),
    "inference_error": lambda asking: asking.edit(failing(asking.server()), png(64, 64)),
    "timeout": lambda asking: asking.edit(late(asking.server(timeout_seconds=0.2)), png(64, 64)),
    "invalid_configuration": started_wrong,
}
# Kept for clients that know it; none of our code raises the group itself, and a test holds that.
GROUPS = {errors.SourceError.code: "SourceError"}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebWorker]:
    with WebWorker(tmp_path_factory.mktemp("usual")) as served:
        yield served


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: WebWorker) -> Iterator[Asking]:
    with ExitStack() as running:
        yield Asking(tmp_path, monkeypatch, running, usual)


@pytest.mark.quick_rows(12)
@pytest.mark.parametrize("code", all_codes(), ids=lambda code: code.name)
def test_a_code_is_provoked_with_the_status_of_the_page(code, asking):
    if code.name in GROUPS:
        return
    answer = PROVOKED[code.name](asking)
    body = answer if isinstance(answer, dict) else answer.json()
    assert body.get("code", body["error"]) == code.name, body
    if isinstance(answer, httpx.Response):
        assert answer.status_code == code.status
    if "retryable" in body:
        assert body["retryable"] == code.retryable


def test_the_group_is_raised_nowhere():
    made = re.compile(rf"(?<!class )\b({'|'.join(GROUPS.values())})\(")
    assert made.search("raise SourceError(text)")
    assert [path for path, text in sources() if made.search(text)] == []


def test_the_page_is_the_codes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make errors"
    names = [code.name for code in all_codes()]
    assert len(names) == len(set(names))
    assert set(WORDS) == set(names), "words for a code that nothing answers with"
    assert set(PROVOKED) | set(GROUPS) == set(names)


def test_no_code_of_the_source_is_absent():
    """A class's `code = "…"`, and a body's `"code": "…"`."""
    found = {code for _, text in sources() if re.search(r"\bcode\b", text) for code in written_codes(ast.parse(text))}
    assert {"invalid_file", "gpu_oom", "internal_error"} <= found
    assert found <= {code.name for code in all_codes()}
    assert written_codes(ast.parse('answer = {"code": "brand_new"}')) == {"brand_new"}


def sources() -> Iterator[tuple[Path, str]]:
    for path in (PROJECT / "worker").rglob("*.py"):
        yield path, path.read_text(encoding="utf-8")


def written_codes(tree: ast.AST) -> set[str]:
    values: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            values += [line.value for line in node.body if isinstance(line, ast.Assign) and named_code(line.targets[0])]
            values += [line.value for line in node.body if isinstance(line, ast.AnnAssign) and named_code(line.target)]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            values += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"]
    return {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)}


def named_code(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "code"
