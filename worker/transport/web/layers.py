"""The layers around all doors.

A crowd is let in one by one, HEAD is answered wherever GET is, and below a proxy's prefix everything is too.
"""

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ASKED = "worker.head"  # in a request's scope


class HeadAsGet:
    """The layer that has HEAD answered as GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A stream is closed once its headers are sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [_with_head(*header) for header in message.get("headers", [])]
                await send(message)
                if is_head:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif not is_head:
                await send(message)

        await self._app({**scope, "method": "GET", _ASKED: True} if is_head else scope, receive, send_without_body)


_TAKEN_FIRST = 64  # requests that may come between two that are let in


class Turnstile:
    """The layer that lets requests in one after the other, a turn of the event loop for each.

    When a thousand come at once, their first steps together take seconds, in which nobody else would be served.
    Requests to `open_to` pass by them. A loop takes one new connection a turn: while more come, they are taken before
    the next request is let in, or one to `open_to` would stand among them at the door all the while.
    """

    def __init__(self, app: ASGIApp, open_to: Collection[str] = ()) -> None:
        self._app = app
        self._open_to = open_to
        self._turn = asyncio.Lock()
        self._came = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, once it is its turn."""
        self._came += 1
        if scope["type"] == "http" and scope["path"] not in self._open_to:
            async with self._turn:
                await self._quiet()
        await self._app(scope, receive, send)

    async def _quiet(self) -> None:
        """Wait until two turns have passed in which nobody came: a connection is taken in one, and read in the next."""
        came, quiet = self._came, 0
        for _ in range(_TAKEN_FIRST):
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._came == came else 0
            if quiet == 2:
                return
            came = self._came


class Prefixed:
    """The layer for a proxy that serves this server below a prefix, whether it leaves that on the paths or not."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Routes ignore the root path in front of a path."""
        if scope["type"] != "lifespan" and self._prefix:
            path = scope["path"]
            if path == self._prefix:
                path += "/"
            elif not path.startswith(f"{self._prefix}/"):
                path = self._prefix + path
            scope = {**scope, "root_path": self._prefix, "path": path}
        await self._app(scope, receive, send)


def is_head(scope: Scope) -> bool:
    """True if only the headers of an answer are asked for, so that nothing may be used up by it."""
    return _ASKED in scope


def _with_head(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a header; where GET is allowed, HEAD is too."""
    if name.lower() == b"allow" and b"GET" in value and b"HEAD" not in value:
        return name, value.replace(b"GET", b"GET, HEAD")
    return name, value
