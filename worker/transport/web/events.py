"""Jobs as they run: a WebSocket that takes jobs and reports on them, and server-sent events of submitted jobs."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress

from fastapi import Request, WebSocket
from fastapi.responses import Response, StreamingResponse
from pydantic import JsonValue
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from worker.core.errors import InvalidRequest, Overloaded, WorkerError
from worker.core.json_text import JsonTooLarge, parse_bounded
from worker.core.result import Progress
from worker.service.jobs.record import JobRecord
from worker.service.usage import request_id
from worker.transport.body import written
from worker.transport.progress import encode_progress
from worker.transport.web import openapi
from worker.transport.web.auth import subprotocol
from worker.transport.web.context import JSON_LIMITS, WAITED_FOR, ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import error_response
from worker.transport.web.incoming import name_of
from worker.transport.web.runpod_schema import encode_flat, encode_job
from worker.wire.errors import encode_error

MAX_JOBS_PER_SOCKET = 16
KEEP_ALIVE_S = 15.0
SILENCE_S = 300.0
WAITING = ": waiting\n\n"
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_LAST = "end"


_TOKEN = {
    "parameters": [
        {
            "name": "token",
            "in": "query",
            "schema": {"type": "string"},
            "description": "Of POST /tokens, where no header can be sent.",
        }
    ]
}


def routes(context: ServerContext) -> Door:
    """Return the routes of WS /ws and GET /events/{id}."""
    router = Door(tags=["events"])

    places = _Places(context.max_sockets_per_caller)

    @router.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        caller = name_of(socket)
        try:
            places.take(caller)
        except Overloaded as refusal:
            await socket.send_denial_response(error_response(refusal))
            return
        try:
            if account := getattr(socket.state, "account", None):  # the server's own protocol has one
                account.hand_over(caller)
            await socket.accept(subprotocol(socket))
            await _Conversation(context, socket).hold()
        finally:
            places.leave(caller)

    @router.get(
        "/events/{id}",
        openapi_extra=_TOKEN,
        summary="A job's progress as server-sent events: progress …, then result or failed",
        responses=openapi.events(401, 404, 429, 500) | {204: {"description": "The last event was sent before."}},
    )
    async def events(id: str, request: Request) -> Response:
        record = context.find(request, id)
        if request.headers.get("last-event-id") == _LAST:
            return Response(status_code=204)  # tells a browser to come no more
        caller = name_of(request)
        places.take(caller)
        sent = _stream(record, record.watch())
        return _Events(sent, lambda: places.leave(caller))

    return router


class _Places:
    """The WebSockets and streams of events that each caller has open: so many at once, of both together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, int] = {}

    def take(self, caller: str) -> None:
        """Count one more. Raises Overloaded."""
        number = self._open.get(caller, 0)
        if number >= self._most:
            raise Overloaded(
                f"You have {self._most} WebSockets and streams of events open, which is all that a caller may "
                "(MAX_SOCKETS_PER_CALLER); close one."
            )
        self._open[caller] = number + 1

    def leave(self, caller: str) -> None:
        """Count one less."""
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]


class _Events(StreamingResponse):
    """A stream of events; `ended` is called once it has ended, also where nobody ever read of it."""

    def __init__(self, events: AsyncIterator[str | bytes], ended: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def paced(watched: AsyncGenerator[Progress, None]) -> AsyncGenerator[Progress | None, None]:
    """Yield a job's progress until the job is over, and None whenever there was none for a while."""
    pending = asyncio.ensure_future(anext(watched, None))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_S)
            if not done:
                yield None
                continue
            progress = pending.result()
            if progress is None:
                return
            yield progress
            pending = asyncio.ensure_future(anext(watched, None))
    finally:
        pending.cancel()
        with suppress(asyncio.CancelledError):
            await pending
        await watched.aclose()


async def _stream(record: JobRecord, watched: AsyncGenerator[Progress, None]) -> AsyncIterator[str | bytes]:
    async with aclosing(paced(watched)) as updates:
        async for progress in updates:
            yield WAITING if progress is None else _event("progress", encode_progress(progress))
    kind = "failed" if record.answer is None else "result"
    yield b"id: %b\nevent: %b\ndata: %b\n\n" % (_LAST.encode(), kind.encode(), written(encode_job(record)))


