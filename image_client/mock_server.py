"""The mock provider as a real HTTP server on this machine, with faults on demand.

`python -m image_client.mock_server --port 8100 --concurrency 4 --seconds 0.2 --faults 429 hang:2`, or within a test:

    with MockServer(faults=["429:1", "500", "hang:3"], concurrency=4) as server:
        ImageClient("mock", base_url=server.url)

POST /images answers as the mock does, POST /faults adds faults (a JSON list), GET /state says what was drawn.
"""

import argparse
import asyncio
import contextlib
import json
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from image_client import mock_service
from image_client.mock_service import json_answer
from image_client.providers.provider import HttpAnswer

REFUSALS = ("429", "503", "reset")  # nothing is drawn
AFTERWARDS = ("500", "hang", "truncated", "lost", "expired", "error")  # the image is drawn all the same
MAX_HEAD_BYTES, MAX_BODY_BYTES = 2**16, 2**26
HANG_SECONDS = 60.0


@dataclass(slots=True)
class State:
    """What the server has done: how often each id was drawn and asked for, and how many were at work at once."""

    drawn: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    at_work: int = 0
    most_at_work: int = 0
    over_limit: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as GET /state does."""
        counts = {"at_work": self.at_work, "most_at_work": self.most_at_work, "over_limit": self.over_limit}
        return {**counts, "drawn": dict(self.drawn), "asked": dict(self.asked)}


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _HangUp(Exception):
    """The connection is closed without an answer, or after these bytes of one."""

    def __init__(self, sent: bytes = b"") -> None:
        super().__init__()
        self.sent = sent


class MockServer:
    """A server in a thread of its own. The n-th request meets the n-th fault, "" for none; then there are none.

    Refused are 429, 429:S (with Retry-After: S), 503 and reset (the connection is closed). Drawn all the same, once an
    id: 500, hang:S (the answer comes S seconds later, 60 without a number), truncated (half of the answer), lost (the
    connection is closed), expired (a link that is gone) and error (inside of a 200). Over `concurrency` requests at
    work the answer is 429. A job takes `seconds`; with `token` it must be sent.
    """

    def __init__(
        self,
        *,
        faults: Iterable[str] = (),
        concurrency: int | None = None,
        seconds: float = 0.0,
        token: str | None = None,
        port: int = 0,
    ) -> None:
        self.state = State()
        self.port = port
        self._faults = deque(_checked(faults))
        self._concurrency, self._seconds, self._token = concurrency, seconds, token
        self._answers: dict[str, HttpAnswer] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._thread = threading.Thread(target=self._run, name="mock-server", daemon=True)
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def add_faults(self, faults: Iterable[str]) -> None:
        """Let the next requests meet these."""
        self._faults.extend(_checked(faults))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:  # the port is taken
            self._failure = error
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                connections.add(task)
            try:
                await self._converse(reader, writer)
            except asyncio.CancelledError:
                pass  # the server ends; nobody else waits for this task
            finally:
                connections.discard(task) if task else None
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, limit=MAX_HEAD_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            while True:
                request = await _read(reader)
                try:
                    answer = await self._answer(request)
                    writer.write(_written(answer))
                    await writer.drain()
                except _HangUp as hang_up:
                    writer.write(hang_up.sent)
                    await writer.drain()
                    return

    async def _answer(self, request: _Request) -> HttpAnswer:
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            return json_answer(401, {"error": "No such token."})
        match request.method, request.path:
            case "GET", "/state":
                return json_answer(200, self.state.as_json())
            case "POST", "/faults":
                self.add_faults(json.loads(request.body))
                return json_answer(200, {"faults": list(self._faults)})
            case "POST", "/images":
                return await self._images(request)
            case "GET", path if path.startswith("/files/"):
                return json_answer(410, {"error": "The link has expired."})
        return json_answer(404, {"error": "Nothing is served here."})

    async def _images(self, request: _Request) -> HttpAnswer:
        name, _, seconds = (self._faults.popleft() if self._faults else "").partition(":")
        request_id = request.headers.get("idempotency-key") or f"unnamed-{self.state.asked.total()}"
        self.state.asked[request_id] += 1
        if name == "reset":
            raise _HangUp
        if name in ("429", "503"):
            told = {"retry_after": seconds} if seconds else {}
            return json_answer(int(name), {"error": "Too much, or too soon."}, **told)
        if self._concurrency is not None and self.state.at_work >= self._concurrency:
            self.state.over_limit += 1
            return json_answer(429, {"error": f"At most {self._concurrency} at once."}, retry_after="1")
        self.state.at_work += 1
        self.state.most_at_work = max(self.state.most_at_work, self.state.at_work)
        try:
            answer = await self._drawn(request, request_id)
        finally:
            self.state.at_work -= 1
        return await self._spoilt(answer, name, seconds)

    async def _drawn(self, request: _Request, request_id: str) -> HttpAnswer:
        """Draw an id once; whoever asks again is given the same answer."""
        async with self._locks[request_id]:
            if request_id not in self._answers:
                await asyncio.sleep(self._seconds)
                answer = mock_service.answer(request.body, request_id)
                if answer.status != 200:
                    return answer
                self.state.drawn[request_id] += 1
                self._answers[request_id] = answer
        return self._answers[request_id]

    async def _spoilt(self, answer: HttpAnswer, fault: str, seconds: str) -> HttpAnswer:
        """Let a fault of those that come after drawing happen to the answer."""
        if fault == "500":
            return json_answer(500, {"error": "Something broke."})
        if fault == "hang":
            await asyncio.sleep(float(seconds or HANG_SECONDS))
        if fault == "truncated":
            whole = _written(answer)
            raise _HangUp(whole[: len(whole) // 2])
        if fault == "lost":
            raise _HangUp
        if fault == "expired":
            return json_answer(200, {**json.loads(answer.body), "images": [f"{self.url}/files/gone.png"]})
        if fault == "error":
            return json_answer(200, {"error": {"message": "The job failed.", "code": "failed"}})
        return answer


def _checked(faults: Iterable[str]) -> list[str]:
    """Return the faults; raises ValueError for one that is not known."""
    known = list(faults)
    for fault in known:
        name, _, seconds = fault.partition(":")
        if name not in ("", *REFUSALS, *AFTERWARDS) or (seconds and not float(seconds) >= 0):
            raise ValueError(f"A fault is one of {', '.join((*REFUSALS, *AFTERWARDS))}, with :seconds; not {fault!r}.")
    return known


async def _read(reader: asyncio.StreamReader) -> _Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= MAX_BODY_BYTES:
        raise ValueError
    return _Request(method, path, headers, await reader.readexactly(length))


def _written(answer: HttpAnswer) -> bytes:
    headers = {**answer.headers, "content-length": str(len(answer.body))}
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m image_client.mock_server", description="The mock provider, over HTTP."
    )
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--concurrency", type=int, help="answer 429 over so many at once")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long a job takes")
    parser.add_argument("--faults", nargs="*", default=[], help="what the first requests meet, such as 429:1 or hang:2")
    given = parser.parse_args(arguments)
    server = MockServer(faults=given.faults, concurrency=given.concurrency, seconds=given.seconds, port=given.port)
    with contextlib.suppress(KeyboardInterrupt), server:
        print(f"The mock provider answers at {server.url}; Ctrl-C stops it.", flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
