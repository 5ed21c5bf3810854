"""The HTTP server over a fake engine, on a real port and in a thread of its own: real clients can talk to it."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from aiohttp import web

from tests.clock import Clock
from tests.fakes import FakeServer
from tests.fakes.engine import ServerContext, make_context, shelf
from tests.waiting import LIMIT_S
from worker.app.gateway import build_gateway
from worker.app.served import Served
from worker.app.server import build_app, server_config
from worker.app.settings import Settings


class Serving:
    """What is served on a port of its own; `http` is a client of it."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.port = 0

    def __enter__(self) -> Self:
        config = self.config = server_config(build_app(self.served), self.served.settings)
        config.host, config.port, config.timeout_graceful_shutdown = "127.0.0.1", 0, 2
        self._server = uvicorn.Server(config)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="web-worker", daemon=True)
        self._thread.start()
        assert self._started.wait(LIMIT_S)
        self.http = httpx.Client(base_url=self.origin, timeout=LIMIT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join()

    @property
    def origin(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        # The loop that it is served on; a clock that a test puts forward is seen by asyncio's own loop only.
        loop_factory = None if isinstance(time.monotonic, Clock) else self.config.get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self._started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


class WebWorker(Serving):
    """A worker over a fake engine that is served; its `context` has both."""

    def __init__(self, root: Path, builds_later: bool = False, **changes: Any) -> None:
        self.context: ServerContext = make_context(root, **changes)
        if builds_later:
            self.context.builder.gate.clear()
        super().__init__(self.context.worker)

    @contextlib.contextmanager
    def busy(self, headers: dict[str, str] | None = None) -> Iterator[None]:
        """Hold the engine in the middle of a job of whoever sends these `headers`."""
        engine = self.context.engine
        engine.gate.clear()
        asked = {"json": {"prompt": "first"}, "headers": headers}
        running = threading.Thread(target=self.http.post, args=("/run",), kwargs=asked)
        running.start()
        try:
            assert engine.inside.wait(LIMIT_S)
            yield
        finally:
            engine.gate.set()
            running.join()


class WebGateway(Serving):
    """A gateway over the same models, before `replicas`: name -> its entry in fleet.yaml."""

    def __init__(self, root: Path, replicas: dict[str, dict[str, Any]], **changes: Any) -> None:
        root.mkdir(parents=True, exist_ok=True)
        fleet = root / "fleet.yaml"
        fleet.write_text(json.dumps({"replicas": replicas}))
        settings = Settings(
            **{
                "models_yaml": shelf(root),
                "default_model": "tiny",
                "volume_dir": root / "volume",
                "OFFLINE": True,
                "gateway_mode": True,
                "fleet_file": fleet,
                **changes,
            }
        )
        self.gateway = build_gateway(settings)
        super().__init__(self.gateway)


class Listener(FakeServer):
    """Takes webhooks; the first ones are answered as `failures` says."""

    def __init__(self, failures: list[int] | None = None) -> None:
        super().__init__()
        self.failures = failures or []

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the one route."""
        router.add_post("/hook", self._take)

    async def _take(self, request: web.Request) -> web.Response:
        return web.Response(status=self.failures.pop(0) if self.failures else 200)