def _event(kind: str, data: JsonValue) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


class _Conversation:
    """One WebSocket: jobs come in, and their events go out. Its unfinished jobs end with it."""

    def __init__(self, context: ServerContext, socket: WebSocket) -> None:
        self._context = context
        self._socket = socket
        self._jobs: dict[str, JobRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()

    async def hold(self) -> None:
        """Answer messages until the caller leaves."""
        try:
            while True:
                await self._take(await self._receive())
        except WebSocketDisconnect:
            pass
        finally:
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _receive(self) -> Mapping[str, object]:
        """Return what comes next. A silent socket ends, unless a job of its is under way."""
        receiving = asyncio.ensure_future(self._socket.receive())
        try:
            while not (await asyncio.wait({receiving}, timeout=SILENCE_S))[0]:
                if not self._jobs:
                    async with self._writing:
                        await self._socket.close(1000, f"No message came for {SILENCE_S:g} seconds.")
                    raise WebSocketDisconnect
            return receiving.result()
        finally:
            receiving.cancel()

    async def _take(self, frame: Mapping[str, object]) -> None:
        if frame["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        name: JsonValue = None
        try:
            message = _decode(frame.get("text"))
            name = message.get("id")
            if message["type"] == "cancel":
                self._cancel(name)
            else:
                self._context.authenticator.readmit(self._socket)
                self._begin(str(uuid.uuid4()) if name is None else _name(name), message.get("input"))
        except WorkerError as error:
            await self._fail(name, error)

    def _begin(self, name: str, payload: JsonValue) -> None:
        if name in self._jobs:
            raise InvalidRequest("A job of this id is under way on this connection; choose another.", field="id")
        if len(self._jobs) >= MAX_JOBS_PER_SOCKET:
            raise Overloaded(f"A connection may have {MAX_JOBS_PER_SOCKET} jobs under way; wait for one to end.")
        record = self._context.submit(self._socket, payload, f"ws-{uuid.uuid4()}{self._context.mark}", WAITED_FOR)
        self._jobs[name] = record
        task = asyncio.ensure_future(self._follow(name, record, record.watch()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self, name: JsonValue) -> None:
        record = self._jobs.get(name) if isinstance(name, str) else None
        if record is None:
            raise InvalidRequest("No job of this id is under way on this connection.", field="id")
        self._context.job_store.cancel(record)

    async def _follow(self, name: str, record: JobRecord, watched: AsyncGenerator[Progress, None]) -> None:
        try:
            await self._send({"type": "accepted", "id": name, "job": record.id})
            async for progress in watched:
                await self._send({"type": "progress", "id": name, **encode_progress(progress)})
            self._jobs.pop(name, None)
            if record.error is not None:
                await self._fail(name, record.error)
            else:
                await self._send({"type": "result", **encode_flat(record), "id": name, "job": record.id})
        finally:
            self._jobs.pop(name, None)
            self._context.job_store.leave(record)

    async def _fail(self, name: JsonValue, error: WorkerError) -> None:
        text = name if isinstance(name, str) else None
        await self._send({"type": "failed", "id": text, **encode_error(error, request_id.current.get())})

    async def _send(self, message: dict[str, JsonValue]) -> None:
        async with self._writing:
            with suppress(WebSocketDisconnect, RuntimeError):  # gone; the reading side ends the conversation
                await self._socket.send_text(written(message).decode())


def _decode(text: object) -> dict[str, JsonValue]:
    try:
        message = parse_bounded(text, JSON_LIMITS) if isinstance(text, str) else None
    except JsonTooLarge as error:
        raise InvalidRequest(f"The message {error}; send fewer fields, and plain ones.", field="input") from None
    except ValueError:
        message = None
    if not isinstance(message, dict) or message.get("type") not in ("run", "cancel"):
        raise InvalidRequest(
            'A message is {"type": "run", "id": "…", "input": {…}} or {"type": "cancel", "id": "…"}, as text.',
            field="type",
        )
    return message


def _name(value: JsonValue) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 128:
        raise InvalidRequest("id must be a text of 1 to 128 characters.", field="id")
    return value
