"""Small local servers that speak the protocols of the outside world, so that tests use the real clients against them.

Each is a context manager, binds 127.0.0.1 on a free port, runs in its own thread and records what it was asked.
"""

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from aiohttp import web

from tests.waiting import LIMIT_S

Result = TypeVar("Result")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ANY_SIZE = 2**31


@dataclass(frozen=True)
class Seen:
    """One request a fake server received."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Header names in lower case."""
    body: bytes
    at: float = field(default_factory=time.monotonic)
    """Seconds of ``time.monotonic``."""


class FakeServer:
    """An aiohttp server in a thread of its own; the base of every fake."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.port = 0
        self.folder = ""
        """An empty folder that lives as long as the server."""
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._failed: BaseException | None = None

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the routes of this fake."""
        raise NotImplementedError

    @property
    def origin(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="fake-")
        self.folder = self._temporary.name
        self._thread = threading.Thread(target=self._serve, name=type(self).__name__, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._temporary.cleanup()
            raise self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._temporary.cleanup()

    def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the server's loop, the only place that changes its state, and return its result."""

        async def run() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def wait_until(self, reached: Callable[[], object], timeout: float = LIMIT_S) -> bool:
        """Block the calling thread until a condition on this server holds; False when it did not in time.

        The condition is asked again after every request and every change of state. It may read, but not ``call``.
        """
        with self._changed:
            return bool(self._changed.wait_for(reached, timeout))

    def changed(self) -> None:
        """Wake the threads blocked in ``wait_until``."""
        with self._changed:
            self._changed.notify_all()

    def closing(self) -> None:
        """Prepare for the end, on the server's loop: let go of requests that are being held."""

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        application = web.Application(middlewares=[self._record], client_max_size=_ANY_SIZE)
        self.add_routes(application.router)
        # handler_cancellation: a held request of a dead client must not swallow the next job
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        self.closing()
        await runner.cleanup()

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Seen(request.method, request.path, dict(request.query), headers, body))
        self.changed()
        try:
            return await handler(request)
        finally:
            self.changed()
