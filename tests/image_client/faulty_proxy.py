"""A proxy before a real server, which lets faults happen to some of the requests that pass through it."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
from aiohttp import web

from tests.fakes import FakeServer

# Before: nothing reaches the server. After: the server has had it, and its answer does not arrive.
BEFORE, AFTER = ("429", "503", "reset"), ("500", "hang", "lost")
_KEPT = ("content-type", "retry-after", "x-request-id")


class FaultyProxy(FakeServer):
    """The n-th request meets the n-th fault, "" for none; then there are none. `met` counts them."""

    def __init__(self, origin: str, faults: Iterable[str], hang_s: float = 3.0) -> None:
        super().__init__()
        self._origin, self._faults, self._hang_s = origin, iter(faults), hang_s
        self._client: httpx.AsyncClient | None = None
        self.met: Counter[str] = Counter()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Take everything."""
        router.add_route("*", "/{path:.*}", self._pass)

    def __exit__(self, *ended: Any) -> None:
        if self._client is not None:
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(60)
        super().__exit__(*ended)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        fault = next(self._faults, "")
        self.met[fault] += 1
        if fault == "reset":
            return _hang_up(request)
        if fault in BEFORE:
            return web.json_response({"error": "Not now."}, status=int(fault))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=200))
        answer = await self._client.request(
            request.method, self._origin + request.path_qs, headers=headers, content=await request.read()
        )
        if fault == "lost":
            return _hang_up(request)
        if fault == "hang":
            await asyncio.sleep(self._hang_s)
        if fault == "500":
            return web.json_response({"error": "Something broke."}, status=500)
        kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
        return web.Response(status=answer.status_code, body=answer.content, headers=kept)


def _hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
